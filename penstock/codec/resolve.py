"""Schema resolution on columns: what was written with one schema, as the reader's schema wants it (Avro 1.12, "Schema
Resolution").

What can be said of the schemas alone is said once, by ``resolve``: it raises, or gives a chain of column conversions.
What depends on the values (a null for a reader that takes none, an enum symbol that the reader lacks) is a fault of
single rows. Names of records and enums matter only where they tell the branches of a union apart.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from penstock.codec.arrow import arrow_field, arrow_schema, arrow_type, branch_name
from penstock.codec.convert import Convert, Faults, Unresolvable, add_faults
from penstock.codec.defaults import default_column
from penstock.codec.shapes import (
    MISSING,
    Array,
    Enum,
    Field,
    Map,
    Primitive,
    Record,
    Shape,
    Union,
    UnsupportedSchema,
    describe,
)
from penstock.codec.unions import union_converter

_PROMOTIONS = {
    "int": ("long", "float", "double"),
    "long": ("float", "double"),
    "float": ("double",),
    "string": ("bytes",),
    "bytes": ("string",),
}


@dataclass(frozen=True, slots=True)
class Resolution:
    """Turns rows of one writer's schema into rows of the reader's."""

    columns: pa.Schema
    converts: tuple[Callable[[pa.RecordBatch, Faults], pa.Array], ...]

    def apply(self, rows: pa.RecordBatch) -> tuple[pa.RecordBatch, Faults]:
        """The rows that could be resolved, in order, and row → message for the others."""
        faults: Faults = {}
        arrays = [convert(rows, faults) for convert in self.converts]
        if faults:
            keep = np.ones(rows.num_rows, np.bool_)
            keep[list(faults)] = False
            mask = pa.array(keep)
            arrays = [array.filter(mask) for array in arrays]
        return pa.RecordBatch.from_arrays(arrays, schema=self.columns), faults


def resolve(writer: Record, reader: Record) -> Resolution | None:
    """How rows written with ``writer`` are read with ``reader``; None where they are the same. Raises
    ``Unresolvable``.
    """
    if _same(writer, reader):
        return None
    converts = []
    for field in reader.fields:
        at = _position(writer, field)
        if at is None:
            converts.append(_absent(field, field.name))
        else:
            converts.append(_present(at, _converter(writer.fields[at].shape, field.shape, field.name)))
    return Resolution(arrow_schema(reader), tuple(converts))


def _same(writer: Shape, reader: Shape) -> bool:
    """Whether columns of one are columns of the other as they stand."""
    match writer, reader:
        case Record(), Record():
            return len(writer.fields) == len(reader.fields) and all(
                w.name == r.name and _same(w.shape, r.shape) for w, r in zip(writer.fields, reader.fields, strict=True)
            )
        case Enum(), Enum():
            return set(writer.symbols) <= set(reader.symbols)
        case Array(w), Array(r):
            return _same(w, r)
        case Map(w), Map(r):
            return _same(w, r)
        case Union(), Union():
            if writer.optional is not None and reader.optional is not None:
                return _same(writer.optional, reader.optional)
            return len(writer.branches) == len(reader.branches) and all(
                _same(w, r) and branch_name(w) == branch_name(r)
                for w, r in zip(writer.branches, reader.branches, strict=True)
            )
        case Primitive(), Primitive():
            return writer.kind == reader.kind and arrow_type(writer) == arrow_type(reader)
    return False


def _position(writer: Record, field: Field) -> int | None:
    for names in ({field.name}, field.aliases):
        for i, candidate in enumerate(writer.fields):
            if candidate.name in names:
                return i
    return None


def _absent(field: Field, path: str) -> Callable[[pa.RecordBatch, Faults], pa.Array]:
    one = _default(field, path)
    return lambda rows, _: one.take(pa.array(np.zeros(rows.num_rows, np.int64)))


def _default(field: Field, path: str) -> pa.Array:
    if field.default is MISSING:
        raise Unresolvable(f"field {path!r} was not written and has no default. Give it one.")
    try:
        return default_column(field.shape, field.default, 1)
    except UnsupportedSchema as error:
        raise Unresolvable(f"field {path!r}: {error}") from None


def _present(at: int, convert: Convert) -> Callable[[pa.RecordBatch, Faults], pa.Array]:
    return lambda rows, faults: convert(rows.column(at), faults)


def _as_is(array: pa.Array, _: Faults) -> pa.Array:
    return array


def _converter(writer: Shape, reader: Shape, path: str) -> Convert:
    if _same(writer, reader):
        return _as_is
    match writer, reader:
        case (Union(), _) | (_, Union()):
            return union_converter(writer, reader, path, _converter)
        case Primitive(), Primitive():
            return _primitive(writer, reader, path)
        case Enum(), Enum():
            return _enum(writer, reader, path)
        case Record(), Record():
            return _record(writer, reader, path)
        case Array(w), Array(r):
            return _array(_converter(w, r, f"{path}.items"), reader)
        case Map(w), Map(r):
            return _map(_converter(w, r, f"{path}.values"), reader)
    raise Unresolvable(f"field {path!r}: {describe(writer)} cannot be read as {describe(reader)}.")


def _primitive(writer: Primitive, reader: Primitive, path: str) -> Convert:
    have, want = arrow_type(writer), arrow_type(reader)
    if writer.kind == reader.kind:
        plain = arrow_type(Primitive(reader.kind))
        if plain not in (have, want):
            raise Unresolvable(
                f"field {path!r}: {describe(writer)} read as {describe(reader)} would change its meaning."
            )
        return lambda array, _: array.view(want)
    if reader.kind not in _PROMOTIONS.get(writer.kind, ()):
        raise Unresolvable(f"field {path!r}: {describe(writer)} cannot be read as {describe(reader)}.")
    if writer.kind == "bytes":
        return lambda array, faults: _text(array, faults, path)
    if writer.kind == "string":
        return lambda array, _: array.view(pa.binary())
    from_, to = arrow_type(Primitive(writer.kind)), arrow_type(Primitive(reader.kind))
    # a long over 2^53 loses digits as a double: Avro says so
    return lambda array, _: array.view(from_).cast(to, safe=False).view(want)


def _text(array: pa.Array, faults: Faults, path: str) -> pa.Array:
    try:
        return array.cast(pa.string())
    except pa.ArrowInvalid:
        pass
    out: list[str | None] = []
    for i, value in enumerate(array.to_pylist()):
        try:
            out.append(None if value is None else value.decode())
        except UnicodeDecodeError:
            faults.setdefault(i, f"field {path!r}: bytes that are not UTF-8 cannot be read as a string.")
            out.append("")
    return pa.array(out, pa.string())


def _enum(writer: Enum, reader: Enum, path: str) -> Convert:
    known = pa.array(reader.symbols, pa.string())
    if reader.default is not None and reader.default not in reader.symbols:
        raise Unresolvable(f"field {path!r}: the default {reader.default!r} is none of the symbols.")

    def convert(array: pa.Array, faults: Faults) -> pa.Array:
        lost = pc.and_(pc.invert(pc.is_in(array, known)), pc.is_valid(array))
        if reader.default is not None:
            return pc.if_else(lost, pa.scalar(reader.default), array)
        for i in np.flatnonzero(lost.to_numpy(zero_copy_only=False)).tolist():
            faults.setdefault(i, f"field {path!r}: the reader has no symbol {array[i].as_py()!r} and no default.")
        return array

    return convert


def _record(writer: Record, reader: Record, path: str) -> Convert:
    fields = [arrow_field(f.name, f.shape) for f in reader.fields]
    steps: list[tuple[int, Convert] | pa.Array] = []
    for field in reader.fields:
        at = _position(writer, field)
        inner = f"{path}.{field.name}"
        if at is None:
            steps.append(_default(field, inner))
        else:
            steps.append((at, _converter(writer.fields[at].shape, field.shape, inner)))

    def convert(array: pa.Array, faults: Faults) -> pa.Array:
        inside: Faults = {}
        zeros = pa.array(np.zeros(len(array), np.int64))
        parts = [
            step[1](array.field(step[0]), inside) if isinstance(step, tuple) else step.take(zeros) for step in steps
        ]
        null = array.is_null()
        add_faults(faults, inside, ~null.to_numpy(zero_copy_only=False))
        return pa.StructArray.from_arrays(parts, fields=fields, mask=null)

    return convert


def _array(convert: Convert, reader: Array) -> Convert:
    kind = arrow_type(reader)

    def whole(array: pa.Array, faults: Faults) -> pa.Array:
        array = _from_zero(array)
        values = _inside(array, array.values, convert, faults)
        return pa.ListArray.from_arrays(array.offsets, values, type=kind, mask=_mask(array))

    return whole


def _map(convert: Convert, reader: Map) -> Convert:
    kind = arrow_type(reader)

    def whole(array: pa.Array, faults: Faults) -> pa.Array:
        array = _from_zero(array)
        items = _inside(array, array.items, convert, faults)
        entries = pa.StructArray.from_arrays([array.keys, items], fields=[kind.key_field, kind.item_field])
        return pa.Array.from_buffers(kind, len(array), array.buffers()[:2], array.null_count, children=[entries])

    return whole


def _from_zero(array: pa.Array) -> pa.Array:
    return array.take(pa.array(np.arange(len(array)))) if array.offset else array


def _mask(array: pa.Array) -> pa.Array | None:
    return array.is_null() if array.null_count else None


def _inside(array: pa.Array, values: pa.Array, convert: Convert, faults: Faults) -> pa.Array:
    inside: Faults = {}
    out = convert(values, inside)
    if inside:
        offsets = array.offsets.to_numpy()
        owners = np.searchsorted(offsets, list(inside), "right") - 1
        for owner, message in zip(owners.tolist(), inside.values(), strict=True):
            faults.setdefault(owner, message)
    return out
