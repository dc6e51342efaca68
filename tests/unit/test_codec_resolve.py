"""Schema resolution on columns against fastavro's, row by row."""

import copy
import io
from typing import Any

import fastavro
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.codec.avro import AvroDecoder, Decoded
from penstock.codec.frame import prefix
from tests.unit.avro_strategies import VALUES, comparable, evolved, record_schemas, values_of, written


def resolved(writer: dict[str, Any], reader: dict[str, Any], rows: list[Any]) -> Decoded:
    values = [prefix(1) + written(writer, row) for row in rows]
    return AvroDecoder(reader, lambda _: writer).decode(values)


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_resolution_agrees_with_fastavro_row_by_row(data: st.DataObject) -> None:
    writer = data.draw(record_schemas())
    reader = data.draw(evolved(writer))
    rows = data.draw(st.lists(values_of(writer), min_size=1, max_size=6))

    decoded = resolved(writer, copy.deepcopy(reader), rows)

    good = dict(zip(decoded.index.tolist(), decoded.rows.to_pylist(), strict=True))
    for i, row in enumerate(rows):
        try:
            expected = fastavro.schemaless_reader(
                io.BytesIO(written(writer, row)), fastavro.parse_schema(writer), fastavro.parse_schema(reader)
            )
        except (fastavro.read.SchemaResolutionError, ValueError, TypeError, KeyError):
            assert decoded.bad[i].reason == "unresolvable schema"
            continue
        if i in decoded.bad:
            # a reader's default that is missing is seen by us in the schemas, by fastavro only when a row needs it
            assert "was not written" in decoded.bad[i].message or "cannot be read" in decoded.bad[i].message
            continue
        for name in expected:
            assert (name, comparable(good[i][name])) == (name, comparable(expected[name]))


def record(*fields: dict[str, Any]) -> dict[str, Any]:
    return {"type": "record", "name": "R", "fields": list(fields)}


@pytest.mark.parametrize(
    ("wrote", "reads", "value", "expected"),
    [
        ("int", "long", 5, 5),
        ("int", "float", 5, 5.0),
        ("long", "double", 2**40, float(2**40)),
        ("float", "double", 0.5, 0.5),
        ("string", "bytes", "é", "é".encode()),
        ("bytes", "string", "é".encode(), "é"),
        ("int", ["null", "long"], 5, 5),
        (["null", "int"], "long", ("int", 5), 5),
        (["null", "int", "string"], ["null", "string"], ("string", "x"), "x"),
        (["null", "int", "string"], ["null", "long", "string"], ("int", 5), 5),
        (["boolean", "long", "string"], ["null", "string", "long"], ("long", 5), 5),
        (["null", "float", "boolean"], ["double", "boolean"], ("float", 0.5), 0.5),
        (["float", "double", "boolean"], ["double", "null"], ("double", 0.25), 0.25),
        ("long", {"type": "long", "logicalType": "timestamp-millis"}, 0, pa.scalar(0, pa.timestamp("ms")).as_py()),
    ],
)
def test_a_value_is_promoted(wrote: Any, reads: Any, value: Any, expected: Any) -> None:
    decoded = resolved(record({"name": "a", "type": wrote}), record({"name": "a", "type": reads}), [{"a": value}])

    assert decoded.bad == {}
    assert decoded.rows["a"].to_pylist() == [expected]


@pytest.mark.parametrize(
    ("wrote", "reads", "value", "word"),
    [
        ("string", "long", "x", "string cannot be read as long"),
        (["null", "int"], "int", ("null", None), "null cannot be read as int"),
        ("bytes", "string", b"\xff", "not UTF-8"),
        (
            {"type": "enum", "name": "E", "symbols": ["A", "B"]},
            {"type": "enum", "name": "E", "symbols": ["A"]},
            "B",
            "no symbol 'B'",
        ),
        (
            {"type": "long", "logicalType": "timestamp-millis"},
            {"type": "long", "logicalType": "timestamp-micros"},
            0,
            "change its meaning",
        ),
    ],
)
def test_a_value_that_cannot_be_resolved_is_bad_and_names_its_field(
    wrote: Any, reads: Any, value: Any, word: str
) -> None:
    decoded = resolved(record({"name": "a", "type": wrote}), record({"name": "a", "type": reads}), [{"a": value}])

    assert decoded.bad[0].reason == "unresolvable schema"
    assert word in decoded.bad[0].message
    assert "'a'" in decoded.bad[0].message


def test_only_the_rows_that_need_it_are_unresolvable() -> None:
    writer = record({"name": "a", "type": {"type": "array", "items": ["null", "int"]}}, {"name": "b", "type": "int"})
    reader = record({"name": "a", "type": {"type": "array", "items": "int"}}, {"name": "b", "type": "int"})
    lists = [[], [("int", 1)], [("int", 2), ("null", None)], [("int", 3)]]

    decoded = resolved(writer, reader, [{"a": a, "b": i} for i, a in enumerate(lists)])

    assert list(decoded.bad) == [2]
    assert decoded.rows.to_pylist() == [{"a": [], "b": 0}, {"a": [1], "b": 1}, {"a": [3], "b": 3}]


def test_a_null_record_hides_what_its_slot_holds() -> None:
    inner = {
        "type": "record",
        "name": "I",
        "fields": [{"name": "e", "type": {"type": "enum", "name": "E", "symbols": ["A", "B"]}}],
    }
    smaller = copy.deepcopy(inner)
    smaller["fields"][0]["type"]["symbols"] = ["B"]

    decoded = resolved(
        record({"name": "r", "type": ["null", inner]}),
        record({"name": "r", "type": ["null", smaller]}),
        [{"r": None}, {"r": {"e": "B"}}, {"r": {"e": "A"}}],
    )

    assert decoded.rows["r"].to_pylist() == [None, {"e": "B"}]
    assert list(decoded.bad) == [2]


def test_the_default_of_bytes_is_its_code_points_as_bytes() -> None:
    # fastavro leaves it a string here; the specification says bytes
    reader = record({"name": "a", "type": "int"}, {"name": "b", "type": "bytes", "default": "\u00ff"})

    assert resolved(record({"name": "a", "type": "int"}), reader, [{"a": 1}]).rows["b"].to_pylist() == [b"\xff"]


@pytest.mark.parametrize("kind", sorted(set(VALUES) - {"bytes"}))
def test_every_default_of_a_new_field_is_what_fastavro_fills_in(kind: str) -> None:
    defaults = {"null": None, "boolean": True, "string": "é"}
    reader = record({"name": "a", "type": "int"}, {"name": "b", "type": kind, "default": defaults.get(kind, 2)})
    writer = record({"name": "a", "type": "int"})
    expected = fastavro.schemaless_reader(
        io.BytesIO(b"\x02"), fastavro.parse_schema(writer), fastavro.parse_schema(reader)
    )

    assert resolved(writer, reader, [{"a": 1}]).rows.to_pylist() == [expected]
