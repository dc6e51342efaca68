"""The headers of a poll as columns: few rows have some, so they are looked into only where something asks for them."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from penstock.records import Header, Int64s


@dataclass(frozen=True, slots=True)
class Headers:
    """All headers of a topic's ``n`` rows, in order. ``rows``: int64[m], which row each belongs to; ``names``,
    ``values``: binary[m]."""

    n: int
    rows: Int64s
    names: "pa.BinaryArray"
    values: "pa.BinaryArray"

    @staticmethod
    def none(n: int) -> "Headers":
        """No row has any."""
        return Headers(n, np.empty(0, np.int64), pa.nulls(0, pa.binary()), pa.nulls(0, pa.binary()))

    @staticmethod
    def listed(rows: list[list[Header]]) -> "Headers":
        """Of rows that have their headers with them."""
        flat = [(row, name.encode(), value) for row, headers in enumerate(rows) for name, value in headers]
        places, names, values = zip(*flat, strict=True) if flat else ((), (), ())
        return Headers(
            len(rows), np.array(places, np.int64), pa.array(names, pa.binary()), pa.array(values, pa.binary())
        )

    def of(self, row: int) -> list[Header]:
        """The headers of one row."""
        first, last = np.searchsorted(self.rows, [row, row + 1]).tolist()
        found = zip(self.names[first:last].to_pylist(), self.values[first:last].to_pylist(), strict=True)
        return [(name.decode(errors="replace"), value) for name, value in found]

    def texts(self, name: str) -> "pa.Array | None":
        """The first header ``name`` of each row, string[n]; None when no row has one. What is no ASCII is none."""
        named = np.asarray(pc.equal(self.names, name.encode()).to_numpy(zero_copy_only=False), np.bool_)
        places = np.flatnonzero(named)
        texts = [
            value if value and value.isascii() else None for value in self.values.take(pa.array(places)).to_pylist()
        ]
        if not any(texts):
            return None
        rows, first = np.unique(self.rows[places], return_index=True)
        at = np.full(self.n, -1, np.int64)
        at[rows] = first
        return pa.array(texts, pa.binary()).cast(pa.string()).take(pa.array(at, mask=at < 0))
