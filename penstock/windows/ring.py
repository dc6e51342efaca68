"""The tiles of one column in one window for all keys, and how what the kernel reads from them becomes Arrow columns.

Windows of different length have rings of their own, even over one column: each keeps only as many tiles as it needs.
"""

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from penstock.windows.kernel import measure, pack, unpack
from penstock.windows.layout import NO_TILE, Layout, layouts
from penstock.windows.spec import AggregationSpec, ViewSpec

FIRST_WORDS = 2**21
"""Words that a ring asks for at first: 16 MiB of address space, of which only the pages of used rows become memory."""

_LAST_TYPES = {
    "bool": pa.bool_(),
    "int32": pa.int32(),
    "int64": pa.int64(),
    "float32": pa.float32(),
    "float64": pa.float64(),
}


class Ring:
    """Tiles of one column in one window, for all keys."""

    def __init__(self, column: str, layout: Layout, aggregations: list[tuple[int, AggregationSpec]]) -> None:
        self.column = column
        self.layout = layout
        self.numbers = layout.numbers()
        self.aggregations = aggregations
        self.ints = np.empty((0, layout.width), np.int64)
        self.cells = self.ints.view(np.float64)
        self.used = 0

    def make_room(self, keys: int) -> None:
        have = len(self.ints)
        if keys <= have:
            self.used = keys
            return
        bigger = np.zeros((max(keys, 2 * have, FIRST_WORDS // self.layout.width), self.layout.width), np.int64)
        bigger[: self.used] = self.ints[: self.used]
        self.ints = bigger
        self.cells = bigger.view(np.float64)
        self.used = keys

    def oldest(self, watermark: int) -> int:
        """First tile that can still count. No row has one before the first watermark."""
        return max((watermark - self.layout.horizon_ms) // self.layout.tile_ms, NO_TILE + 1)

    def packed(self, slots: NDArray[np.int64], watermark: int) -> "pa.LargeListArray":
        """The rows of ``slots`` less what can no longer count: most keys have values in few of their tiles."""
        starts, oldest = np.empty(len(slots) + 1, np.int64), self.oldest(watermark)
        measure(self.ints, slots, oldest, self.numbers, starts)
        words = np.empty(starts[-1], np.int64)
        pack(self.ints, slots, oldest, self.numbers, starts, words)
        return pa.LargeListArray.from_arrays(arrow(starts, pa.int64(), None), arrow(words, pa.int64(), None))

    def unpack(self, rows: "pa.LargeListArray") -> None:
        """Holds these rows and no others. Raises ``ValueError`` where they are no rows of this layout."""
        words, starts = rows.values.to_numpy(), rows.offsets.to_numpy()
        ints = np.zeros((len(rows), self.layout.width), np.int64)
        if not unpack(words, starts, self.numbers, ints):
            raise ValueError(f"rows of {self.column!r} are not of this window's form. Rebuild the state by replay.")
        self.ints, self.cells, self.used = ints, ints.view(np.float64), len(ints)


def rings(spec: ViewSpec) -> list[Ring]:
    """One of each window and column."""
    return [
        Ring(
            column,
            layout,
            [(at, a) for at, a in enumerate(spec.aggregations) if (a.window_ms, a.column) == (window_ms, column)],
        )
        for (window_ms, column), layout in layouts(spec.aggregations, spec.tile_ms, spec.lateness_ms).items()
    ]


def as_column(
    aggregation: AggregationSpec,
    layout: Layout,
    n: NDArray[np.float64],
    out: NDArray[np.float64],
    null_key: NDArray[np.bool_] | None,
) -> "pa.Array[Any]":
    if aggregation.function == "count":
        return arrow(n.astype(np.int64), pa.int64(), null_key)
    row = layout.outputs()
    few = n < (2.0 if aggregation.function == "std" else 1.0)
    missing = few if few.any() else None  # a null key has n = 0
    if aggregation.function == "mean":
        return arrow(out[row["sum"]] / np.maximum(n, 1.0), pa.float64(), missing)
    if aggregation.function == "std":
        return arrow(np.sqrt(out[row["moments"]] / np.maximum(n - 1.0, 1.0)), pa.float64(), missing)
    values = arrow(out[row[aggregation.function]], pa.float64(), missing)
    return values.cast(_LAST_TYPES[aggregation.column_type]) if aggregation.function == "last" else values


def arrow(values: NDArray[Any], dtype: "pa.DataType", missing: NDArray[np.bool_] | None) -> "pa.Array[Any]":
    """An Arrow array over the memory of `values`; pa.array() would import pandas, at a second and 60 MB."""
    valid = None if missing is None else pa.py_buffer(np.packbits(~missing, bitorder="little"))
    return pa.Array.from_buffers(dtype, len(values), [valid, pa.py_buffer(values)])
