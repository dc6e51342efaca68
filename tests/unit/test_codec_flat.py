"""The compiled codec of flat records against fastavro and the walk: it reads what is whole and refuses all else."""

import io
import random
import threading
from typing import Any

import fastavro
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.codec.arrow import arrow_schema
from penstock.codec.flat import FlatReader, FlatWriter
from penstock.codec.frame import prefix
from penstock.codec.shapes import parse
from penstock.codec.walk import find_faults
from penstock.codec.wire import Malformed
from tests.unit.avro_strategies import PRIMITIVES, VALUES, comparable, values_of, written

FRAME = prefix(7)
SUIT = {"type": "enum", "name": "Suit", "symbols": ["clubs", "hearts", "spades"]}


def record(*kinds: Any) -> dict[str, Any]:
    fields = [{"name": f"f{i}", "type": kind} for i, kind in enumerate(kinds)]
    return {"type": "record", "name": "R", "fields": fields}


@st.composite
def flat_schemas(draw: st.DrawFn) -> dict[str, Any]:
    kinds = []
    for i in range(draw(st.integers(1, 6))):
        kind: Any = draw(st.sampled_from([*PRIMITIVES, "enum", "null"]))
        if kind == "enum":
            kind = {"type": "enum", "name": f"E{i}", "symbols": [f"S{k}" for k in range(draw(st.integers(1, 70)))]}
        if kind != "null":
            kind = draw(st.sampled_from([kind, kind, ["null", kind], [kind, "null"]]))
        kinds.append(kind)
    return record(*kinds)


