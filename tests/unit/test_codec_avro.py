"""The Avro codec against fastavro: what is well-formed reads the same, what is not is bad, and nothing crashes."""

import io
import random
from typing import Any

import fastavro
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from penstock.codec.avro import AvroDecoder, AvroEncoder
from penstock.codec.frame import prefix
from penstock.codec.shapes import UnsupportedSchema
from penstock.schemas.registry import TransientLookupError, UnknownSchemaId
from tests.unit.avro_strategies import comparable, record_schemas, values_of, written

CARD = {
    "type": "record",
    "name": "Card",
    "fields": [
        {"name": "id", "type": "string"},
        {"name": "amount", "type": "double"},
        {"name": "mcc", "type": "int"},
        {"name": "note", "type": ["null", "string"], "default": None},
    ],
}


def decoder(schema: dict[str, Any], schema_id: int = 7) -> AvroDecoder:
    def lookup(wanted: int) -> dict[str, Any]:
        if wanted == schema_id:
            return schema
        raise UnknownSchemaId(wanted)

    return AvroDecoder(schema, lookup)


def cards(n: int) -> list[bytes]:
    rows = [{"id": f"c{i}", "amount": i / 4, "mcc": i * 1000, "note": "né" if i % 3 else None} for i in range(n)]
    return [prefix(7) + written(CARD, row) for row in rows]


def fastavro_reads(schema: dict[str, Any], value: bytes) -> Any:
    """What fastavro makes of a framed value; raises where it does not read it whole."""
    stream = io.BytesIO(value[5:])
    row = fastavro.schemaless_reader(stream, fastavro.parse_schema(schema), None)
    if stream.read(1):
        raise ValueError("trailing bytes")
    return row


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_what_fastavro_writes_is_read_the_same_and_written_back_the_same(data: st.DataObject) -> None:
    schema = data.draw(record_schemas())
    rows = data.draw(st.lists(values_of(schema), min_size=1, max_size=6))
    values = [prefix(7) + written(schema, row) for row in rows]

    decoded = decoder(schema).decode(values)

    assert decoded.bad == {}
    assert decoded.index.tolist() == list(range(len(rows)))
    expected = [comparable(fastavro_reads(schema, value)) for value in values]
    assert [comparable(row) for row in decoded.rows.to_pylist()] == expected
    assert AvroEncoder(schema, 7).encode(decoded.rows).to_pylist() == values


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_mutated_bytes_are_read_as_fastavro_reads_them_or_are_bad(data: st.DataObject) -> None:
    schema = data.draw(record_schemas())
    rows = data.draw(st.lists(values_of(schema), min_size=1, max_size=6))
    values = [prefix(7) + written(schema, row) for row in rows]
    rng = random.Random(data.draw(st.integers(0, 2**32)))
    mutated = [mutate(value, rng) for value in values for _ in range(4)]

    decoded = decoder(schema).decode(mutated)

    assert sorted([*decoded.index.tolist(), *decoded.bad]) == list(range(len(mutated)))
    for i, row in zip(decoded.index.tolist(), decoded.rows.to_pylist(), strict=True):
        assert comparable(row) == comparable(fastavro_reads(schema, mutated[i]))


def mutate(value: bytes, rng: random.Random) -> bytes:
    body = bytearray(value)
    match rng.randrange(5):
        case 0:
            del body[rng.randrange(len(body)) :]
        case 1:
            body += rng.randbytes(rng.randrange(1, 4))
        case 2:
            body[rng.randrange(len(body))] = rng.randrange(256)
        case 3:
            at = rng.randrange(5, len(body) + 1)
            body[at:at] = rng.randbytes(2)
    return bytes(body)


@pytest.mark.parametrize("share", [0.01, 0.5, 1.0])
def test_the_bad_rows_are_found_and_the_good_ones_keep_their_order(share: float) -> None:
    rng = np.random.default_rng(3)
    whole = cards(2000)
    values: list[bytes | None] = list(whole)
    spoilt = set(np.flatnonzero(rng.random(2000) < share).tolist()) | {5}
    for i in spoilt:
        values[i] = whole[i][: rng.integers(5, 9)] if i % 2 else None

    decoded = decoder(CARD).decode(values)

    assert set(decoded.bad) == spoilt
    assert decoded.rows["id"].to_pylist() == [f"c{i}" for i in range(2000) if i not in spoilt]
    assert decoded.index.tolist() == [i for i in range(2000) if i not in spoilt]


