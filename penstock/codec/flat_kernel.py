"""The loops over flat Avro records: bytes to a matrix of numbers, and the matrix to bytes.

A record is a program of three operations on the rows of a matrix, int64[slots, n or more]: a number's slot holds its
value or its bits, a text has one slot for its length and the next for where it begins, a nullable field has one for its
branch. Nothing outside the buffer is read, whatever the bytes are. The machine is taken to be little-endian.
"""

import numpy as np
from numba import types
from numpy.typing import NDArray

from penstock.jit import INTS, compiled

Longs = NDArray[np.int64]
Bytes = NDArray[np.uint8]

VARINT, FIXED, TEXT = 0, 1, 2
"""Operations: a zigzag number; a little-endian one of ``SIZE`` bytes; a text after its length, a zigzag number."""

OPERATION, SLOT, GUARD, NULL, LOW, HIGH, SIZE = range(7)
"""Columns of a program: where slot ``GUARD`` (-1: none) holds ``NULL`` there is no value. ``LOW`` … ``HIGH``: what is
allowed. ``SIZE``: the most bytes it takes, the text itself aside.
"""

BLOCK = 256
"""Rows that are read field by field: few enough for their bytes to stay in the nearest cache."""

WORD = 8
"""Text is copied by words, the last one beyond its end, so buffers have this many bytes to spare."""

_BYTES = types.Array(types.uint8, 1, "C", readonly=True)
_PROGRAM = types.Array(types.int64, 2, "C", readonly=True)


@compiled(types.int64(_BYTES, INTS, INTS, types.int64, _PROGRAM, types.int64[::1], types.int64[:, ::1]))
def read_rows(data: Bytes, starts: Longs, ends: Longs, skip: int, program: Longs, at: Longs, matrix: Longs) -> int:
    """Fill `matrix`, and with `at` where every row was read to; returns the first malformed row found, -1 for none."""
    n = len(starts)
    for i in range(n):
        if not 0 <= starts[i] <= ends[i] <= len(data) or ends[i] - starts[i] < skip:
            return i
        at[i] = starts[i] + skip
    for first in range(0, n, BLOCK):
        last = min(first + BLOCK, n)
        for step in range(len(program)):
            operation, slot, guard = program[step, OPERATION], program[step, SLOT], program[step, GUARD]
            null, low, high, size = program[step, NULL], program[step, LOW], program[step, HIGH], program[step, SIZE]
            for i in range(first, last):
                if guard >= 0 and matrix[guard, i] == null:
                    matrix[slot, i] = 0
                    continue
                place, left = at[i], ends[i] - at[i]
                word = np.uint64(0)
                if operation == FIXED:
                    count = size
                    if left < count:
                        return i
                    if count == 8:
                        begin = np.uint64(place)  # unsigned, and a constant count: the compiler makes one load of it
                        for k in range(8):
                            word |= np.uint64(data[begin + np.uint64(k)]) << np.uint64(8 * k)
                    else:
                        for k in range(count):
                            word |= np.uint64(data[np.uint64(place + k)]) << np.uint64(8 * k)
                else:
                    if left < 1:
                        return i
                    byte = data[np.uint64(place)]
                    word = np.uint64(byte & 0x7F)
                    count = 1
                    while byte >= 0x80:
                        if count == min(left, 10):
                            return i
                        byte = data[np.uint64(place + count)]
                        word |= np.uint64(byte & 0x7F) << np.uint64(7 * count)
                        count += 1
                    word = (word >> np.uint64(1)) ^ (np.uint64(0) - (word & np.uint64(1)))
                value = np.int64(word)
                if value < low or value > high:
                    return i
                matrix[slot, i] = value
                place += count
                if operation == TEXT:
                    if value > left - count:
                        return i
                    matrix[slot + 1, i] = place
                    place += value
                at[i] = place
    for i in range(n):
        if at[i] != ends[i]:
            return i
    return -1


@compiled(types.void(_BYTES, INTS, types.int64[:, ::1], types.int32[:, ::1], types.uint8[::1]))
def gather_texts(data: Bytes, slots: Longs, matrix: Longs, bounds: NDArray[np.int32], texts: Bytes) -> None:
    """The texts of `slots`, column after column, into `texts`; and the offsets of each from its first, `bounds`."""
    place = 0
    for t in range(len(slots)):
        base, slot = place, slots[t]
        bounds[t, 0] = 0
        for i in range(bounds.shape[1] - 1):
            start, stop = matrix[slot + 1, i], place + matrix[slot, i]
            while place < stop:
                to = np.uint64(place)
                if start + WORD <= len(data):
                    begin = np.uint64(start)
                    word = np.uint64(0)
                    for k in range(WORD):
                        word |= np.uint64(data[begin + np.uint64(k)]) << np.uint64(8 * k)
                    for k in range(WORD):
                        texts[to + np.uint64(k)] = np.uint8(word >> np.uint64(8 * k))
                else:
                    for k in range(min(WORD, stop - place)):
                        texts[to + np.uint64(k)] = data[start + k]
                place += WORD
                start += WORD
            place = stop
            bounds[t, i + 1] = place - base


@compiled(types.int64(_BYTES, _PROGRAM, types.int64[:, ::1], _BYTES, types.int32[::1], types.uint8[::1]))
def write_rows(
    prefix: Bytes, program: Longs, matrix: Longs, texts: Bytes, bounds: NDArray[np.int32], out: Bytes
) -> int:
    """Write every row to `out` and where it ends to `bounds`; returns how many bytes they took."""
    place = 0
    for i in range(len(bounds) - 1):
        for k in range(len(prefix)):
            out[place + k] = prefix[k]
        place += len(prefix)
        for step in range(len(program)):
            slot, guard = program[step, SLOT], program[step, GUARD]
            if guard >= 0 and matrix[guard, i] == program[step, NULL]:
                continue
            operation, value = program[step, OPERATION], matrix[slot, i]
            if operation == FIXED:
                to, word = np.uint64(place), np.uint64(value)
                for k in range(WORD):
                    out[to + np.uint64(k)] = np.uint8(word >> np.uint64(8 * k))
                place += program[step, SIZE]
                continue
            word = np.uint64((value << 1) ^ (value >> 63))
            while word >= np.uint64(0x80):
                out[np.uint64(place)] = np.uint8(word) | np.uint8(0x80)
                word >>= np.uint64(7)
                place += 1
            out[np.uint64(place)] = np.uint8(word)
            place += 1
            if operation == TEXT:
                start, stop = matrix[slot + 1, i], place + value
                while place < stop:
                    begin, to = np.uint64(start), np.uint64(place)
                    word = np.uint64(0)
                    for k in range(WORD):
                        word |= np.uint64(texts[begin + np.uint64(k)]) << np.uint64(8 * k)
                    for k in range(WORD):
                        out[to + np.uint64(k)] = np.uint8(word >> np.uint64(8 * k))
                    start += WORD
                    place += WORD
                place = stop
        bounds[i + 1] = place
    return place
