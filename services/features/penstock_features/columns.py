"""Columns on their way between Arrow and numpy: what the windows and a pipeline's functions take and give back.

Nulls: NaN in float arrays (integers with nulls arrive as float64), None in object arrays. Back again NaN and infinity
are null, because a model must not be able to tell a division by zero from a value that is missing.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

Values = NDArray[Any]
Places = NDArray[np.int64]


class Columns(Mapping[str, Values]):
    """A batch's columns as numpy arrays, each made when it is first asked for; read-only where Arrow owns the memory.

    ``chosen``: int64[m], the rows to take, in that order; None takes all.
    """

    def __init__(self, arrays: Mapping[str, "pa.Array[Any]"], chosen: Places | None = None) -> None:
        self._arrays, self._chosen = arrays, chosen
        self._made: dict[str, Values] = {}

    def __getitem__(self, name: str) -> Values:
        made = self._made.get(name)
        if made is None:
            array = self._arrays[name]
            made = self._made[name] = to_numpy(array if self._chosen is None else take(array, self._chosen))
        return made

    def part(self, low: int, high: int) -> "Columns":
        """The rows from ``low`` to ``high``."""
        rows = np.arange(low, high) if self._chosen is None else self._chosen[low:high]
        return Columns(self._arrays, rows)

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)


def to_numpy(array: "pa.Array[Any]") -> Values:
    """The values as a pipeline's function takes them. Timestamps are datetime64[ms]."""
    kind = array.type
    if pa.types.is_dictionary(kind):
        array = array.dictionary_decode()
        kind = array.type
    if pa.types.is_timestamp(kind):
        return array.to_numpy(zero_copy_only=False).astype("datetime64[ms]")  # type: ignore[no-any-return]
    if array.null_count and (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        array = array.cast(pa.float64(), safe=False).fill_null(np.nan)
    return array.to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]


def numbers(array: "pa.Array[Any]") -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Values and validity as the windows take them, float64[n] and bool[n]; NaN and infinity count as missing.

    Of a column that holds no numbers only the validity is of use (``count``), and the values are 0.
    """
    valid = is_valid(array)
    kind = array.type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        return np.zeros(len(array)), valid
    if array.null_count:
        array = array.fill_null(False if pa.types.is_boolean(kind) else 0)
    values = array.to_numpy(zero_copy_only=False).astype(np.float64, copy=False)
    finite = np.isfinite(values)
    return values, (finite if not array.null_count and bool(valid.all()) else valid & finite)


def is_valid(array: "pa.Array[Any]") -> NDArray[np.bool_]:
    """bool[n]: not null."""
    if not array.null_count:
        return np.ones(len(array), np.bool_)
    return array.is_valid().to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]


def texts(array: "pa.Array[Any]") -> "pa.Array[Any]":
    """The string form of a key column; strings stay as they are."""
    if pa.types.is_string(array.type):
        return array
    if pa.types.is_dictionary(array.type):
        return texts(array.dictionary_decode())
    return array.cast(pa.string())


def take(array: "pa.Array[Any]", places: Places) -> "pa.Array[Any]":
    """The values at ``places``, in that order."""
    return array.take(from_numpy(places, pa.int64()))


def from_numpy(values: Values, kind: "pa.DataType", valid: NDArray[np.bool_] | None = None) -> "pa.Array[Any]":
    """An Arrow array over numpy's own memory; ``pa.array`` would import pandas, at a second and 60 MB."""
    values = np.ascontiguousarray(values)
    bits = None if valid is None else pa.py_buffer(np.packbits(valid, bitorder="little"))
    return pa.Array.from_buffers(kind, len(values), [bits, pa.py_buffer(values)])


def to_arrow(values: Values, kind: "pa.DataType") -> "pa.Array[Any]":
    """What a function returned, as a column of ``kind``. Raises ``ValueError`` (as ``pa.ArrowInvalid`` is) if unfit."""
    values = np.asarray(values)
    if values.dtype.kind == "f":
        finite = np.isfinite(values)
        missing = None if bool(finite.all()) else finite
        if not pa.types.is_floating(kind) and missing is not None:
            values = np.where(finite, values, 0.0)
        return from_numpy(values.astype(np.float64, copy=False), pa.float64(), missing).cast(kind)
    if values.dtype.kind in "iu":
        return from_numpy(values.astype(np.int64, copy=False), pa.int64()).cast(kind)
    if values.dtype.kind == "b":
        return pc.equal(from_numpy(values.astype(np.int8), pa.int8()), pa.scalar(1, pa.int8())).cast(kind)
    if values.dtype.kind in "OU":
        listed = values.tolist()
        if pa.types.is_string(kind):
            try:
                return pa.array(listed, kind)
            except (pa.ArrowInvalid, pa.ArrowTypeError):  # a NaN among the texts, which stands for null
                pass
        return pa.array([_present(value) for value in listed], kind)
    raise ValueError(f"values of numpy type {values.dtype} do not fit a column of type {kind}")


def _present(value: Any) -> Any:
    return None if isinstance(value, float) and not np.isfinite(value) else value
