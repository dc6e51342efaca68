"""Avro values ⇄ columns by pyruhvro, with the checks that it leaves out: for nested records, and to sift what a whole
batch could not be read for. Nothing else in Penstock imports pyruhvro.

pyruhvro is given a schema of our own that is the same on the wire: ``bytes`` as ``string`` and no logical types (it
panics at some), ``int`` as ``long`` on reading (it cuts longer numbers off silently). The columns are then viewed as
what they are. It accepts trailing bytes: since no row can be read beyond its end, the rows are whole exactly when the
bytes that the columns would take add up.
"""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyruhvro

from penstock.codec import frame
from penstock.codec.arrow import arrow_type
from penstock.codec.shapes import Array, Enum, Map, Primitive, Record, Shape, Union


class Malformed(ValueError):
    """At least one of the values is not what the schema says. Which one is for the caller to find out."""


def wire_json(record: Record, widen: bool) -> str:
    """The schema that pyruhvro is given, frame included. ``widen``: read ``int`` as ``long``."""
    names = (f"N{i}" for i in range(1 << 30))
    schema = _wire(record, widen, names)
    return json.dumps({**schema, "fields": [*frame.FIELDS, *schema["fields"]]})


def _wire(shape: Shape, widen: bool, names: Iterator[str]) -> Any:
    match shape:
        case Primitive(kind):
            return {"bytes": "string", "int": "long" if widen else "int"}.get(kind, kind)
        case Enum(_, symbols):
            return {"type": "enum", "name": next(names), "symbols": list(symbols)}
        case Array(items):
            return {"type": "array", "items": _wire(items, widen, names)}
        case Map(values):
            return {"type": "map", "values": _wire(values, widen, names)}
        case Union(branches):
            return [_wire(b, widen, names) for b in branches]
        case Record(_, fields):
            inner = [{"name": f.name, "type": _wire(f.shape, widen, names)} for f in fields]
            return {"type": "record", "name": next(names), "fields": inner}


def read(values: list[bytes], schema_json: str) -> pa.RecordBatch:
    """The values under a ``wire_json``, frame columns included. Raises ``Malformed``."""
    try:
        return pyruhvro.deserialize_array(values, schema_json)
    except ValueError as error:
        raise Malformed(str(error)) from None
    except BaseException as error:
        # a panic of the Rust side is no Exception; the row that causes it must not take the worker with it
        if type(error).__name__ != "PanicException":
            raise
        raise Malformed(f"the decoder gave up: {error}") from None


def write(columns: list[pa.Array], names: list[str], schema_json: str) -> pa.BinaryArray:
    """One value per row. Raises ``ValueError`` where a column holds what the schema does not allow."""
    rows = pa.RecordBatch.from_arrays(columns, names=names)
    (values,) = pyruhvro.serialize_record_batch(rows, schema_json, 1)
    return values


def as_declared(array: pa.Array, shape: Shape) -> pa.Array:
    """A column as pyruhvro read it, viewed as the type of ``shape``. Raises ``Malformed`` for an int over 32 bits."""
    wanted = arrow_type(shape)
    if array.type.equals(wanted, check_metadata=False) and not _renamed(array.type, wanted):
        return array
    match shape:
        case Primitive(kind):
            if kind == "int":
                return _narrow(array).view(wanted)
            return array.view(wanted)
        case Union(branches):
            if shape.optional is not None:
                return as_declared(array, shape.optional)
            codes = pa.Array.from_buffers(pa.int8(), len(array), [None, array.buffers()[1]])
            parts = [as_declared(array.field(i), b) for i, b in enumerate(branches)]
            names = [wanted.field(i).name for i in range(len(parts))]
            return pa.UnionArray.from_sparse(codes, parts, names)
        case Record(_, fields):
            parts = [as_declared(array.field(i), f.shape) for i, f in enumerate(fields)]
            return _rebuilt(array, wanted, 1, parts)
        case Array(items):
            return _rebuilt(array, wanted, 2, [as_declared(array.values, items)])
        case Map(values):
            entries = pa.StructArray.from_arrays(
                [array.keys, as_declared(array.items, values)], fields=[wanted.key_field, wanted.item_field]
            )
            return _rebuilt(array, wanted, 2, [entries])
    return array


def _renamed(have: pa.DataType, want: pa.DataType) -> bool:
    # field names of lists, maps and unions are no part of equality in Arrow
    return str(have) != str(want)


def _narrow(array: pa.Array) -> pa.Array:
    try:
        return array.cast(pa.int32())
    except pa.ArrowInvalid as error:
        raise Malformed(str(error)) from None