@pytest.mark.parametrize(
    ("value", "reason", "word"),
    [
        (None, "empty", "tombstone"),
        (b"", "empty", "no bytes"),
        (b"{}", "bad magic", "123"),
        (b"\x80\x00\x00\x00\x00\x07", "bad magic", "128"),
        (b"\0\0\0", "truncated or malformed avro", "fewer than the 5"),
        (prefix(8) + b"x", "unknown schema id", "8"),
        (cards(1)[0][:7], "truncated or malformed avro", "id"),
        (cards(1)[0] + b"\0", "trailing bytes", "1 bytes"),
        (prefix(7) + b"\x04\xff\xfe" + bytes(8) + b"\0\0", "invalid utf-8", "id"),
        (prefix(7) + b"\x02a" + bytes(8) + b"\xfe\xff\xff\xff\x7f\0", "truncated or malformed avro", "32 bits"),
        (prefix(7) + b"\x02a" + bytes(8) + b"\0\x08", "truncated or malformed avro", "branch"),
    ],
)
def test_a_bad_row_says_what_is_wrong_with_it(value: bytes | None, reason: str, word: str) -> None:
    good = cards(3)

    decoded = decoder(CARD).decode([good[0], value, good[2]])

    assert decoded.rows["id"].to_pylist() == ["c0", "c2"]
    assert decoded.bad[1].reason == reason
    assert word in decoded.bad[1].message


def test_a_message_whose_schema_cannot_be_read_safely_says_which_schema_and_why() -> None:
    again = {"name": "next", "type": ["null", "Card"], "default": None}
    recursive = {**CARD, "fields": [*CARD["fields"], again]}
    good = cards(3)

    decoded = AvroDecoder(CARD, {7: CARD, 9: recursive}.__getitem__).decode([good[0], prefix(9) + good[1][5:], good[2]])

    assert decoded.rows["id"].to_pylist() == ["c0", "c2"]
    assert (decoded.bad[1].reason, decoded.bad[1].schema_id) == ("unsupported schema", 9)
    assert "schema id 9: next: record 'Card' contains itself" in decoded.bad[1].message


def test_a_batch_of_one_bad_row_has_no_rows_and_the_readers_columns() -> None:
    decoded = decoder(CARD).decode([None])

    assert decoded.rows.num_rows == 0
    assert decoded.rows.schema.names == ["id", "amount", "mcc", "note"]
    assert list(decoded.bad) == [0]


def test_no_values_are_no_rows() -> None:
    assert decoder(CARD).decode([]).rows.num_rows == 0


def test_an_overlong_but_whole_number_is_read() -> None:
    value = prefix(7) + b"\x82\x00a" + bytes(8) + b"\x82\x80\x00\0"

    decoded = decoder(CARD).decode([value, *cards(1)])

    assert decoded.rows.to_pylist()[0] == {"id": "a", "amount": 0.0, "mcc": 1, "note": None}


def test_blocks_with_their_size_in_front_are_read() -> None:
    schema = {"type": "record", "name": "R", "fields": [{"name": "a", "type": {"type": "array", "items": "int"}}]}
    sized = prefix(7) + b"\x03\x04\x02\x04\x02\x06\x00"

    assert decoder(schema).decode([sized] * 40).rows["a"].to_pylist() == [[1, 2, 3]] * 40
    assert decoder(schema).decode([sized]).rows["a"].to_pylist() == [[1, 2, 3]]


def test_an_id_that_cannot_be_looked_up_now_stops_the_batch() -> None:
    def down(_: int) -> dict[str, Any]:
        raise TransientLookupError("registry is down")

    with pytest.raises(TransientLookupError):
        AvroDecoder(CARD, down).decode(cards(2))


def test_an_unknown_id_is_asked_for_again_in_the_next_batch() -> None:
    known: dict[int, dict[str, Any]] = {}

    def lookup(schema_id: int) -> dict[str, Any]:
        if schema_id not in known:
            raise UnknownSchemaId(schema_id)
        return known[schema_id]

    reader = AvroDecoder(CARD, lookup)
    assert len(reader.decode(cards(2)).bad) == 2
    known[7] = CARD
    assert reader.decode(cards(2)).bad == {}


def test_mixed_schema_ids_come_back_in_their_order() -> None:
    other = {**CARD, "fields": [*CARD["fields"], {"name": "extra", "type": "long"}]}
    v7 = cards(6)
    v9 = [prefix(9) + value[5:] + b"\x02" for value in v7]
    values = [v7[0], v9[1], v9[2], v7[3], v9[4], v7[5]]

    decoded = AvroDecoder(CARD, {7: CARD, 9: other}.__getitem__).decode(values)

    assert decoded.bad == {}
    assert decoded.rows["id"].to_pylist() == [f"c{i}" for i in range(6)]


def test_logical_types_are_columns_of_their_own_types() -> None:
    kinds = {
        "day": ("int", "date", pa.date32()),
        "ms": ("long", "timestamp-millis", pa.timestamp("ms")),
        "us": ("long", "local-timestamp-micros", pa.timestamp("us")),
        "ns": ("long", "timestamp-nanos", pa.timestamp("ns")),
        "price": ("bytes", "decimal", pa.binary()),
        "uuid": ("string", "uuid", pa.string()),
        "odd": ("long", "made-up", pa.int64()),
    }
    fields = [{"name": n, "type": {"type": k, "logicalType": w, "precision": 4}} for n, (k, w, _) in kinds.items()]
    schema = {"type": "record", "name": "L", "fields": fields}
    wire = {"type": "record", "name": "L", "fields": [{"name": n, "type": k} for n, (k, _, _) in kinds.items()]}
    row = {"day": 1, "ms": 2**62, "us": -5, "ns": 9, "price": b"\xff", "uuid": "u", "odd": 3}
    value = prefix(7) + written(wire, row)

    rows = decoder(schema).decode([value, value]).rows

    assert [f.type for f in rows.schema] == [kind for _, _, kind in kinds.values()]
    assert rows["ms"].cast(pa.int64()).to_pylist() == [2**62] * 2
    assert AvroEncoder(schema, 7).encode(rows).to_pylist() == [value, value]


