"""Which row of the state belongs to which key: a hash table over the bytes of the keys, probed by a kernel per batch.

Keys never become Python objects on the way: a Python dict of each batch's distinct keys cost more than the windows.
Rows are numbered in the order in which keys first appear.
"""

from typing import Any

import numpy as np
import pyarrow as pa
from numba import types
from numpy.typing import NDArray

from penstock.windows.jit import BOOLS, INTS, compiled, inlined


@inlined
def _hash(data: NDArray[np.uint8], start: int, stop: int) -> np.uint64:
    """MurmurHash64A with the eight bytes put together by hand."""
    factor = np.uint64(0xC6A4A7935BD1E995)
    h = np.uint64(0x9E3779B97F4A7C15) ^ (np.uint64(stop - start) * factor)
    i = start
    while i < stop:
        word = np.uint64(0)
        for k in range(min(8, stop - i)):
            word |= np.uint64(data[i + k]) << np.uint64(8 * k)
        word *= factor
        word ^= word >> np.uint64(47)
        h = (h ^ (word * factor)) * factor
        i += 8
    h ^= h >> np.uint64(47)
    h *= factor
    return h ^ (h >> np.uint64(47))


@inlined
def _find_or_add(  # noqa: PLR0917
    data: NDArray[np.uint8],
    start: int,
    stop: int,
    table: NDArray[np.int64],
    hashes: NDArray[np.uint64],
    ends: NDArray[np.int64],
    arena: NDArray[np.uint8],
    count: int,
) -> int:
    """Row of the key; `count` if it is new, in which case it has been added. There must be room for it."""
    h = _hash(data, start, stop)
    mask = np.uint64(len(table) - 1)
    place = h & mask
    while True:
        row = table[place]
        if row < 0:
            begin = ends[count]
            for k in range(stop - start):
                arena[begin + k] = data[start + k]
            ends[count + 1] = begin + stop - start
            hashes[count] = h
            table[place] = count
            return count
        if hashes[row] == h and ends[row + 1] - ends[row] == stop - start:
            begin = ends[row]
            same = True
            for k in range(stop - start):
                if arena[begin + k] != data[start + k]:
                    same = False
                    break
            if same:
                return int(row)
        place = (place + np.uint64(1)) & mask


@compiled(
    types.int64(
        types.Array(types.uint8, 1, "C", readonly=True),
        types.Array(types.int32, 1, "C", readonly=True),
        BOOLS,
        INTS,
        types.int64[::1],
        types.int64[::1],
        types.int64[::1],
        types.uint64[::1],
        types.int64[::1],
        types.uint8[::1],
        types.int64,
    )
)
def _map_rows(  # noqa: PLR0917
    data: NDArray[np.uint8],
    bounds: NDArray[np.int32],
    valid: NDArray[np.bool_],
    indices: NDArray[np.int64],
    rows_of: NDArray[np.int64],
    table: NDArray[np.int64],
    rows: NDArray[np.int64],
    hashes: NDArray[np.uint64],
    ends: NDArray[np.int64],
    arena: NDArray[np.uint8],
    count: int,
) -> int:
    """Fill `rows`; returns the new number of keys. Only dictionary entries that a row uses become keys."""
    by_index = len(indices) > 0
    for i in range(len(rows)):
        if not valid[i]:
            rows[i] = -1
            continue
        entry = indices[i] if by_index else i
        row = rows_of[entry] if by_index else np.int64(-1)
        if row < 0:
            row = _find_or_add(data, bounds[entry], bounds[entry + 1], table, hashes, ends, arena, count)
            if row == count:
                count += 1
            if by_index:
                rows_of[entry] = row
        rows[i] = row
    return count


@compiled(types.void(types.uint64[::1], types.int64, types.int64[::1]))
def _rehash(hashes: NDArray[np.uint64], count: int, table: NDArray[np.int64]) -> None:
    mask = np.uint64(len(table) - 1)
    for row in range(count):
        place = hashes[row] & mask
        while table[place] >= 0:
            place = (place + np.uint64(1)) & mask
        table[place] = row