def _rebuilt(array: pa.Array, kind: pa.DataType, own: int, children: list[pa.Array]) -> pa.Array:
    if array.offset:
        raise AssertionError("pyruhvro's arrays start at 0")
    return pa.Array.from_buffers(kind, len(array), array.buffers()[:own], array.null_count, children=children)


def for_writing(array: pa.Array, shape: Shape) -> pa.Array:
    """A column of ``arrow_type(shape)`` viewed as what ``wire_json(…, widen=False)`` takes."""
    match shape:
        case Primitive("bytes"):
            return array.view(pa.string())
        case Primitive("int"):
            return array.view(pa.int32())
        case Primitive("long"):
            return array.view(pa.int64())
        case Primitive() | Enum():
            return array
        case Union(branches):
            if shape.optional is not None:
                return for_writing(array, shape.optional)
            codes = pa.Array.from_buffers(pa.int8(), len(array), [None, array.buffers()[1]], offset=array.offset)
            parts = [for_writing(array.field(i), b) for i, b in enumerate(branches)]
            return pa.UnionArray.from_sparse(codes, parts, [f.name for f in array.type])
    if array.offset:
        array = array.take(pa.array(np.arange(len(array))))
    if isinstance(shape, Record):
        parts = [for_writing(array.field(i), f.shape) for i, f in enumerate(shape.fields)]
        kind = pa.struct([_retyped(f, p) for f, p in zip(array.type, parts, strict=True)])
        return _rebuilt(array, kind, 1, parts)
    if isinstance(shape, Array):
        inner = for_writing(array.values, shape.items)
        return _rebuilt(array, pa.list_(_retyped(array.type.value_field, inner)), 2, [inner])
    inner = for_writing(array.items, shape.values)
    item = _retyped(array.type.item_field, inner)
    entries = pa.StructArray.from_arrays([array.keys, inner], fields=[array.type.key_field, item])
    return _rebuilt(array, pa.map_(pa.string(), item), 2, [entries])


def _retyped(field: pa.Field, array: pa.Array) -> pa.Field:
    return pa.field(field.name, array.type, field.nullable)


def plain(shape: Shape, names: Iterator[str] | None = None) -> Any:
    """The schema for fastavro: no logical types, since a timestamp that Python cannot hold is still in order."""
    names = names or (f"N{i}" for i in range(1 << 30))
    match shape:
        case Primitive(kind):
            return kind
        case Enum(_, symbols):
            return {"type": "enum", "name": next(names), "symbols": list(symbols)}
        case Array(items):
            return {"type": "array", "items": plain(items, names)}
        case Map(values):
            return {"type": "map", "values": plain(values, names)}
        case Union(branches):
            return [plain(b, names) for b in branches]
        case Record(_, fields):
            inner = [{"name": f.name, "type": plain(f.shape, names)} for f in fields]
            return {"type": "record", "name": next(names), "fields": inner}


def invalid_text(rows: pa.RecordBatch) -> dict[int, str] | None:
    """Row → column that is not UTF-8; None where all is; empty where it is inside nested columns, which are not
    searched.
    """
    try:
        rows.validate(full=True)
    except pa.ArrowInvalid:
        pass
    else:
        return None
    found: dict[int, str] = {}
    for name, column in zip(rows.schema.names, rows.columns, strict=True):
        if column.type != pa.string():
            continue
        _, offsets, data = column.buffers()
        if data is None:
            continue
        at = np.frombuffer(offsets, np.int32, len(column) + 1, column.offset * 4)
        bytes_ = np.frombuffer(data, np.uint8)
        high = np.concatenate([[0], np.cumsum(bytes_ >= 0x80)])
        for i in np.flatnonzero(high[at[1:]] > high[at[:-1]]).tolist():
            try:
                bytes_[at[i] : at[i + 1]].tobytes().decode()
            except UnicodeDecodeError:
                found[i] = name
    return found


def is_flat(shape: Shape) -> bool:
    """Whether columns of the shape have no columns inside."""
    return isinstance(shape, Primitive | Enum) or (
        isinstance(shape, Union) and shape.optional is not None and is_flat(shape.optional)
    )


def is_as_read(shape: Shape) -> bool:
    """Whether pyruhvro's column already is what ``as_declared`` makes of it."""
    match shape:
        case Primitive(kind, logical):
            return kind in {"null", "boolean", "float", "double", "string"} or (kind == "long" and logical is None)
        case Union():
            return shape.optional is not None and is_as_read(shape.optional)
        case _:
            return isinstance(shape, Enum)
