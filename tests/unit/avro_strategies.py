"""Hypothesis strategies for Avro schemas and values that Penstock decodes."""

import io
import itertools
import math
import struct
from typing import Any

import fastavro
from hypothesis import strategies as st

PRIMITIVES = ["boolean", "int", "long", "float", "double", "bytes", "string"]
PROMOTIONS = {"int": ["long", "double"], "long": ["double"], "float": ["double"], "string": ["bytes"]}
TEXT = st.text(max_size=8)
DOUBLES = st.floats(width=64, allow_nan=False)
FLOATS = st.floats(width=32, allow_nan=False)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "null": st.none(),
    "boolean": st.booleans(),
    "int": st.integers(-(2**31), 2**31 - 1),
    "long": st.integers(-(2**63), 2**63 - 1),
    "float": FLOATS,
    "double": DOUBLES,
    "bytes": st.binary(max_size=8),
    "string": TEXT,
}


@st.composite
def record_schemas(draw: st.DrawFn) -> dict[str, Any]:
    """A record of up to five fields, nested up to two levels."""
    names = (f"N{i}" for i in itertools.count())
    return draw(_records(names, 2))


def _records(names: Any, depth: int) -> st.SearchStrategy[Any]:
    fields = st.lists(_types(names, depth), min_size=1, max_size=5)
    return fields.map(
        lambda kinds: {
            "type": "record",
            "name": next(names),
            "fields": [{"name": f"f{i}", "type": kind} for i, kind in enumerate(kinds)],
        }
    )


def _types(names: Any, depth: int) -> st.SearchStrategy[Any]:
    flat: st.SearchStrategy[Any] = st.one_of(
        st.sampled_from(PRIMITIVES),
        st.integers(1, 70).map(lambda n: {"type": "enum", "name": next(names), "symbols": [f"S{i}" for i in range(n)]}),
    )
    optional = st.tuples(flat, st.booleans()).map(lambda t: ["null", t[0]] if t[1] else [t[0], "null"])
    simple = st.one_of(flat, optional)
    if depth == 0:
        return simple
    inner = _types(names, depth - 1)
    union = st.lists(st.sampled_from(["boolean", "long", "string", "null"]), min_size=3, max_size=4, unique=True)
    return st.one_of(
        simple,
        union,
        inner.map(lambda kind: {"type": "array", "items": kind}),
        inner.map(lambda kind: {"type": "map", "values": kind}),
        _records(names, depth - 1),
        _records(names, depth - 1).map(lambda kind: ["null", kind]),
    )


@st.composite
def evolved(draw: st.DrawFn, schema: Any, optional: bool = True) -> Any:
    """A reader's schema that grew from ``schema`` in ways that may or may not be resolvable."""
    if isinstance(schema, str):
        kinds = [schema, *PROMOTIONS.get(schema, [])]
        kind = draw(st.sampled_from(kinds))
        return ["null", kind] if optional and schema != "null" and draw(st.integers(0, 5)) == 0 else kind
    if isinstance(schema, list):
        if len(schema) > 2:
            return schema
        other = schema[schema[0] == "null"]
        if draw(st.integers(0, 5)) == 0:
            return draw(evolved(other, False))
        changed = draw(evolved(other, False))
        return ["null", changed] if draw(st.booleans()) else [changed, "null"]
    match schema["type"]:
        case "enum":
            symbols = draw(st.permutations(schema["symbols"]))[: draw(st.integers(1, 70))]
            new = {**schema, "symbols": [*symbols, "New"]}
            return {**new, "default": "New"} if draw(st.booleans()) else new
        case "array":
            return {"type": "array", "items": draw(evolved(schema["items"]))}
        case "map":
            return {"type": "map", "values": draw(evolved(schema["values"]))}
    fields = []
    for field in schema["fields"]:
        choice = draw(st.integers(0, 7))
        if choice == 0:
            continue
        new = {"name": field["name"], "type": draw(evolved(field["type"]))}
        fields.append({**new, "name": f"{field['name']}_new", "aliases": [field["name"]]} if choice == 1 else new)
    added = [
        {"name": "added", "type": "int", "default": 3},
        {"name": "maybe", "type": ["null", "string"], "default": None},
        {"name": "listed", "type": {"type": "array", "items": "string"}, "default": ["a"]},
    ]
    fields += draw(
        st.lists(st.sampled_from(added), min_size=0 if fields else 1, max_size=2, unique_by=lambda f: f["name"])
    )
    return {**schema, "fields": draw(st.permutations(fields))}


def values_of(schema: Any) -> st.SearchStrategy[Any]:
    """Values that fastavro writes under ``schema``; a union's branch is named."""
    if isinstance(schema, str):
        return VALUES[schema]
    if isinstance(schema, list):
        return st.one_of([values_of(s).map(lambda v, s=s: (_name(s), v)) for s in schema])
    match schema["type"]:
        case "enum":
            return st.sampled_from(schema["symbols"])
        case "array":
            return st.lists(values_of(schema["items"]), max_size=4)
        case "map":
            return st.dictionaries(TEXT, values_of(schema["values"]), max_size=3)
        case "record":
            return st.fixed_dictionaries({f["name"]: values_of(f["type"]) for f in schema["fields"]})
    return values_of(schema["type"])


def _name(schema: Any) -> str:
    if isinstance(schema, str):
        return schema
    return schema["name"] if "name" in schema else schema["type"]


def written(schema: dict[str, Any], row: Any) -> bytes:
    """One row as fastavro writes it, without a frame."""
    out = io.BytesIO()
    fastavro.schemaless_writer(out, fastavro.parse_schema(schema), row)
    return out.getvalue()


def comparable(value: Any) -> Any:
    """Bit for bit: NaN equals itself, -0.0 is not 0.0, and maps have no order."""
    if isinstance(value, dict):
        return {k: comparable(v) for k, v in value.items()} or None
    if isinstance(value, list):
        if value and all(isinstance(v, tuple) for v in value):
            return {k: comparable(v) for k, v in value}
        return [comparable(v) for v in value] or None
    if isinstance(value, float):
        return "nan" if math.isnan(value) else struct.pack(">d", value)
    return value
