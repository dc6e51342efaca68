"""Flat Avro records ⇄ Arrow columns, compiled: nearly every record is flat, and this takes tens of ns per row.

Reading is all or nothing: ``Malformed`` does not say what is wrong with which row, so rows that may be bad are to be
walked (``walk.find_faults``). Unusual but whole numbers (overlong varints) are in order, as they are there.
"""

import threading
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from penstock.codec import frame
from penstock.codec.arrow import arrow_type
from penstock.codec.flat_kernel import (
    FIXED,
    SIZE,
    TEXT,
    VARINT,
    WORD,
    Bytes,
    Longs,
    gather_texts,
    read_rows,
    write_rows,
)
from penstock.codec.shapes import Enum, Primitive, Record, Shape, Union
from penstock.codec.wire import Malformed, is_flat

MOST_BYTES = (1 << 31) - 1
"""What an Arrow binary array can hold."""

_I32, _I64 = np.iinfo(np.int32), np.iinfo(np.int64)
_WIDTHS = {"boolean": (1, 0, 1), "float": (4, 0, (1 << 32) - 1), "double": (8, _I64.min, _I64.max)}
_NUMBERS = {"boolean": np.uint8, "int": np.int32, "long": np.int64, "float": np.uint32, "double": np.int64}


@dataclass(frozen=True, slots=True)
class _Column:
    """A field and its slots; ``kind``: of a primitive, or "enum"; ``value`` is -1 where there is nothing to hold."""

    name: str
    type: pa.DataType
    kind: str
    symbols: pa.StringArray | None
    value: int
    guard: int
    null: int


def _compile(record: Record) -> tuple[Longs, list[_Column], int]:
    """The program, the columns and how many slots they take. Raises ValueError naming a field that is not flat."""
    steps: list[tuple[int, ...]] = []
    columns = []
    slots = 0
    for field in record.fields:
        if not is_flat(field.shape):
            raise ValueError(f"field {field.name!r} of {record.name!r} is nested, and only flat fields are read here.")
        guard, null = -1, 0
        shape: Shape = field.shape
        if isinstance(shape, Union) and shape.optional is not None:
            guard, null = slots, shape.null_index
            steps.append((VARINT, guard, -1, 0, 0, 1, 1))
            slots += 1
            shape = shape.optional
        kind, symbols, value = "enum", None, slots
        match shape:
            case Enum(_, names):
                symbols = pa.array(names, pa.string())
                steps.append((VARINT, slots, guard, null, 0, len(names) - 1, 5))
            case Primitive("int" | "long" as kind):
                bounds = _I32 if kind == "int" else _I64
                steps.append((VARINT, slots, guard, null, bounds.min, bounds.max, 5 if kind == "int" else 10))
            case Primitive("boolean" | "float" | "double" as kind):
                size, low, high = _WIDTHS[kind]
                steps.append((FIXED, slots, guard, null, low, high, size))
            case Primitive("bytes" | "string" as kind):
                steps.append((TEXT, slots, guard, null, 0, MOST_BYTES, 5))
                slots += 1
            case _:
                kind, value = "null", -1
        slots += value >= 0
        columns.append(_Column(field.name, arrow_type(shape), kind, symbols, value, guard, null))
    return np.array(steps, np.int64).reshape(-1, 7), columns, slots


class _Scratch(threading.local):
    """Kept from batch to batch, since fresh pages cost more than what is done with them."""

    numbers: Longs = np.empty(0, np.int64)


_scratch = _Scratch()


