"""Where a key's aggregates lie in memory: one contiguous row of 64-bit words per key, for one column in one window.

The row is [newest tile, cached tile, bitmap of the tiles that hold values, cached cell, ring of cells]. Only the base
aggregates that a view asks for have a place, because cells are most of what a worker's memory holds.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

KERNEL_VERSION = 2
"""Changes with the layout of a row, here or in a snapshot, or the order of any sum: state of another version is rebuilt
by replay."""

NO_TILE = -(2**62)
"""Tiles are kept as their distance from this one, so that a row of zeros is empty and costs no page of memory."""
HEAD, CACHED, BITS = 0, 1, 2
"""Places in a row: newest tile that holds a value, tile whose predecessors are cached, first word of the bitmap."""


class Aggregation(Protocol):
    """What a layout needs to know of an aggregation."""

    @property
    def column(self) -> str: ...
    @property
    def function(self) -> str: ...
    @property
    def window_ms(self) -> int: ...


@dataclass(frozen=True)
class Layout:
    """Where the aggregates of one column in one window lie in a key's row of 64-bit words.

    A cell is [n, then only what is asked for: sum, min, max, (mean, M2), (time, offset, value) of the last]; `closed`
    is the place of the cached cell, `cells` of the first tile. Places of aggregates are within a cell, -1 if absent.
    """

    tile_ms: int
    window_tiles: int
    ring_tiles: int
    horizon_ms: int
    """window + lateness: tiles older than watermark - horizon, rounded down to a tile, count as empty."""
    sum: int
    min: int
    max: int
    moments: int
    last: int
    cell: int
    closed: int
    cells: int
    width: int

    @classmethod
    def plan(cls, window_ms: int, tile_ms: int, lateness_ms: int, functions: frozenset[str]) -> "Layout":
        """Lay out the base aggregates that `functions` (of AggregationSpec) need, and no others."""
        window_tiles = window_ms // tile_ms
        ring_tiles = window_tiles + -(-lateness_ms // tile_ms) + 1
        places = {"sum": -1, "min": -1, "max": -1, "moments": -1, "last": -1}
        cell = 1
        for name, users, size in (
            ("sum", {"sum", "mean"}, 1),
            ("min", {"min"}, 1),
            ("max", {"max"}, 1),
            ("moments", {"std"}, 2),
            ("last", {"last"}, 3),
        ):
            if functions & users:
                places[name] = cell
                cell += size
        closed = BITS + -(-ring_tiles // 64)
        return cls(
            tile_ms=tile_ms,
            window_tiles=window_tiles,
            ring_tiles=ring_tiles,
            horizon_ms=window_ms + lateness_ms,
            **places,
            cell=cell,
            closed=closed,
            cells=closed + cell,
            width=closed + cell + ring_tiles * cell,
        )

    def numbers(self) -> NDArray[np.int64]:
        """The layout as the kernel takes it: int64[13]."""
        return np.array(
            [
                self.tile_ms,
                self.window_tiles,
                self.ring_tiles,
                self.horizon_ms,
                self.sum,
                self.min,
                self.max,
                self.moments,
                self.last,
                self.cell,
                self.closed,
                self.cells,
                self.width,
            ],
            np.int64,
        )

    def outputs(self) -> dict[str, int]:
        """Row of the kernel's `out` that each base aggregate is written to; `moments` there is M2."""
        present = [name for name in ("sum", "min", "max", "moments", "last") if getattr(self, name) >= 0]
        return {name: row for row, name in enumerate(present)}


def layouts(
    aggregations: Iterable[Aggregation], tile_ms: Mapping[int, int], lateness_ms: int
) -> dict[tuple[int, str], Layout]:
    """The layout of each window (ms) and column, in the order in which they are first named; ``tile_ms`` by window."""
    functions: dict[tuple[int, str], set[str]] = {}
    for aggregation in aggregations:
        functions.setdefault((aggregation.window_ms, aggregation.column), set()).add(aggregation.function)
    return {
        (window_ms, column): Layout.plan(window_ms, tile_ms[window_ms], lateness_ms, frozenset(used))
        for (window_ms, column), used in functions.items()
    }


def key_bytes(aggregations: Iterable[Aggregation], tile_ms: Mapping[int, int], lateness_ms: int) -> int:
    """Memory of one key's windows, its name not counted."""
    return sum(layout.width * 8 for layout in layouts(aggregations, tile_ms, lateness_ms).values())
