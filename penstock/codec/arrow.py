"""The Arrow types of Avro schemas, and Avro schemas for Arrow types.

``decimal`` stays its bytes and time-of-day its number: no column changes its content on the way. Timestamps have no
zone: they are UTC (or local, where the schema says so).
"""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from penstock.codec.shapes import Array, Enum, Map, Primitive, Record, Shape, Union, UnsupportedSchema, parse

_PRIMITIVE = {
    "null": pa.null(),
    "boolean": pa.bool_(),
    "int": pa.int32(),
    "long": pa.int64(),
    "float": pa.float32(),
    "double": pa.float64(),
    "bytes": pa.binary(),
    "string": pa.string(),
}
_LOGICAL = {
    ("int", "date"): pa.date32(),
    ("long", "timestamp-millis"): pa.timestamp("ms"),
    ("long", "timestamp-micros"): pa.timestamp("us"),
    ("long", "timestamp-nanos"): pa.timestamp("ns"),
    ("long", "local-timestamp-millis"): pa.timestamp("ms"),
    ("long", "local-timestamp-micros"): pa.timestamp("us"),
    ("long", "local-timestamp-nanos"): pa.timestamp("ns"),
}
_TIMESTAMP = {"ms": "timestamp-millis", "us": "timestamp-micros", "ns": "timestamp-nanos"}
_AVRO = {
    pa.null(): "null",
    pa.bool_(): "boolean",
    pa.int8(): "int",
    pa.int16(): "int",
    pa.int32(): "int",
    pa.uint8(): "int",
    pa.uint16(): "int",
    pa.uint32(): "long",
    pa.int64(): "long",
    pa.float16(): "float",
    pa.float32(): "float",
    pa.float64(): "double",
    pa.string(): "string",
    pa.large_string(): "string",
    pa.binary(): "bytes",
    pa.large_binary(): "bytes",
}


def arrow_schema(schema: Mapping[str, Any] | Record) -> pa.Schema:
    """The columns that rows of an Avro record schema become. Raises ``UnsupportedSchema``."""
    record = schema if isinstance(schema, Record) else parse(schema)
    return pa.schema([arrow_field(field.name, field.shape) for field in record.fields])


def arrow_field(name: str, shape: Shape) -> pa.Field:
    """The Arrow field of one Avro type: nullable where null is among its branches."""
    nullable = shape == Primitive("null") or (isinstance(shape, Union) and shape.null_index >= 0)
    return pa.field(name, arrow_type(shape), nullable)


def arrow_type(shape: Shape) -> pa.DataType:
    """The Arrow type of one Avro type; a union of null and one more is that one."""
    match shape:
        case Primitive(kind, logical):
            return _LOGICAL.get((kind, logical or ""), _PRIMITIVE[kind])
        case Enum():
            return pa.string()
        case Array(items):
            return pa.list_(arrow_field("item", items))
        case Map(values):
            return pa.map_(pa.string(), arrow_field("value", values))
        case Record(_, fields):
            return pa.struct([arrow_field(f.name, f.shape) for f in fields])
        case Union(branches):
            if shape.optional is not None:
                return arrow_type(shape.optional)
            # where another branch holds the value, a branch's own slot means nothing
            return pa.sparse_union([pa.field(branch_name(b), arrow_type(b)) for b in branches])


def branch_name(shape: Shape) -> str:
    """How a branch of a union is called in Arrow: the name that Avro's own JSON encoding gives it."""
    match shape:
        case Primitive(kind):
            return kind
        case Enum(name) | Record(name):
            return name
        case Array():
            return "array"
        case Map():
            return "map"
        case Union():
            raise AssertionError("a union in a union does not parse")


def avro_schema(name: str, namespace: str, schema: pa.Schema, nullable: bool | None = None) -> dict[str, Any]:
    """An Avro record schema that holds the columns of ``schema``.

    Every nullable column becomes ``["null", T]`` with default null; ``nullable`` overrides what the columns say.
    Raises ``UnsupportedSchema``, naming the column.
    """
    fields = [_avro_field(f, f"{name}_{f.name}", nullable) for f in schema]
    return {"type": "record", "name": name, "namespace": namespace, "fields": fields}


def _avro_field(field: pa.Field, path: str, nullable: bool | None) -> dict[str, Any]:
    kind = _avro_type(field.type, path, nullable)
    if kind != "null" and (field.nullable if nullable is None else nullable):
        return {"name": field.name, "type": ["null", kind], "default": None}
    return {"name": field.name, "type": kind}


def _avro_type(kind: pa.DataType, path: str, nullable: bool | None) -> Any:
    if pa.types.is_dictionary(kind):
        return _avro_type(kind.value_type, path, nullable)
    if pa.types.is_timestamp(kind) and kind.unit in _TIMESTAMP:
        return {"type": "long", "logicalType": _TIMESTAMP[kind.unit]}
    if pa.types.is_date32(kind):
        return {"type": "int", "logicalType": "date"}
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return {"type": "array", "items": _avro_field(kind.value_field, f"{path}_item", nullable)["type"]}
    if pa.types.is_map(kind):
        return {"type": "map", "values": _avro_field(kind.item_field, f"{path}_value", nullable)["type"]}
    if pa.types.is_struct(kind):
        return {"type": "record", "name": path, "fields": [_avro_field(f, f"{path}_{f.name}", nullable) for f in kind]}
    if kind not in _AVRO:
        raise UnsupportedSchema(f"column {path!r} is of Arrow type {kind}, which has no Avro type here. Cast it first.")
    return _AVRO[kind]
