"""JSON objects to the Arrow columns of an Avro reader schema.

Each value is parsed alone by orjson and only then put into columns. A reader of newline-delimited JSON
(``pyarrow.json``) is about 1.5 times as fast, but has been seen to put fields on the wrong row and to crash on four
bytes. Rows go in small blocks, which keeps their objects in the processor's cache; where a column of a block does not
fit, that column's values are checked one by one.

What is accepted: plain JSON with the field's own name. A missing field takes its default, or null where it may be
null. Unknown fields are ignored; of a key given twice the last counts. Integers are whole numbers without a fraction
(``1.0`` is none), timestamps and dates are the integers that Avro holds, ``bytes`` are strings of code points up to
255, and NaN, infinities and numbers out of range are refused.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from penstock.codec.arrow import arrow_schema, arrow_type
from penstock.codec.decoded import MAX_VALUE_BYTES, BadRow, Decoded, in_order, too_large
from penstock.codec.defaults import default_value
from penstock.codec.shapes import (
    MISSING,
    Array,
    Enum,
    Map,
    Primitive,
    Record,
    Shape,
    Union,
    UnsupportedSchema,
    describe,
    parse,
)
from penstock.records import Values, column

_BLOCK = 1024
_RANGE = {"int": 31, "long": 63}
_Row = dict[str, Any]


class _Wrong(ValueError):
    """A value that its field does not take. Never leaves this module."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class _Field:
    """``missing``: what stands for the field where it is missing, as JSON; ``MISSING`` where it may not be."""

    name: str
    shape: Shape
    missing: Any

    @property
    def stand_in(self) -> Any:
        return None if self.missing is MISSING else self.missing


class JsonDecoder:
    """JSON values to columns of the reader's schema; those over ``max_bytes`` are not looked into. Raises
    ``UnsupportedSchema`` for unions of several types."""

    def __init__(self, reader: Mapping[str, Any], max_bytes: int = MAX_VALUE_BYTES) -> None:
        self._max_bytes = max_bytes
        record = parse(reader)
        self.columns = arrow_schema(record)
        self._fields = [_Field(f.name, f.shape, _missing(f.shape, f.default, f.name)) for f in record.fields]
        self._builders = [_builder(f.shape, f.name) for f in record.fields]

    def decode(self, values: Values) -> Decoded:
        """The good rows in order, and the bad ones with their reasons."""
        values = column(values).to_pylist()
        bad: dict[int, BadRow] = {}
        parts: list[tuple[pa.RecordBatch, npt.NDArray[np.intp]]] = []
        for start in range(0, len(values), _BLOCK):
            rows, index = _parsed(values[start : start + _BLOCK], start, bad, self._max_bytes)
            if rows:
                parts.append(self._columns(rows, index, bad))
        return in_order(parts, self.columns, bad)

    def _columns(
        self, rows: list[_Row], index: list[int], bad: dict[int, BadRow]
    ) -> tuple[pa.RecordBatch, npt.NDArray[np.intp]]:
        """The block's rows as columns, less those with a field that does not fit, which are added to ``bad``."""
        arrays = []
        wrong: dict[int, _Wrong] = {}
        for field, build, to in zip(self._fields, self._builders, self.columns, strict=True):
            name, default = field.name, field.stand_in
            try:
                array = build([row.get(name, default) for row in rows])
                if array.null_count and not to.nullable:
                    raise _Wrong("missing field", name)
            except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError, _Wrong):
                array = pa.array(_checked(rows, field, wrong), to.type)
            arrays.append(array)
        if not wrong:
            return pa.RecordBatch.from_arrays(arrays, schema=self.columns), np.array(index, np.intp)
        keep = np.ones(len(rows), np.bool_)
        for i, why in wrong.items():
            keep[i] = False
            bad[index[i]] = BadRow(why.reason, str(why))
        mask = pa.array(keep)
        batch = pa.RecordBatch.from_arrays([array.filter(mask) for array in arrays], schema=self.columns)
        return batch, np.array(index, np.intp)[keep]


def _checked(rows: list[_Row], field: _Field, wrong: dict[int, _Wrong]) -> list[Any]:
    """The field's values one by one; a row whose value does not fit has None here and its first fault in ``wrong``."""
    out = []
    for i, row in enumerate(rows):
        try:
            out.append(_field_value(row, field, ""))
        except _Wrong as why:
            wrong.setdefault(i, why)
            out.append(None)
    return out


def _parsed(
    values: Sequence[bytes | None], start: int, bad: dict[int, BadRow], max_bytes: int
) -> tuple[list[_Row], list[int]]:
    rows: list[_Row] = []
    index: list[int] = []
    for i, value in enumerate(values, start):
        if not value:
            what = "no value (a tombstone)" if value is None else "a value of no bytes"
            bad[i] = BadRow("empty", f"{what}, where a JSON object is expected.")
            continue
        if len(value) > max_bytes:
            bad[i] = too_large(len(value), max_bytes)
            continue
        try:
            row = orjson.loads(value)
        except orjson.JSONDecodeError as error:
            bad[i] = BadRow("malformed json", f"{error.msg} at character {error.pos}.")
            continue
        if isinstance(row, dict):
            rows.append(row)
            index.append(i)
        else:
            bad[i] = BadRow("malformed json", f"a JSON {_kind(row)}, where an object is expected.")
    return rows, index