@pytest.mark.parametrize(
    ("kind", "word"),
    [
        ({"type": "fixed", "name": "F", "size": 3}, "fixed"),
        ({"type": "array", "items": "null"}, "no bytes"),
        ({"type": "record", "name": "E", "fields": []}, "no fields"),
        ({"type": "record", "name": "R", "fields": [{"name": "next", "type": ["null", "R"]}]}, "contains itself"),
        ("Nowhere", "not defined"),
    ],
)
def test_schemas_that_cannot_be_read_safely_are_refused_by_name(kind: Any, word: str) -> None:
    schema = {"type": "record", "name": "T", "fields": [{"name": "field", "type": kind}]}

    with pytest.raises(UnsupportedSchema, match=word) as refused:
        AvroEncoder(schema, 1)
    assert "field" in str(refused.value)


@example(offset=1, n=3)
@given(offset=st.integers(0, 5), n=st.integers(0, 5))
def test_a_slice_is_encoded_as_its_own_rows(offset: int, n: int) -> None:
    fields = [
        {"name": "t", "type": ["null", "boolean"]},
        {"name": "l", "type": {"type": "array", "items": "bytes"}},
        {"name": "s", "type": "string"},
    ]
    schema = {"type": "record", "name": "S", "fields": fields}
    plain = [{"t": i % 3 == 0 if i % 2 else None, "l": [b"x"] * i, "s": f"é{i}"} for i in range(10)]
    rows = decoder(schema).decode([prefix(7) + written(schema, row) for row in plain]).rows

    encoded = AvroEncoder(schema, 7).encode(rows.slice(offset, n))

    assert encoded.to_pylist() == [prefix(7) + written(schema, row) for row in plain[offset : offset + n]]


def test_columns_are_found_by_name_cast_and_filled_with_defaults() -> None:
    rows = pa.record_batch(
        {"mcc": pa.array([1, 2], pa.int64()), "id": pa.array(["a", "b"]).dictionary_encode(), "amount": [1.0, 2.0]}
    )

    encoded = AvroEncoder(CARD, 7).encode(rows)

    assert decoder(CARD).decode(encoded).rows.to_pylist() == [
        {"id": "a", "amount": 1.0, "mcc": 1, "note": None},
        {"id": "b", "amount": 2.0, "mcc": 2, "note": None},
    ]


@pytest.mark.parametrize(
    ("columns", "word"),
    [
        ({"id": ["a"], "amount": [1.0]}, "'mcc' is missing"),
        ({"id": ["a"], "amount": [None], "mcc": [1]}, "'amount' is null, and"),
        ({"id": ["a"], "amount": [1.0], "mcc": [2**40]}, "'mcc'"),
        ({"id": ["a"], "amount": ["x"], "mcc": [1]}, "'amount'"),
    ],
)
def test_rows_that_do_not_fit_the_schema_are_refused_by_column(columns: dict[str, list[Any]], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        AvroEncoder(CARD, 7).encode(pa.record_batch(columns))


def test_a_value_over_the_limit_is_bad_and_the_others_are_read() -> None:
    large = prefix(7) + written(CARD, {"id": "x" * 200, "amount": 1.0, "mcc": 1, "note": None})

    decoded = AvroDecoder(CARD, lambda _: CARD, max_bytes=100).decode([*cards(2), large])

    assert decoded.bad[2].reason == "too large"
    assert "the limit is 100" in decoded.bad[2].message
    assert decoded.rows.num_rows == 2


def test_garbage_with_an_id_of_its_own_in_every_row_is_bad_row_by_row() -> None:
    asked = []

    def lookup(schema_id: int) -> dict[str, Any]:
        asked.append(schema_id)
        raise UnknownSchemaId(schema_id)

    decoded = AvroDecoder(CARD, lookup).decode([prefix(9000 - i) + b"x" for i in range(500)])

    assert {i: bad.schema_id for i, bad in decoded.bad.items()} == {i: 9000 - i for i in range(500)}
    assert sorted(set(asked)) == list(range(8501, 9001))


def test_long_arrays_beside_a_bad_row_are_read() -> None:
    schema = {"type": "record", "name": "R", "fields": [{"name": "a", "type": {"type": "array", "items": "int"}}]}
    long = prefix(7) + written(schema, {"a": list(range(3000))})

    decoded = decoder(schema).decode([long] * 20 + [prefix(7) + b"\x02"])

    assert list(decoded.bad) == [20]
    assert decoded.rows["a"].to_pylist() == [list(range(3000))] * 20