def _matrix(slots: int, n: int) -> Longs:
    """int64[slots, n or a little more], until this thread asks again."""
    # slots a power of two apart would all fall into the same few lines of the cache
    width = (n // 8 + 1 | 1) * 8
    if len(_scratch.numbers) < slots * width:
        _scratch.numbers = np.empty(slots * width, np.int64)
    return _scratch.numbers[: slots * width].reshape(slots, width)


class FlatReader:
    """Reads values of one flat record; of other columns than ``wanted`` ones nothing is kept, but all is checked.

    Raises ValueError, naming the field, where the record is not flat.
    """

    def __init__(self, record: Record, wanted: Collection[str] | None = None) -> None:
        self._name = record.name
        self._program, columns, self._slots = _compile(record)
        self._wanted = [c for c in columns if wanted is None or c.name in wanted]
        self._texts = [
            c for c in columns if c.kind == "string" or (c.kind == "bytes" and (wanted is None or c.name in wanted))
        ]
        self._text_slots = np.array([c.value for c in self._texts], np.int64)

    def read(self, data: Bytes, starts: Longs, ends: Longs, skip: int = frame.SIZE) -> list[pa.Array]:
        """The wanted columns, in the order of the fields, of the values ``data[starts[i] + skip : ends[i]]``.

        ``data``: uint8[total]; ``starts``, ``ends``: int64[n]; all may be read-only. Raises ``Malformed`` where any
        value is not exactly one of the schema, and ValueError where a batch is larger than an Arrow array can be.
        """
        n = len(starts)
        if n == 0:
            return [pa.nulls(0, c.type) for c in self._wanted]
        if len(ends) != n:
            raise ValueError(f"{n} rows begin and {len(ends)} end.")
        matrix = _matrix(self._slots + 1, n)
        bad = read_rows(data, starts, ends, skip, self._program, matrix[-1], matrix)
        if bad >= 0:
            raise Malformed(f"row {bad} is not one value of {self._name!r}.")
        total = int((ends - starts).sum())
        if total > MOST_BYTES:
            raise ValueError(f"{total} bytes in one batch, and columns hold {MOST_BYTES}. Read smaller batches.")
        made = dict(zip((c.name for c in self._texts), self._read_texts(data, matrix, n, total), strict=True))
        return [made[c.name] if c.name in made else _read_column(c, matrix, n) for c in self._wanted]

    def _read_texts(self, data: Bytes, matrix: Longs, n: int, total: int) -> list[pa.Array]:
        bounds = np.empty((len(self._texts), n + 1), np.int32)
        # no byte of a value is in two texts
        texts = np.empty(total + WORD, np.uint8)
        gather_texts(data, self._text_slots, matrix, bounds, texts)
        arrays = []
        for column, offsets in zip(self._texts, bounds, strict=True):
            own, texts = texts[: offsets[n]], texts[offsets[n] :]
            validity, nulls = _validity(column, matrix, n)
            buffers = [validity, pa.py_buffer(offsets), pa.py_buffer(own)]
            array = pa.Array.from_buffers(column.type, n, buffers, nulls)
            # ASCII is the quickest way to know that it is UTF-8
            if column.kind == "string" and len(own) and own.max() >= 0x80:
                try:
                    array.validate(full=True)
                except pa.ArrowInvalid as error:
                    raise Malformed(f"field {column.name!r}: {error}") from None
            arrays.append(array)
        return arrays


def _validity(column: _Column, matrix: Longs, n: int) -> tuple[pa.Buffer | None, int]:
    if column.guard < 0:
        return None, 0
    valid = matrix[column.guard, :n] != column.null
    nulls = n - int(np.count_nonzero(valid))
    return (pa.py_buffer(np.packbits(valid, bitorder="little")), nulls) if nulls else (None, 0)


def _read_column(column: _Column, matrix: Longs, n: int) -> pa.Array:
    if column.kind == "null":
        return pa.nulls(n)
    validity, nulls = _validity(column, matrix, n)
    values = matrix[column.value, :n]
    if column.symbols is not None:
        indices = pa.Array.from_buffers(pa.int64(), n, [validity, pa.py_buffer(values)], nulls)
        return column.symbols.take(indices)
    numbers: NDArray[Any] = values.astype(_NUMBERS[column.kind])
    if column.kind == "boolean":
        numbers = np.packbits(numbers, bitorder="little")
    return pa.Array.from_buffers(column.type, n, [validity, pa.py_buffer(numbers)], nulls)


class FlatWriter:
    """Writes rows as values of one flat record, each after ``prefix``.

    Raises ValueError, naming the field, where the record is not flat.
    """

    def __init__(self, record: Record, prefix: bytes) -> None:
        self._name = record.name
        self._prefix = np.frombuffer(prefix, np.uint8)
        self._program, self._columns, self._slots = _compile(record)
        self._most = len(prefix) + int(self._program[:, SIZE].sum())

    def write(self, columns: Sequence[pa.Array], n: int) -> pa.BinaryArray:
        """One value per row, of n. ``columns``: of ``arrow_type`` of each field, in the fields' order.

        Raises ValueError, naming the field, for a null that the schema forbids and a symbol that its enum lacks; and
        where the values would take more bytes than an Arrow array can hold.
        """
        matrix = _matrix(self._slots, n)
        pieces: list[Bytes] = []
        held = 0
        for column, array in zip(self._columns, columns, strict=True):
            piece = self._lay_in(column, array, n, matrix, held)
            pieces.append(piece)
            held += len(piece)
        self._refuse_over(held)
        bounds = np.zeros(n + 1, np.int32)
        out = np.empty(n * self._most + held + WORD, np.uint8)
        texts = np.concatenate([*pieces, np.zeros(WORD, np.uint8)])
        total = write_rows(self._prefix, self._program, matrix, texts, bounds, out)
        self._refuse_over(total)
        out.resize(total, refcheck=False)
        return pa.Array.from_buffers(pa.binary(), n, [None, pa.py_buffer(bounds), pa.py_buffer(out)], 0)

    def _refuse_over(self, total: int) -> None:
        if total > MOST_BYTES:
            raise ValueError(
                f"schema {self._name!r}: {total} bytes in one batch, and an array holds {MOST_BYTES}. "
                "Send smaller batches."
            )

    def _lay_in(self, column: _Column, array: pa.Array, n: int, matrix: Longs, held: int) -> Bytes:
        """Fill the column's slots of the matrix; its text, which will begin at ``held``."""
        nothing = np.empty(0, np.uint8)
        # what is wrong here would be read beyond its end there
        if len(array) != n or array.type != column.type:
            raise ValueError(
                f"schema {self._name!r}: field {column.name!r} is {len(array)} rows of {array.type}, "
                f"where {n} of {column.type} are to be written."
            )
        if column.guard >= 0:
            branches = matrix[column.guard, :n]
            branches[:] = 1 - column.null
            if array.null_count:
                branches ^= _bits(array.buffers()[0], array.offset, n) ^ 1
        elif array.null_count and column.value >= 0:
            raise ValueError(f"schema {self._name!r}: field {column.name!r} holds a null. Make it nullable.")
        if column.value < 0 or n == 0:
            return nothing
        values = matrix[column.value, :n]
        if column.symbols is not None:
            array = self._indices(column, column.symbols, array)
            values[:] = np.frombuffer(array.buffers()[1], np.int32, n, array.offset * 4)
        elif column.kind == "boolean":
            values[:] = _bits(array.buffers()[1], array.offset, n)
        elif column.kind in _NUMBERS:
            kind = np.dtype(_NUMBERS[column.kind])
            values[:] = np.frombuffer(array.buffers()[1], kind, n, array.offset * kind.itemsize)
        else:
            _, offsets, data = array.buffers()
            at = np.frombuffer(offsets, np.int32, n + 1, array.offset * 4)
            np.subtract(at[1:], at[:-1], out=values)
            starts = matrix[column.value + 1, :n]
            starts[:] = at[:-1]
            starts += held - int(at[0])
            return np.frombuffer(data, np.uint8)[at[0] : at[n]] if data is not None else nothing
        return nothing

    def _indices(self, column: _Column, symbols: pa.StringArray, array: pa.Array) -> pa.Array:
        indices = pc.index_in(array, symbols)
        if indices.null_count > array.null_count:
            odd = array.filter(pc.and_(array.is_valid(), indices.is_null()))[0].as_py()
            raise ValueError(
                f"schema {self._name!r}: field {column.name!r} holds {odd!r}, which is no symbol of its enum."
            )
        return indices


def _bits(buffer: pa.Buffer, offset: int, n: int) -> Bytes:
    """uint8[n]: bits of an Arrow bitmap as 0 and 1."""
    whole = np.frombuffer(buffer, np.uint8)[offset // 8 :]
    return np.unpackbits(whole, count=offset % 8 + n, bitorder="little")[offset % 8 :]
