"""JSON input: what is accepted, what is refused by which name, and that a block gives what its rows give one by one."""

import json
import random
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.codec.avro import AvroDecoder, AvroEncoder
from penstock.codec.input import InputDecoder
from penstock.codec.json import JsonDecoder
from penstock.codec.shapes import UnsupportedSchema

CARD = {
    "type": "record",
    "name": "Card",
    "fields": [
        {"name": "id", "type": "string"},
        {"name": "amount", "type": "double"},
        {"name": "mcc", "type": "int", "default": 7},
        {"name": "ts", "type": {"type": "long", "logicalType": "timestamp-millis"}},
        {"name": "small", "type": ["null", "float"], "default": None},
        {"name": "kind", "type": {"type": "enum", "name": "K", "symbols": ["pos", "web"]}, "default": "pos"},
        {"name": "tags", "type": {"type": "array", "items": "string"}, "default": []},
        {"name": "raw", "type": ["null", "bytes"]},
        {
            "name": "place",
            "type": ["null", {"type": "record", "name": "P", "fields": [{"name": "lat", "type": "double"}]}],
        },
        {"name": "counts", "type": {"type": "map", "values": "int"}, "default": {"a": 1}},
        {"name": "present", "type": "boolean", "default": True},
    ],
}
GOOD: dict[str, Any] = {"id": "c1", "amount": 2, "ts": 1_700_000_000_000}
FULL = {**GOOD, "kind": "web", "tags": ["é"], "raw": "ÿ", "place": {"lat": 1}, "counts": {"b": 2}, "present": False}
DEFAULTS = {"mcc": 7, "small": None, "kind": "pos", "tags": [], "raw": None, "place": None, "present": True}


def encoded(*rows: Any) -> list[bytes | None]:
    return [json.dumps(row).encode() for row in rows]


def test_missing_fields_take_their_defaults_and_unknown_ones_are_ignored() -> None:
    decoded = JsonDecoder(CARD).decode(encoded({**GOOD, "unknown": [{}]}))

    row = decoded.rows.drop_columns(["ts", "counts"]).to_pylist()[0]
    assert row == {"id": "c1", "amount": 2.0, **DEFAULTS}
    assert decoded.rows["counts"].to_pylist() == [[("a", 1)]]


def test_the_columns_are_those_of_the_avro_reader() -> None:
    decoded = JsonDecoder(CARD).decode(encoded(GOOD, FULL))
    avro = AvroDecoder(CARD, lambda _: CARD).decode(AvroEncoder(CARD, 1).encode(decoded.rows))

    assert avro.rows.equals(decoded.rows)
    assert avro.rows.schema == decoded.rows.schema


@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize(
    ("value", "reason", "word"),
    [
        (None, "empty", "tombstone"),
        (b"", "empty", "no bytes"),
        (b"null", "malformed json", "null"),
        (b"[" * 40_000, "malformed json", ""),
        (b'{"id":"a"', "malformed json", "character"),
        (b'{"id":"a"}\n{"id":"b"}', "malformed json", ""),
        (b'{"id":"a","amount":NaN,"ts":1}', "malformed json", ""),
        (b'{"id":"a","amount":1e999,"ts":1}', "malformed json", ""),
        (b'{"id":"\xff","amount":1,"ts":1}', "malformed json", ""),
        (b'{"id":"\\ud800","amount":1,"ts":1}', "malformed json", ""),
        (json.dumps({"id": "a", "ts": 1}).encode(), "missing field", "'amount'"),
        (json.dumps({**GOOD, "id": None}).encode(), "wrong type", "'id': a JSON null"),
        (json.dumps({**GOOD, "id": 5}).encode(), "wrong type", "'id': a JSON integer"),
        (json.dumps({**GOOD, "amount": "2"}).encode(), "wrong type", "'amount': a JSON string"),
        (json.dumps({**GOOD, "amount": True}).encode(), "wrong type", "'amount': a JSON boolean"),
        (json.dumps({**GOOD, "mcc": 1.0}).encode(), "wrong type", "'mcc': a JSON number with a fraction"),
        (json.dumps({**GOOD, "mcc": True}).encode(), "wrong type", "'mcc': a JSON boolean"),
        (json.dumps({**GOOD, "mcc": 2**31}).encode(), "wrong type", "'mcc': the number is out of the range"),
        (json.dumps({**GOOD, "ts": 2**63}).encode(), "wrong type", "'ts': the number is out of the range"),
        (json.dumps({**GOOD, "ts": 2**64}).encode(), "wrong type", "'ts': the number is out of the range"),
        (json.dumps({**GOOD, "ts": "2013-01-01"}).encode(), "wrong type", "'ts': a JSON string"),
        (json.dumps({**GOOD, "small": 1e300}).encode(), "wrong type", "'small': the number is out of the range"),
        (json.dumps({**GOOD, "kind": "atm"}).encode(), "wrong type", "'kind': no symbol"),
        (json.dumps({**GOOD, "tags": ["a", 1]}).encode(), "wrong type", "'tags[1]'"),
        (json.dumps({**GOOD, "raw": "Ā"}).encode(), "wrong type", "'raw'"),
        (json.dumps({**GOOD, "place": {}}).encode(), "missing field", "'place.lat'"),
        (json.dumps({**GOOD, "place": {"lat": "x"}}).encode(), "wrong type", "'place.lat'"),
        (json.dumps({**GOOD, "counts": {"a": None}}).encode(), "wrong type", "'counts"),
        (json.dumps({**GOOD, "present": 1}).encode(), "wrong type", "'present': a JSON integer"),
    ],
)
def test_a_bad_row_names_its_field_alone_and_in_a_batch(
    value: bytes | None, reason: str, word: str, alone: bool
) -> None:
    others = [] if alone else encoded(*({**GOOD, "id": f"c{i}", "amount": i / 2} for i in range(40)))

    decoded = JsonDecoder(CARD).decode([*others, value, *others])

    assert list(decoded.bad) == [len(others)]
    assert decoded.bad[len(others)].reason == reason
    assert word in decoded.bad[len(others)].message
    assert decoded.rows["id"].to_pylist() == [f"c{i}" for i in range(len(others))] * 2