def _missing(shape: Shape, default: Any, path: str) -> Any:
    """What stands for a field that is missing: JSON that ``_value`` takes; ``MISSING`` where it may not be."""
    if isinstance(shape, Union) and shape.optional is None:
        raise UnsupportedSchema(f"{path}: JSON does not say which branch of a {describe(shape)} a value is. Use Avro.")
    if default is MISSING:
        nullable = shape == Primitive("null") or isinstance(shape, Union)
        return None if nullable else MISSING
    default_value(shape, default)
    return default


def _field_value(row: _Row, field: _Field, path: str) -> Any:
    where = path + field.name
    value = row.get(field.name, field.missing)
    if value is MISSING:
        raise _Wrong("missing field", f"field {where!r} is missing and has no default.")
    return _value(field.shape, value, where)


def _value(shape: Shape, value: Any, path: str) -> Any:
    """The Python value that pyarrow takes for ``arrow_type(shape)``. Raises ``_Wrong``, naming the field."""
    match shape:
        case Primitive("null") if value is None:
            return None
        case Primitive("boolean") if isinstance(value, bool):
            return value
        case Primitive("int" | "long" as kind) if isinstance(value, int) and not isinstance(value, bool):
            if -(1 << _RANGE[kind]) <= value < 1 << _RANGE[kind]:
                return value
            raise _Wrong("wrong type", f"field {path!r}: the number is out of the range of {kind}.")
        case Primitive("float" | "double" as kind) if isinstance(value, int | float) and not isinstance(value, bool):
            if kind == "float" and abs(value) >= 2.0**128 * (1 - 2.0**-25):
                raise _Wrong("wrong type", f"field {path!r}: the number is out of the range of float.")
            return float(value)
        case Primitive("string") if isinstance(value, str):
            return value
        case Primitive("bytes") if isinstance(value, str):
            try:
                return value.encode("latin-1")
            except UnicodeEncodeError:
                raise _Wrong("wrong type", f"field {path!r}: bytes are characters up to U+00FF.") from None
        case Enum(_, symbols) if isinstance(value, str):
            if value in symbols:
                return value
            raise _Wrong("wrong type", f"field {path!r}: no symbol of {shape.name}. Known: {', '.join(symbols)[:80]}.")
        case Union():
            return None if value is None else _value(shape.optional or Primitive("null"), value, path)
        case Array(items) if isinstance(value, list):
            return [_value(items, v, f"{path}[{i}]") for i, v in enumerate(value)]
        case Map(values) if isinstance(value, dict):
            return [(k, _value(values, v, f"{path}[…]")) for k, v in value.items()]
        case Record(_, fields) if isinstance(value, dict):
            inner = (_Field(f.name, f.shape, _missing(f.shape, f.default, path)) for f in fields)
            return {f.name: _field_value(value, f, f"{path}.") for f in inner}
    whole = isinstance(shape, Primitive) and shape.kind in ("int", "long")
    if whole and isinstance(value, float) and abs(value) >= 2.0**63:  # orjson reads larger whole numbers as these
        raise _Wrong("wrong type", f"field {path!r}: the number is out of the range of {describe(shape)}.")
    raise _Wrong("wrong type", f"field {path!r}: a JSON {_kind(value)}, where the schema wants {describe(shape)}.")


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    names = {bool: "boolean", int: "integer", float: "number with a fraction", str: "string", list: "array"}
    return names.get(type(value), "object")


def _builder(shape: Shape, path: str) -> Callable[[list[Any]], pa.Array]:
    """Makes a column of JSON values; raises where one of them does not fit."""
    inner = shape.optional if isinstance(shape, Union) else shape
    to = arrow_type(shape)
    match inner:
        case Primitive("string"):
            return lambda column: pa.array(column, to)
        case Primitive("boolean"):
            return lambda column: pa.array(column, to)
        case Primitive("int" | "long" as kind):
            whole = pa.int32() if kind == "int" else pa.int64()
            return lambda column: _inferred(column, (pa.int64(),), whole).view(to)
        case Primitive("double" | "float"):
            return lambda column: _real(column, to)
        case Enum(_, symbols):
            known = pa.array(symbols, pa.string())
            return lambda column: _symbols(column, known)
    _probe(shape, path)
    return lambda column: pa.array([None if v is None else _value(shape, v, path) for v in column], to)


def _inferred(column: list[Any], allowed: tuple[pa.DataType, ...], to: pa.DataType) -> pa.Array:
    # given a type, pyarrow would take 1.0 for an integer and true for a number; asked for its own opinion it does not
    if bool in set(map(type, column)):  # beside a fraction it would be a number to pyarrow too
        raise _Wrong("", "")
    array = pa.array(column)
    if array.type not in (*allowed, pa.null()):
        raise _Wrong("", "")
    return array.cast(to)


def _real(column: list[Any], to: pa.DataType) -> pa.Array:
    array = _inferred(column, (pa.int64(), pa.float64()), to)
    if to == pa.float32() and pc.any(pc.is_inf(array)).as_py():
        raise _Wrong("", "")
    return array


def _symbols(column: list[Any], known: pa.Array) -> pa.Array:
    array = pa.array(column, pa.string())
    if not pc.all(pc.or_(pc.is_in(array, known), array.is_null())).as_py() and len(array):
        raise _Wrong("", "")
    return array


def _probe(shape: Shape, path: str) -> None:
    """Refuses, when the worker starts, what no row could be read with."""
    match shape:
        case Union():
            _missing(shape, MISSING, path)
            _probe(shape.optional or Primitive("null"), path)
        case Array(inner) | Map(inner):
            _probe(inner, f"{path}.items")
        case Record(_, fields):
            for f in fields:
                _missing(f.shape, f.default, f"{path}.{f.name}")
                _probe(f.shape, f"{path}.{f.name}")