class KeyIndex:
    """Rows 0 … n-1 for n distinct keys."""

    def __init__(self) -> None:
        self._count = 0
        self._table = np.full(1024, -1, np.int64)
        self._hashes = np.empty(512, np.uint64)
        self._ends = np.zeros(513, np.int64)
        self._arena = np.empty(4096, np.uint8)

    def __len__(self) -> int:
        return self._count

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the index holds."""
        return self._table.nbytes + self._hashes.nbytes + self._ends.nbytes + self._arena.nbytes

    def rows(self, keys: "pa.Array[Any]") -> NDArray[np.int64]:
        """Row of every key, new keys added: int64[n], -1 where the key is null.

        `keys`: string, large_string or a dictionary of them. Raises TypeError for any other type.
        """
        indices = np.empty(0, np.int64)
        values = keys
        if isinstance(keys, pa.DictionaryArray):
            indices = keys.indices.fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64, copy=False)
            values = keys.dictionary
            if values.null_count:  # a null may hide in the dictionary too
                keys = keys.dictionary_decode()
                indices, values = np.empty(0, np.int64), keys
        if pa.types.is_large_string(values.type):
            values = values.cast(pa.string())
        if not pa.types.is_string(values.type):
            raise TypeError(f"keys of a window are strings, not {keys.type}. Cast the key column to string.")
        bounds, data = _string_buffers(values)
        valid = (
            np.asarray(keys.is_valid().to_numpy(zero_copy_only=False), np.bool_)
            if keys.null_count
            else np.ones(len(keys), np.bool_)
        )
        out = np.empty(len(keys), np.int64)
        rows_of = np.full(len(values) if len(indices) else 0, -1, np.int64)
        entries = min(len(keys), len(values))
        self._make_room(entries, int(bounds[-1]) - int(bounds[0]))
        self._count = _map_rows(
            data,
            bounds,
            valid,
            indices,
            rows_of,
            self._table,
            out,
            self._hashes,
            self._ends,
            self._arena,
            self._count,
        )
        return out

    def keys(self) -> "pa.StringArray":
        """The keys in the order of their rows."""
        bounds = self._ends[: self._count + 1]
        buffers = (pa.py_buffer(array.tobytes()) for array in (bounds, self._arena[: bounds[-1]]))
        return pa.LargeStringArray.from_buffers(self._count, *buffers).cast(pa.string())

    def _make_room(self, more: int, more_bytes: int) -> None:
        needed = self._count + more
        if needed > len(self._hashes):
            size = max(needed, 2 * len(self._hashes))
            self._hashes = _grown(self._hashes, self._count, size)
            self._ends = _grown(self._ends, self._count + 1, size + 1)
        used = int(self._ends[self._count])
        if used + more_bytes > len(self._arena):
            self._arena = _grown(self._arena, used, max(used + more_bytes, 2 * len(self._arena)))
        if 2 * needed > len(self._table):
            self._table = np.full(1 << (2 * needed - 1).bit_length(), -1, np.int64)
            _rehash(self._hashes, self._count, self._table)


def _string_buffers(values: "pa.StringArray") -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
    """Bounds, int32[n + 1], and bytes of a string array, without a copy."""
    _, bounds, data = values.buffers()
    if bounds is None or len(values) == 0:
        return np.zeros(1, np.int32), np.zeros(1, np.uint8)
    return (
        np.frombuffer(bounds, np.int32)[values.offset : values.offset + len(values) + 1],
        np.frombuffer(data, np.uint8) if data is not None and data.size else np.zeros(1, np.uint8),
    )


def _grown(array: NDArray[Any], used: int, size: int) -> NDArray[Any]:
    bigger = np.empty(size, array.dtype)
    bigger[:used] = array[:used]
    return bigger