def test_a_large_whole_number_is_a_double() -> None:
    decoded = JsonDecoder(CARD).decode(encoded({**GOOD, "amount": 2**60 + 1}, {**GOOD, "amount": 10**40}))

    assert decoded.rows["amount"].to_pylist() == [float(2**60 + 1), 1e40]


def test_of_a_key_given_twice_the_last_counts() -> None:
    decoded = JsonDecoder(CARD).decode([b'{"id":"a","id":"b","amount":1,"ts":1}'])

    assert decoded.rows["id"].to_pylist() == ["b"]


ODD = st.sampled_from(
    [None, True, 0, -1, 2**31, 2**63, 2**70, 1.0, 0.5, 1e39, 1e300, "", "web", "é", [], ["a"], [1], {}]
)


@given(st.lists(st.dictionaries(st.sampled_from([f["name"] for f in CARD["fields"]]), ODD, max_size=3), max_size=60))
@settings(max_examples=60, deadline=None)
def test_a_batch_gives_what_its_rows_give_alone(changes: list[dict[str, Any]]) -> None:
    values = encoded(*({**GOOD, **change} for change in changes))
    rng = random.Random(len(values))
    mutated = [mutate(v, rng) if rng.random() < 0.3 else v for v in values if v]
    decoder = JsonDecoder(CARD)

    together = decoder.decode(mutated)

    alone = [decoder.decode([value]) for value in mutated]
    assert together.bad == {i: one.bad[0] for i, one in enumerate(alone) if one.bad}
    expected = [row for one in alone for row in one.rows.to_pylist()]
    assert together.rows.to_pylist() == expected
    together.rows.validate(full=True)


def mutate(value: bytes, rng: random.Random) -> bytes:
    body = bytearray(value)
    body[rng.randrange(len(body))] = rng.choice(b'{}[]",:\n0x\xff')
    return bytes(body)


def test_json_and_avro_are_told_apart_and_keep_their_order() -> None:
    json_decoder = JsonDecoder(CARD)
    rows = json_decoder.decode(encoded(*({**GOOD, "id": f"c{i}"} for i in range(6)))).rows
    avro = AvroEncoder(CARD, 1).encode(rows).to_pylist()
    text = encoded(*({**GOOD, "id": f"c{i}"} for i in range(6)))
    both = InputDecoder(AvroDecoder(CARD, lambda _: CARD), json_decoder)

    decoded = both.decode(
        [avro[0], text[1], b"<xml>", None, avro[2], b" " + (text[3] or b""), avro[4][:9], b"{", text[5]]
    )

    assert decoded.rows["id"].to_pylist() == ["c0", "c1", "c2", "c3", "c5"]
    np.testing.assert_array_equal(decoded.index, [0, 1, 4, 5, 8])
    assert {i: b.reason for i, b in decoded.bad.items()} == {
        2: "bad magic",
        3: "empty",
        6: "truncated or malformed avro",
        7: "malformed json",
    }
    assert both.decode(avro[:2]).rows["id"].to_pylist() == ["c0", "c1"]
    assert both.decode(text[:2]).rows["id"].to_pylist() == ["c0", "c1"]
    assert both.decode([]).rows.num_rows == 0


def test_a_union_of_several_types_is_refused_for_json() -> None:
    schema = {"type": "record", "name": "U", "fields": [{"name": "u", "type": ["null", "long", "string"]}]}

    with pytest.raises(UnsupportedSchema, match="u: JSON does not say"):
        JsonDecoder(schema)


def test_decoders_of_two_schemas_do_not_make_an_input() -> None:
    other = {"type": "record", "name": "O", "fields": [{"name": "a", "type": "int"}]}

    with pytest.raises(ValueError, match="one reader schema"):
        InputDecoder(AvroDecoder(CARD, lambda _: CARD), JsonDecoder(other))


def test_the_schema_of_the_columns_says_what_may_be_null() -> None:
    assert [f.name for f in JsonDecoder(CARD).columns if f.nullable] == ["small", "raw", "place"]
    assert JsonDecoder(CARD).columns.field("ts").type == pa.timestamp("ms")


def test_a_value_over_the_limit_is_not_looked_into() -> None:
    limited = InputDecoder(AvroDecoder(CARD, lambda _: CARD, max_bytes=100), JsonDecoder(CARD, max_bytes=100))
    small, large = encoded(GOOD, {**GOOD, "id": "x" * 200})

    decoded = limited.decode([small, large, b"\0" * 101, small])

    assert decoded.index.tolist() == [0, 3]
    assert {i: b.reason for i, b in decoded.bad.items()} == {1: "too large", 2: "too large"}
