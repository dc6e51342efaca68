"""Walks all values of a batch at once, field by field, to find the rows that are not what their schema says, and why.

Only a batch that failed as a whole comes here. A step moves every row's position over one field with numpy, so half
the rows may be bad and nothing is done per row; only rows with long arrays, once few are left in step, are handed back
undecided.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from penstock.codec.decoded import BadRow
from penstock.codec.shapes import Array, Enum, Map, Primitive, Record, Shape, Union

MALFORMED = "truncated or malformed avro"
TRAILING = "trailing bytes"
_FEW = 16
# a step costs some 100 µs however few rows it moves, and a value of 16 MiB may hold as many items
_MOST_STEPS = 1000
_Rows = npt.NDArray[np.intp]


@dataclass(slots=True)
class _Walk:
    data: npt.NDArray[np.uint8]
    at: npt.NDArray[np.int64]
    end: npt.NDArray[np.int64]
    fault: npt.NDArray[np.int32]
    faults: list[str] = field(default_factory=lambda: [""])
    undecided: list[_Rows] = field(default_factory=list)

    def fail(self, rows: _Rows, why: str) -> None:
        if len(rows):
            self.fault[rows] = len(self.faults)
            self.faults.append(why)

    def split(self, rows: _Rows, bad: npt.NDArray[np.bool_], why: str) -> _Rows:
        """Rows less the bad ones, which fail."""
        if not bad.any():
            return rows
        self.fail(rows[bad], why)
        return rows[~bad]

    def skip(self, rows: _Rows, size: int | npt.NDArray[np.int64], path: str) -> _Rows:
        self.at[rows] += size
        return self.split(rows, self.at[rows] > self.end[rows], f"field {path!r}: the value ends inside it")

    def varint(self, rows: _Rows, path: str) -> tuple[_Rows, npt.NDArray[np.int64]]:
        coded = np.zeros(len(rows), np.uint64)
        at = self.at[rows]
        end = self.end[rows]
        going = np.arange(len(rows))
        short = np.zeros(len(rows), np.bool_)
        for shift in range(0, 70, 7):
            out = at[going] >= end[going]
            if out.any():
                short[going[out]] = True
                going = going[~out]
            byte = self.data[at[going]]
            at[going] += 1
            coded[going] |= (byte & 0x7F).astype(np.uint64) << np.uint64(shift)
            going = going[byte >= 0x80]
            if not len(going):
                break
        self.at[rows] = at
        value = (coded >> np.uint64(1)).view(np.int64) ^ -(coded & np.uint64(1)).view(np.int64)
        long = np.zeros(len(rows), np.bool_)
        long[going] = True
        self.fail(rows[short], f"field {path!r}: the value ends inside a number")
        self.fail(rows[long], f"field {path!r}: a number of more than ten bytes")
        fine = ~(short | long)
        return (rows, value) if fine.all() else (rows[fine], value[fine])

    def step(self, rows: _Rows, shape: Shape, path: str) -> _Rows:
        """Moves ``rows`` over one value of ``shape``; the rows that are still in order."""
        if not len(rows):
            return rows
        match shape:
            case Primitive("null"):
                return rows
            case Primitive("boolean"):
                rows = self.skip(rows, 1, path)
                return self.split(rows, self.data[self.at[rows] - 1] > 1, f"field {path!r}: neither true nor false")
            case Primitive("float"):
                return self.skip(rows, 4, path)
            case Primitive("double"):
                return self.skip(rows, 8, path)
            case Primitive("int"):
                rows, value = self.varint(rows, path)
                wide = (value < -(1 << 31)) | (value >= 1 << 31)
                return self.split(rows, wide, f"field {path!r}: an int of more than 32 bits")
            case Primitive("long"):
                return self.varint(rows, path)[0]
            case Primitive():
                return self.text(rows, path)
            case Enum(_, symbols):
                rows, value = self.varint(rows, path)
                return self.split(
                    rows, (value < 0) | (value >= len(symbols)), f"field {path!r}: no such symbol of {len(symbols)}"
                )
            case Record(_, fields):
                for f in fields:
                    rows = self.step(rows, f.shape, f"{path}.{f.name}" if path else f.name)
                return rows
            case Union(branches):
                return self.choose(rows, branches, path)
            case Array(items):
                return self.blocks(rows, (items,), path)
            case Map(values):
                return self.blocks(rows, (Primitive("string"), values), path)

    def text(self, rows: _Rows, path: str) -> _Rows:
        rows, length = self.varint(rows, path)
        negative = length < 0
        if negative.any():
            self.fail(rows[negative], f"field {path!r}: a negative length")
            rows, length = rows[~negative], length[~negative]
        # a length may be near 2^63: compare before adding
        over = length > self.end[rows] - self.at[rows]
        if over.any():
            self.fail(rows[over], f"field {path!r}: its length reaches beyond the value")
            rows, length = rows[~over], length[~over]
        self.at[rows] += length
        return rows

    def choose(self, rows: _Rows, branches: tuple[Shape, ...], path: str) -> _Rows:
        rows, branch = self.varint(rows, path)
        wrong = (branch < 0) | (branch >= len(branches))
        if wrong.any():
            self.fail(rows[wrong], f"field {path!r}: no such branch of {len(branches)}")
            rows, branch = rows[~wrong], branch[~wrong]
        return np.concatenate([self.step(rows[branch == i], b, path) for i, b in enumerate(branches)])

    def blocks(self, rows: _Rows, items: tuple[Shape, ...], path: str) -> _Rows:
        done: list[_Rows] = []
        left = np.zeros(len(self.at), np.int64)
        steps = 0
        while len(rows):
            steps += 1
            if steps > _MOST_STEPS or (len(rows) <= _FEW and len(self.at) > _FEW):
                self.undecided.append(rows)
                break
            fresh = rows[left[rows] == 0]
            inside = rows[left[rows] > 0]
            fresh, count = self.varint(fresh, path)
            sized = count < 0
            if sized.any():
                # a negative count is followed by the block's size in bytes
                kept, _ = self.varint(fresh[sized], path)
                least = count == np.iinfo(np.int64).min
                left[fresh] = np.where(least, np.iinfo(np.int64).max, np.abs(count))
                fresh = np.concatenate([fresh[~sized], kept])
            else:
                left[fresh] = count
            done.append(fresh[left[fresh] == 0])
            rows = np.concatenate([inside, fresh[left[fresh] > 0]])
            for shape in items:
                rows = self.step(rows, shape, path)
            left[rows] -= 1
        return np.concatenate(done) if done else rows[:0]


def find_faults(
    data: npt.NDArray[np.uint8], start: npt.NDArray[np.int64], end: npt.NDArray[np.int64], record: Record
) -> tuple[dict[int, BadRow], _Rows]:
    """What is wrong with the values ``data[start[i]:end[i]]``, and the rows that could not be decided.

    ``start``, ``end``: int64[n]. UTF-8 is not looked at. A value that is well-formed in an unusual way (overlong
    varints, blocks with sizes) is in order.
    """
    padded: npt.NDArray[Any] = np.append(data, np.uint8(0)) if len(data) == 0 else data
    walk = _Walk(padded, start.copy(), end, np.zeros(len(start), np.int32))
    walk.step(np.arange(len(start)), record, "")
    undecided = np.concatenate(walk.undecided) if walk.undecided else np.empty(0, np.intp)
    bad = {int(i): BadRow(MALFORMED, f"{walk.faults[walk.fault[i]]}.") for i in np.flatnonzero(walk.fault)}
    walk.at[undecided] = end[undecided]
    for i in np.flatnonzero((walk.fault == 0) & (walk.at < end)).tolist():
        extra = int(end[i] - walk.at[i])
        bad[i] = BadRow(TRAILING, f"{extra} bytes follow the last field. Was it written with another schema?")
    return bad, undecided