def laid_out(values: list[bytes]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Read-only, as they come from Arrow."""
    ends = np.cumsum([len(v) for v in values], dtype=np.int64)
    starts = np.append(np.int64(0), ends)[: len(values)]
    starts.flags.writeable = ends.flags.writeable = False
    return np.frombuffer(b"".join(values), np.uint8), starts, ends


def read(schema: dict[str, Any], values: list[bytes], wanted: Any = None) -> list[pa.Array]:
    return FlatReader(parse(schema), wanted).read(*laid_out(values))


def write(schema: dict[str, Any], columns: list[pa.Array]) -> list[bytes]:
    array = FlatWriter(parse(schema), FRAME).write(columns, len(columns[0]))
    array.validate(full=True)
    return array.to_pylist()


def as_rows(schema: dict[str, Any], columns: list[pa.Array]) -> list[Any]:
    rows = pa.RecordBatch.from_arrays(columns, schema=arrow_schema(schema))
    rows.validate(full=True)
    return [comparable(row) for row in rows.to_pylist()]


def fastavro_reads(schema: dict[str, Any], value: bytes) -> Any:
    """Raises where fastavro does not read the value whole."""
    stream = io.BytesIO(value[len(FRAME) :])
    row = fastavro.schemaless_reader(stream, fastavro.parse_schema(schema), None)
    assert not stream.read(1)
    return comparable(row)


def in_order(schema: dict[str, Any], value: bytes) -> bool:
    """Whether the walk finds nothing wrong and all text is UTF-8."""
    data, starts, ends = laid_out([value])
    if len(value) < len(FRAME) or find_faults(data, starts + len(FRAME), ends, parse(schema))[0]:
        return False
    try:
        fastavro_reads(schema, value)
    except UnicodeDecodeError:
        return False
    return True


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_what_fastavro_writes_is_read_the_same_and_written_back_the_same(data: st.DataObject) -> None:
    schema = data.draw(flat_schemas())
    values = [FRAME + written(schema, row) for row in data.draw(st.lists(values_of(schema), max_size=20))]

    columns = read(schema, values)

    assert as_rows(schema, columns) == [fastavro_reads(schema, value) for value in values]
    assert write(schema, columns) == values
    start, stop = sorted(data.draw(st.tuples(st.integers(0, len(values)), st.integers(0, len(values)))))
    assert write(schema, [c.slice(start, stop - start) for c in columns]) == values[start:stop]


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_mutated_bytes_are_refused_just_where_the_walk_finds_a_fault(data: st.DataObject) -> None:
    schema = data.draw(flat_schemas())
    values = [FRAME + written(schema, row) for row in data.draw(st.lists(values_of(schema), min_size=1, max_size=3))]
    rng = random.Random(data.draw(st.integers(0, 2**32)))
    for value in [mutated(value, rng) for value in values for _ in range(6)]:
        try:
            rows = as_rows(schema, read(schema, [value]))
        except Malformed:
            assert not in_order(schema, value)
            with pytest.raises(Malformed):
                read(schema, [*values, value, *values])
        else:
            assert in_order(schema, value)
            assert rows == [fastavro_reads(schema, value)]


def mutated(value: bytes, rng: random.Random) -> bytes:
    body = bytearray(value)
    at = rng.randrange(len(FRAME), len(body) + 1)
    match rng.randrange(5):
        case 0:
            del body[rng.randrange(len(body)) :]
        case 1:
            body += rng.randbytes(rng.randrange(1, 4))
        case 2:
            body[at : at + 1] = rng.randbytes(1)
        case 3:
            body[at:at] = rng.randbytes(2)
        case 4:
            # a number of any length, whole or not
            body[at : at + 1] = b"\xff" * rng.randrange(11) + rng.randbytes(1)
    return bytes(body)


@given(flat_schemas(), st.integers(0, 2**32))
@settings(max_examples=100, deadline=None)
def test_garbage_crashes_nothing(schema: dict[str, Any], seed: int) -> None:
    rng = random.Random(seed)
    values = [rng.randbytes(rng.randrange(40)) for _ in range(20)]
    for batch in [values, *([value] for value in values)]:
        try:
            as_rows(schema, read(schema, batch))
        except Malformed:
            assert not all(in_order(schema, value) for value in batch)


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("int", b""),
        ("int", b"\x80"),
        ("int", b"\x80" * 11),
        ("int", b"\x02\x00"),
        ("int", b"\x80\x80\x80\x80\x10"),  # 2^31
        ("int", b"\x81\x80\x80\x80\x10"),  # -2^31 - 1
        ("long", b"\xff" * 10 + b"\x00"),
        ("float", bytes(3)),
        ("double", bytes(7)),
        ("double", bytes(9)),
        ("boolean", b"\x02"),
        ("boolean", b""),
        ("string", b"\x04a"),
        ("string", b"\x01"),
        ("string", b"\xfe\xff\xff\xff\xff\xff\xff\xff\xff\x01"),
        ("string", b"\x02\xff"),
        ("string", b"\x06\xed\xa0\x80"),  # a surrogate
        ("string", b"\x04\xc0\x80"),  # an overlong zero
        ("bytes", b"\x04a"),
        (["null", "int"], b"\x04\x00"),
        (["null", "int"], b"\x01"),
        (["null", "int"], b"\x00\x00"),
        (["null", "int"], b"\x02"),
        (["string", "null"], b"\x00\x02\xff"),
        (SUIT, b"\x06"),
        (SUIT, b"\x01"),
        ("null", b"\x00"),
    ],
)
def test_a_row_that_is_not_one_value_is_refused_among_others_and_in_columns_nobody_wants(
    kind: Any, body: bytes
) -> None:
    schema = record("long", kind)
    others = [FRAME + b"\x02" + written(record(kind), {"f0": whole_one(kind)})] * 300
    assert len(read(schema, others)[0]) == 300
    for wanted in (None, ["f0"]):
        with pytest.raises(Malformed):
            read(schema, [*others, FRAME + b"\x02" + body, *others], wanted)


def whole_one(kind: Any) -> Any:
    if isinstance(kind, list):
        return None
    return {"string": "é", "bytes": b"b", "null": None, "boolean": True}.get(kind, 1) if kind != SUIT else "clubs"


def test_two_characters_torn_apart_across_rows_are_not_utf8() -> None:
    with pytest.raises(Malformed, match="f0"):
        read(record("string"), [FRAME + b"\x02\xc3", FRAME + b"\x02\xa9"])


def test_a_value_shorter_than_its_frame_is_refused() -> None:
    with pytest.raises(Malformed, match="row 1"):
        read(record("null"), [FRAME, FRAME[:4]])


def test_bounds_that_reach_outside_the_data_are_refused() -> None:
    reader = FlatReader(parse(record("int")))
    data = np.zeros(12, np.uint8)
    for start, end in [(-6, 0), (7, 13), (6, 5), (2**62, 2**62 + 6), (1, -(2**63))]:
        with pytest.raises(Malformed):
            reader.read(data, np.array([start]), np.array([end]))


@pytest.mark.parametrize("value", [0, -1, 63, 64, -64, -65, 2**31 - 1, -(2**31)])
def test_ints_and_longs_survive_at_the_edges_of_their_bytes(value: int) -> None:
    schema = record("int", "long")
    wide = value << 32 if abs(value) > 100 else value
    row = [FRAME + written(schema, {"f0": value, "f1": wide})]

    columns = read(schema, row)

    assert [c.to_pylist() for c in columns] == [[value], [wide]]
    assert write(schema, columns) == row


def test_an_overlong_but_whole_number_is_read() -> None:
    schema = record("string", "int", ["null", "int"])
    value = FRAME + b"\x82\x00a" + b"\x82\x80\x80\x80\x80\x80\x80\x80\x80\x00" + b"\x82\x00\x02"

    assert [c.to_pylist() for c in read(schema, [value])] == [["a"], [1], [1]]


def test_floats_keep_every_bit() -> None:
    doubles = np.array([0x7FF8_0000_DEAD_BEEF, 0xFFF0_0000_0000_0001, 1 << 63, 1, 0x7FF0 << 48], np.uint64)
    singles = np.array([0x7FC0_BEEF, 0xFF80_0001, 1 << 31, 1, 0x7F80_0000], np.uint32)
    columns = [
        pa.Array.from_buffers(pa.float64(), 5, [None, pa.py_buffer(doubles)]),
        pa.Array.from_buffers(pa.float32(), 5, [None, pa.py_buffer(singles)]),
    ]
    schema = record("double", "float")

    values = write(schema, columns)
    back = read(schema, values)

    expected = [FRAME + d.tobytes() + s.tobytes() for d, s in zip(doubles, singles, strict=True)]
    assert values == expected
    assert [c.buffers()[1].to_pybytes() for c in back] == [doubles.tobytes(), singles.tobytes()]


def test_logical_types_are_columns_of_their_own_types() -> None:
    kinds = [
        ("int", "date"),
        ("long", "timestamp-millis"),
        ("long", "local-timestamp-micros"),
        ("bytes", "decimal"),
        ("string", "uuid"),
        ("long", "made-up"),
    ]
    schema = record(*(["null", {"type": kind, "logicalType": logical}] for kind, logical in kinds))
    plain = record(*(["null", kind] for kind, _ in kinds))
    rows = [
        {"f0": 1, "f1": 2**62, "f2": -5, "f3": b"\xff", "f4": "u", "f5": 3},
        dict.fromkeys(f"f{i}" for i in range(6)),
    ]
    values = [FRAME + written(plain, row) for row in rows]

    columns = read(schema, values)

    assert [c.type for c in columns] == [f.type for f in arrow_schema(schema)]
    assert columns[1].cast(pa.int64()).to_pylist() == [2**62, None]
    assert write(schema, columns) == values


def test_only_the_wanted_columns_are_made() -> None:
    schema = record("string", "bytes", "long", "string", SUIT)
    value = FRAME + written(schema, {"f0": "é", "f1": b"\xff", "f2": 3, "f3": "d", "f4": "hearts"})

    assert [c.to_pylist() for c in read(schema, [value] * 2, {"f4", "f3", "elsewhere"})] == [["d"] * 2, ["hearts"] * 2]


def test_rows_may_lie_anywhere_in_the_data_and_in_any_order() -> None:
    schema = record("string")
    data, starts, ends = laid_out([FRAME + written(schema, {"f0": text}) for text in ("a", "bb" * 20, "")])

    array = FlatReader(parse(schema)).read(data, starts[::-1].copy(), ends[::-1].copy())[0]

    assert array.to_pylist() == ["", "bb" * 20, "a"]


def test_no_rows_are_columns_of_no_rows() -> None:
    schema = record("string", ["null", "boolean"], SUIT, "null")

    columns = read(schema, [])

    assert [(len(c), c.type) for c in columns] == [(0, f.type) for f in arrow_schema(schema)]
    assert write(schema, columns) == []


def test_what_lies_under_a_null_is_not_written() -> None:
    valid = pa.py_buffer(b"\x05")
    text = [valid, pa.py_buffer(np.array([0, 1, 3, 4], np.int32)), pa.py_buffer(b"axxb")]
    columns = [pa.Array.from_buffers(pa.string(), 3, text), pa.array([1, 2, 3], pa.int64())]

    values = write(record(["null", "string"], "long"), columns)

    assert values == [FRAME + b"\x02\x02a\x02", FRAME + b"\x00\x04", FRAME + b"\x02\x02b\x06"]


@pytest.mark.parametrize(
    ("kind", "array", "word"),
    [
        (SUIT, pa.array(["clubs", "swords"]), "'f0' holds 'swords'"),
        (["null", SUIT], pa.array([None, "swords"]), "'f0' holds 'swords'"),
        (SUIT, pa.array(["clubs", None]), "'f0' holds a null"),
        ("long", pa.array([1, None]), "'f0' holds a null"),
        ("int", pa.array([1, 2], pa.int64()), "'f0' is 2 rows of int64"),
        ("string", pa.array(["a", "b"], pa.large_string()), "'f0' is 2 rows of large_string"),
        ("int", pa.array([1], pa.int32()), "'f0' is 1 rows"),
    ],
)
def test_a_column_that_does_not_fit_is_refused_by_name(kind: Any, array: pa.Array, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        FlatWriter(parse(record(kind)), FRAME).write([array], 2)


def test_a_batch_larger_than_an_array_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock.codec.flat.MOST_BYTES", 100)
    texts = pa.array(["x" * 20] * 4)

    for column in (texts, pa.array(["x" * 101])):
        with pytest.raises(ValueError, match="Send smaller batches"):
            FlatWriter(parse(record("string")), FRAME).write([column], len(column))
    assert len(FlatWriter(parse(record("string")), FRAME).write([texts.slice(1)], 3)) == 3
    with pytest.raises(ValueError, match="Read smaller batches"):
        FlatReader(parse(record("string"))).read(*laid_out([FRAME + b"\xc8\x01" + b"x" * 100]))


def test_a_nested_record_is_refused_by_field() -> None:
    with pytest.raises(ValueError, match="'f1' of 'R' is nested"):
        FlatReader(parse(record("int", {"type": "array", "items": "int"})))


def test_columns_stay_as_they_are_when_the_next_batch_is_read() -> None:
    schema = record("long", ["null", "double"], "boolean", "string", SUIT)
    reader, writer = FlatReader(parse(schema)), FlatWriter(parse(schema), FRAME)
    row = {"f0": 1, "f1": 2.5, "f2": True, "f3": "first", "f4": "hearts"}
    first = reader.read(*laid_out([FRAME + written(schema, row)] * 9))
    other = {"f0": -9, "f1": None, "f2": False, "f3": "2", "f4": "clubs"}
    second = reader.read(*laid_out([FRAME + written(schema, other)] * 9))
    writer.write(second, 9)

    assert as_rows(schema, first) == [comparable(row)] * 9
    assert as_rows(schema, second) == [comparable(other)] * 9


def test_threads_may_share_a_reader_and_a_writer() -> None:
    schema = record("string", "long", ["null", "double"])
    reader, writer = FlatReader(parse(schema)), FlatWriter(parse(schema), FRAME)
    wrong: list[int] = []

    def work(k: int) -> None:
        row = {"f0": f"thread {k}", "f1": k, "f2": k / 2 if k % 2 else None}
        values = [FRAME + written(schema, row)] * (2000 + k)
        for _ in range(20):
            columns = reader.read(*laid_out(values))
            if writer.write(columns, len(values)).to_pylist() != values:
                wrong.append(k)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@given(st.lists(st.one_of(st.none(), VALUES["string"], st.text(min_size=9, max_size=40)), max_size=700))
@settings(max_examples=30, deadline=None)
def test_texts_of_all_lengths_over_several_blocks_go_there_and_back(texts: list[str | None]) -> None:
    schema = record(["null", "string"], "boolean", ["bytes", "null"])
    encoded = [None if t is None else t.encode() for t in texts]
    columns = [
        pa.array(texts, pa.string()),
        pa.array([t is None for t in texts], pa.bool_()),
        pa.array(encoded, pa.binary()),
    ]

    back = read(schema, write(schema, columns))

    assert all(a.equals(b) for a, b in zip(back, columns, strict=True))
