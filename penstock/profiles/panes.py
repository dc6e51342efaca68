"""Panes of event time, and which row of the accumulators belongs to which."""

import numpy as np
import numpy.typing as npt

from penstock.profiles.rows import Counts

_DENSE = 1 << 16

Slots = npt.NDArray[np.int64]


class Panes:
    """``starts[slot]`` is where a pane begins, ms since epoch."""

    def __init__(self, pane_ms: int) -> None:
        self.pane_ms = pane_ms
        self.starts: list[int] = []
        self._slots: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self.starts)

    def slots(self, times: npt.NDArray[np.int64]) -> Slots:
        """int64[n]: the slot of every row. ``times``: ms since epoch."""
        if not len(times):
            return np.empty(0, np.int64)
        pane = times // self.pane_ms
        first, last = int(pane.min()), int(pane.max())
        if first == last:
            return np.full(len(times), self._slot(first), np.int64)
        if last - first >= _DENSE:
            present, inverse = np.unique(pane, return_inverse=True)
            return np.array([self._slot(one) for one in present.tolist()], np.int64)[inverse]
        pane -= first
        places = np.empty(last - first + 1, np.int64)
        for one in np.flatnonzero(np.bincount(pane)).tolist():
            places[one] = self._slot(first + one)
        return places[pane]

    def clear(self) -> None:
        self.starts = []
        self._slots = {}

    def _slot(self, pane: int) -> int:
        slot = self._slots.get(pane)
        if slot is None:
            slot = self._slots[pane] = len(self.starts)
            self.starts.append(pane * self.pane_ms)
        return slot


def grown(counts: Counts, slots: int) -> Counts:
    """``counts``: int64[s, …] with room for ``slots`` slots."""
    if slots <= len(counts):
        return counts
    bigger = np.zeros((slots, *counts.shape[1:]), np.int64)
    bigger[: len(counts)] = counts
    return bigger
