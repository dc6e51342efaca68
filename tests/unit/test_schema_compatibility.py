"""FULL_TRANSITIVE: what may change from version to version, in words that name the field; fastavro as the oracle."""

import io
from contextlib import suppress
from typing import Any

import fastavro
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.schemas.compatibility import IncompatibleSchema, check
from tests.unit.avro_strategies import evolved, record_schemas, values_of, written


def event(*fields: dict[str, Any]) -> dict[str, Any]:
    return {"type": "record", "name": "event", "namespace": "flights", "fields": list(fields)}


TAIL = {"name": "tailnum", "type": ["null", "string"], "default": None}
DELAY = {"name": "delay", "type": "double"}


@pytest.mark.parametrize(
    "new",
    [
        event(DELAY, TAIL),
        event(TAIL, DELAY, {"name": "gate", "type": "int", "default": 1}),
        event(DELAY),
        event({**TAIL, "doc": "of the aircraft"}, DELAY),
    ],
)
def test_fields_with_defaults_come_and_go_and_order_is_free(new: dict[str, Any]) -> None:
    assert check(new, [event(TAIL, DELAY)]) == []


@pytest.mark.parametrize(
    ("new", "direction", "field", "words"),
    [
        (event({"name": "tailnum", "type": ["null", "string"]}, DELAY), "backward", "tailnum", "lost its default"),
        (event(TAIL, DELAY, {"name": "gate", "type": "int"}), "backward", "gate", "has no default"),
        (event(TAIL), "forward", "delay", "is gone"),
        (event(TAIL, {"name": "delay", "type": "string"}), "backward", "delay", "from double to string"),
        (event(TAIL, {"name": "delay", "type": "float"}), "backward", "delay", "from double to float"),
        (event(TAIL, {"name": "delay", "type": ["null", "double"]}), "forward", "delay", "became nullable"),
        (event({**TAIL, "type": "string", "default": ""}, DELAY), "backward", "tailnum", "became required"),
    ],
)
def test_a_breaking_change_is_told_by_its_field(new: dict[str, Any], direction: str, field: str, words: str) -> None:
    found = check(new, [event(TAIL, DELAY)])

    assert [(f.field, f.direction, f.version) for f in found] == [(field, direction, 1)]
    assert words in str(found[0])
    assert f"'{field}'" in str(found[0])


def test_the_error_names_schema_version_field_and_mend() -> None:
    new = event({"name": "tailnum", "type": ["null", "string"]})
    found = check(new, [event(TAIL)])

    assert str(IncompatibleSchema("flights.event", 2, found)) == (
        "schema 'flights.event' v2 is not backward compatible: field 'tailnum' lost its default. "
        "Give it a default or register a new subject."
    )


def test_every_older_version_counts() -> None:
    olds = [event(TAIL, {"name": "gate", "type": "int", "default": 1}), event(TAIL)]
    new = event(TAIL, {"name": "gate", "type": "string", "default": ""})

    assert check(new, olds[1:]) == []
    assert [(f.field, f.version) for f in check(new, olds)] == [("gate", 1)]


def test_the_path_of_a_nested_field_is_told() -> None:
    def place(kind: str) -> dict[str, Any]:
        inner = {"type": "record", "name": "Place", "fields": [{"name": "lat", "type": kind}]}
        return event({"name": "place", "type": ["null", {"type": "array", "items": inner}], "default": None})

    assert [f.field for f in check(place("string"), [place("double")])] == ["place"]
    assert check(place("double"), [place("double")]) == []


def test_a_symbol_may_come_only_where_older_readers_have_a_default() -> None:
    def kind(symbols: list[str], **more: str) -> dict[str, Any]:
        return event({"name": "kind", "type": {"type": "enum", "name": "Kind", "symbols": symbols, **more}})

    assert "gained the symbol 'C'" in str(check(kind(["A", "B", "C"]), [kind(["A", "B"])])[0])
    assert "lost the symbol 'B'" in str(check(kind(["A"]), [kind(["A", "B"])])[0])
    assert check(kind(["A", "B", "C"], default="A"), [kind(["A", "B"], default="A")]) == []


def test_a_logical_type_may_not_change_its_unit() -> None:
    def at(unit: str) -> dict[str, Any]:
        return event({"name": "at", "type": {"type": "long", "logicalType": f"timestamp-{unit}"}})

    assert "timestamp-millis" in str(check(at("micros"), [at("millis")])[0])


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_what_is_called_compatible_is_read_by_fastavro_both_ways(data: st.DataObject) -> None:
    old = data.draw(record_schemas())
    new = data.draw(evolved(old))
    if check(new, [old]):
        return
    for writer, reader in ((old, new), (new, old)):
        row = data.draw(values_of(writer))
        with suppress(UnicodeDecodeError):  # Avro lets bytes be read as a string; a row whose bytes are none is bad
            fastavro.schemaless_reader(
                io.BytesIO(written(writer, row)), fastavro.parse_schema(writer), fastavro.parse_schema(reader)
            )


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_fields_with_defaults_may_come_and_go_between_any_schemas(data: st.DataObject) -> None:
    base = data.draw(record_schemas())
    extra = [
        {"name": "added", "type": "int", "default": 3},
        {"name": "maybe", "type": ["null", "string"], "default": None},
        {"name": "listed", "type": {"type": "array", "items": "string"}, "default": ["a"]},
    ]
    old, new = (
        {
            **base,
            "fields": data.draw(
                st.permutations(
                    [*base["fields"], *data.draw(st.lists(st.sampled_from(extra), unique_by=lambda f: f["name"]))]
                )
            ),
        }
        for _ in range(2)
    )

    assert check(new, [old]) == []
    for writer, reader in ((old, new), (new, old)):
        row = data.draw(values_of(writer))
        fastavro.schemaless_reader(
            io.BytesIO(written(writer, row)), fastavro.parse_schema(writer), fastavro.parse_schema(reader)
        )
