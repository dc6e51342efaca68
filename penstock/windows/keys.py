"""Which row of the state belongs to which key: a hash table over the bytes of the keys, probed by a kernel per batch.

Keys never become Python objects on the way: a Python dict of each batch's distinct keys cost more than the windows.
Rows are numbered in the order in which keys first appear.
"""

from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from numba import types
from numpy.typing import NDArray

from penstock.jit import BOOLS, INTS, compiled
from penstock.records import string_buffers

Number = TypeVar("Number", bound=np.generic)

HASH, LENGTH, FIRST, START = 0, 1, 2, 3
"""Columns of an entry: hash, bytes of the key, the first eight of them, and where all of them lie in the arena."""

TAG = np.uint64(0xFFFFFFFF00000000)
"""Half of a table's word holds half of the hash, so that most probes end without a look at the entry; half the row."""
FREE = np.uint64(0xFFFFFFFFFFFFFFFF)


BYTES = types.Array(types.uint8, 1, "C", readonly=True)
BOUNDS = types.Array(types.int32, 1, "C", readonly=True)


@compiled(types.void(BYTES, BOUNDS, types.uint64[::1], types.uint64[::1]))
def _hash_keys(
    data: NDArray[np.uint8], bounds: NDArray[np.int32], hashes: NDArray[np.uint64], firsts: NDArray[np.uint64]
) -> None:
    """MurmurHash64A of every key, over words of eight bytes, zeros after the last; and its first word."""
    factor = np.uint64(0xC6A4A7935BD1E995)
    for i in range(len(hashes)):
        at, stop = bounds[i], bounds[i + 1]
        h = np.uint64(0x9E3779B97F4A7C15) ^ (np.uint64(stop - at) * factor)
        first = np.uint64(0)
        begin = at
        while at < stop:
            word = np.uint64(0)
            if at + 8 <= len(data):
                place = np.uint64(at)  # unsigned, and a constant count: the compiler makes one load of it
                for k in range(8):
                    word |= np.uint64(data[place + np.uint64(k)]) << np.uint64(8 * k)
                if stop - at < 8:
                    word &= (np.uint64(1) << np.uint64(8 * (stop - at))) - np.uint64(1)
            else:
                for k in range(min(8, stop - at)):
                    word |= np.uint64(data[at + k]) << np.uint64(8 * k)
            if at == begin:
                first = word
            word *= factor
            word ^= word >> np.uint64(47)
            h = (h ^ (word * factor)) * factor
            at += 8
        h ^= h >> np.uint64(47)
        h *= factor
        hashes[i] = h ^ (h >> np.uint64(47))
        firsts[i] = first


@compiled(
    types.int64(
        BYTES,
        BOUNDS,
        types.uint64[::1],
        types.uint64[::1],
        BOOLS,
        INTS,
        types.uint64[::1],
        types.int64[::1],
        types.uint64[:, ::1],
        types.uint8[::1],
        types.int64,
    )
)
def _map_rows(
    data: NDArray[np.uint8],
    bounds: NDArray[np.int32],
    hashes: NDArray[np.uint64],
    firsts: NDArray[np.uint64],
    valid: NDArray[np.bool_],
    indices: NDArray[np.int64],
    table: NDArray[np.uint64],
    rows: NDArray[np.int64],
    entries: NDArray[np.uint64],
    arena: NDArray[np.uint8],
    count: int,
) -> int:
    """Fill `rows`; returns the new number of keys. Only dictionary entries that a row uses become keys.

    All in one function, because a call that takes arrays counts references, which costs more than the rest.
    """
    by_index = len(indices) > 0
    mask = np.uint64(len(table) - 1)
    for i in range(len(rows)):
        if not valid[i]:
            rows[i] = -1
            continue
        key = indices[i] if by_index else i
        h = hashes[key]
        start = bounds[key]
        length = np.uint64(bounds[key + 1] - start)
        place = h & mask
        while True:
            held = table[place]
            if held == FREE:
                begin = entries[count, START]
                for k in range(length):
                    arena[begin + np.uint64(k)] = data[start + k]
                entries[count, HASH] = h
                entries[count, LENGTH] = length
                entries[count, FIRST] = firsts[key]
                entries[count + 1, START] = begin + length
                table[place] = (h & TAG) | np.uint64(count)
                rows[i] = count
                count += 1
                break
            if held & TAG == h & TAG:
                row = held & ~TAG
                same = entries[row, FIRST] == firsts[key] and entries[row, LENGTH] == length
                if same and length > np.uint64(8):
                    begin = entries[row, START]
                    for k in range(8, length):
                        if arena[begin + np.uint64(k)] != data[start + k]:
                            same = False
                            break
                if same:
                    rows[i] = np.int64(row)
                    break
            place = (place + np.uint64(1)) & mask
    return count


@compiled(types.void(types.uint64[:, ::1], types.int64, types.uint64[::1]))
def _rehash(entries: NDArray[np.uint64], count: int, table: NDArray[np.uint64]) -> None:
    mask = np.uint64(len(table) - 1)
    for row in range(count):
        h = entries[row, HASH]
        place = h & mask
        while table[place] != FREE:
            place = (place + np.uint64(1)) & mask
        table[place] = (h & TAG) | np.uint64(row)


class KeyIndex:
    """Rows 0 … n-1 for n distinct keys."""

    def __init__(self) -> None:
        self._count = 0
        self._table = np.full(1024, FREE, np.uint64)
        self._entries = np.zeros((513, 4), np.uint64)
        self._arena = np.empty(8192, np.uint8)

    def __len__(self) -> int:
        return self._count

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the index holds."""
        return self._table.nbytes + self._entries.nbytes + self._arena.nbytes

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
        bounds, data = string_buffers(values)
        valid = (
            np.asarray(keys.is_valid().to_numpy(zero_copy_only=False), np.bool_)
            if keys.null_count
            else np.ones(len(keys), np.bool_)
        )
        out = np.empty(len(keys), np.int64)
        hashes, firsts = np.empty(len(values), np.uint64), np.empty(len(values), np.uint64)
        _hash_keys(data, bounds, hashes, firsts)
        entries = min(len(keys), len(values))
        self._make_room(entries, int(bounds[-1]) - int(bounds[0]))
        self._count = _map_rows(
            data,
            bounds,
            hashes,
            firsts,
            valid,
            indices,
            self._table,
            out,
            self._entries,
            self._arena,
            self._count,
        )
        return out

    def keys(self) -> "pa.StringArray":
        """The keys in the order of their rows."""
        bounds = self._entries[: self._count + 1, START].astype(np.int64)
        buffers = (pa.py_buffer(bounds), pa.py_buffer(self._arena[: bounds[-1]].copy()))
        return pa.LargeStringArray.from_buffers(self._count, *buffers).cast(pa.string())

    def _make_room(self, more: int, more_bytes: int) -> None:
        needed = self._count + more
        if needed >= len(self._entries):
            self._entries = _grown(self._entries, self._count + 1, max(needed + 1, 2 * len(self._entries)))
        used = int(self._entries[self._count, START])
        if used + more_bytes > len(self._arena):
            self._arena = _grown(self._arena, used, max(used + more_bytes, 2 * len(self._arena)))
        if 2 * needed > len(self._table):
            self._table = np.full(1 << (2 * needed - 1).bit_length(), FREE, np.uint64)
            _rehash(self._entries, self._count, self._table)


def _grown(array: NDArray[Number], used: int, size: int) -> NDArray[Number]:
    bigger = np.zeros((size, *array.shape[1:]), array.dtype)
    bigger[:used] = array[:used]
    return bigger
