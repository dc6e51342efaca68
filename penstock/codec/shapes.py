"""Avro schemas as a tree: names resolved, references inlined, and what cannot be decoded safely refused with a reason.

Everything in the codec works on this tree rather than on the JSON, so a schema is judged once, when a worker starts or
first meets its id. Refused are recursive schemas and arrays of zero-byte items (a 6 KB message kills any decoder of
either), ``fixed`` and records without fields.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

PRIMITIVES = frozenset({"null", "boolean", "int", "long", "float", "double", "bytes", "string"})
MAX_DEPTH = 32


class UnsupportedSchema(ValueError):
    """A schema that Penstock does not decode; the message names the field and the mend."""


class _Missing:
    def __repr__(self) -> str:
        return "MISSING"


MISSING: Final = _Missing()
"""The default of a field that has none (None is a default)."""


@dataclass(frozen=True, slots=True)
class Primitive:
    """``kind``: one of ``PRIMITIVES``; ``logical``: the logical type, whether or not we know it."""

    kind: str
    logical: str | None = None


@dataclass(frozen=True, slots=True)
class Enum:
    name: str
    symbols: tuple[str, ...]
    default: str | None
    aliases: frozenset[str]


@dataclass(frozen=True, slots=True)
class Array:
    items: "Shape"


@dataclass(frozen=True, slots=True)
class Map:
    values: "Shape"


@dataclass(frozen=True, slots=True)
class Union:
    branches: tuple["Shape", ...]

    @property
    def optional(self) -> "Shape | None":
        """The other branch where this is null and one more; else None."""
        if len(self.branches) == 2 and NULL in self.branches:
            other = self.branches[1 if self.branches[0] == NULL else 0]
            return None if other == NULL else other
        return None

    @property
    def null_index(self) -> int:
        """Where null stands in the union; -1 where it does not."""
        return self.branches.index(NULL) if NULL in self.branches else -1


@dataclass(frozen=True, slots=True)
class Field:
    """``default`` is the JSON of the schema, ``MISSING`` where there is none."""

    name: str
    shape: "Shape"
    default: Any
    aliases: frozenset[str]
    properties: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Record:
    name: str
    fields: tuple[Field, ...]
    aliases: frozenset[str]


Shape = Primitive | Enum | Array | Map | Union | Record
NULL = Primitive("null")
_FIELD_WORDS = frozenset({"name", "type", "default", "aliases", "doc", "order"})


def parse(schema: Any) -> Record:
    """The tree of a record schema. Raises ``UnsupportedSchema``, naming the field."""
    shape = _parse(schema, "", {}, (), "schema")
    if not isinstance(shape, Record):
        raise UnsupportedSchema(f"a value must be an Avro record, and this schema is of type {describe(shape)}")
    return shape


def describe(shape: Shape) -> str:
    """The type in a few words, for messages."""
    match shape:
        case Primitive(kind, logical):
            return f"{kind} ({logical})" if logical else kind
        case Enum(name) | Record(name):
            return f"{'enum' if isinstance(shape, Enum) else 'record'} {name}"
        case Array(items):
            return f"array of {describe(items)}"
        case Map(values):
            return f"map of {describe(values)}"
        case Union(branches):
            return "union of " + ", ".join(describe(b) for b in branches)


def children(shape: Shape) -> Iterator[Shape]:
    """The shapes directly inside."""
    match shape:
        case Record():
            yield from (f.shape for f in shape.fields)
        case Array(inner) | Map(inner):
            yield inner
        case Union(branches):
            yield from branches


def smallest(shape: Shape) -> int:
    """The fewest bytes that a value can take."""
    match shape:
        case Primitive(kind):
            return {"null": 0, "float": 4, "double": 8}.get(kind, 1)
        case Record():
            return sum(smallest(f.shape) for f in shape.fields)
        case _:
            return 1


def _parse(schema: Any, namespace: str, names: dict[str, Shape], open_: tuple[str, ...], path: str) -> Shape:
    if len(path.split(".")) > MAX_DEPTH:
        raise UnsupportedSchema(f"{path}: nested deeper than {MAX_DEPTH} levels. Flatten the schema.")
    if isinstance(schema, str):
        return _reference(schema, namespace, names, open_, path)
    if isinstance(schema, list):
        return _union(tuple(_parse(s, namespace, names, open_, path) for s in schema), path)
    if not isinstance(schema, Mapping) or "type" not in schema:
        raise UnsupportedSchema(f"{path}: {str(schema)[:60]!r} is no Avro type.")
    kind = schema["type"]
    if isinstance(kind, Mapping | list):
        return _parse(kind, namespace, names, open_, path)
    if kind in PRIMITIVES:
        return Primitive(kind, schema.get("logicalType"))
    if kind == "array":
        items = _parse(schema.get("items"), namespace, names, open_, f"{path}.items")
        if smallest(items) == 0:
            raise UnsupportedSchema(
                f"{path}: items of no bytes let a small message claim billions of them. Give the items a field."
            )
        return Array(items)
    if kind == "map":
        return Map(_parse(schema.get("values"), namespace, names, open_, f"{path}.values"))
    if kind == "fixed":
        raise UnsupportedSchema(f"{path}: 'fixed' is not supported. Use 'bytes'.")
    if kind in ("record", "error", "enum"):
        return _named(schema, namespace, names, open_, path)
    return _reference(kind, namespace, names, open_, path)


def _union(branches: tuple[Shape, ...], path: str) -> Union:
    if not branches or any(isinstance(b, Union) for b in branches):
        raise UnsupportedSchema(f"{path}: a union needs branches, and they may not be unions themselves.")
    kinds = [
        b.kind if isinstance(b, Primitive) else b.name if isinstance(b, Enum | Record) else type(b) for b in branches
    ]
    if len(set(kinds)) < len(kinds):
        raise UnsupportedSchema(f"{path}: a union may hold each type once.")
    # the fast decoder reads an int as a long and bytes as a string, and tells branches apart by type
    for pair in (("int", "long"), ("bytes", "string")):
        if set(pair) <= set(kinds):
            raise UnsupportedSchema(
                f"{path}: a union of {pair[0]} and {pair[1]} is not supported. Keep {pair[1]} alone."
            )
    return Union(branches)


def _full(name: str, namespace: str) -> str:
    return name if "." in name or not namespace else f"{namespace}.{name}"


def _reference(name: Any, namespace: str, names: dict[str, Shape], open_: tuple[str, ...], path: str) -> Shape:
    if name in PRIMITIVES:
        return Primitive(name)
    full = _full(str(name), namespace)
    if full in open_:
        raise UnsupportedSchema(
            f"{path}: record {full!r} contains itself, and a short message could nest without end. Flatten it."
        )
    found = names.get(full) or names.get(str(name))
    if found is None:
        raise UnsupportedSchema(f"{path}: type {name!r} is not defined before it is used.")
    return found


def _named(
    schema: Mapping[str, Any], namespace: str, names: dict[str, Shape], open_: tuple[str, ...], path: str
) -> Shape:
    if not isinstance(schema.get("name"), str):
        raise UnsupportedSchema(f"{path}: a {schema['type']} needs a name.")
    full = _full(schema["name"], schema.get("namespace", namespace))
    space = full.rpartition(".")[0]
    aliases = frozenset(_full(a, space) for a in schema.get("aliases", ()))
    if full in names or full in open_:
        raise UnsupportedSchema(f"{path}: {full!r} is defined twice.")
    if schema["type"] == "enum":
        shape: Shape = Enum(full, tuple(schema.get("symbols", ())), schema.get("default"), aliases)
    else:
        inside = (*open_, full)
        fields = tuple(_field(f, space, names, inside, path) for f in schema.get("fields", ()))
        if not fields:
            raise UnsupportedSchema(f"{path}: record {full!r} has no fields. Give it one, or leave it out.")
        if len({f.name for f in fields}) < len(fields):
            raise UnsupportedSchema(f"{path}: record {full!r} has two fields of one name.")
        shape = Record(full, fields, aliases)
    names[full] = shape
    return shape


def _field(field: Any, namespace: str, names: dict[str, Shape], open_: tuple[str, ...], path: str) -> Field:
    if not isinstance(field, Mapping) or "name" not in field or "type" not in field:
        raise UnsupportedSchema(f"{path}: a field needs a name and a type.")
    name = field["name"]
    where = name if path == "schema" else f"{path}.{name}"
    shape = _parse(field["type"], namespace, names, open_, where)
    properties = {k: v for k, v in field.items() if k not in _FIELD_WORDS}
    # {"type": "long", "logicalType": …} written flat into the field, a common slip, stays a property as in Avro itself
    return Field(name, shape, field.get("default", MISSING), frozenset(field.get("aliases", ())), properties)
