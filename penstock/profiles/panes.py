"""Panes of event time, and which row of the accumulators belongs to which."""

import numpy as np
import numpy.typing as npt

from penstock.profiles.rows import Counts

_DENSE = 1 << 16
_LATEST = np.iinfo(np.int64).max

Slots = npt.NDArray[np.int64]


class Panes:
    """Slots for panes of event time, those of one window together.

    Live, a flush holds one pane; in a replay of months it holds hundreds, and a row for each would drown whoever
    merges them. ``window_ms``: 0 keeps every pane apart. ``spans[slot]``: from the start of its first pane to the end
    of its last, ms since epoch.
    """

    def __init__(self, pane_ms: int, window_ms: int = 0) -> None:
        self._pane_ms, self._window_ms = pane_ms, window_ms or pane_ms
        self.spans: list[tuple[int, int]] = []
        self._slots: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self.spans)

    def slots(self, times: npt.NDArray[np.int64]) -> Slots:
        """int64[n]: the slot of every row. ``times``: ms since epoch."""
        if not len(times):
            return np.empty(0, np.int64)
        pane = times // self._pane_ms
        # a pane is in the window in which it starts
        group = pane * self._pane_ms // self._window_ms
        first, last = int(group.min()), int(group.max())
        if first == last:
            return np.full(len(times), self._slot(first, pane), np.int64)
        if last - first >= _DENSE:
            present, place = np.unique(group, return_inverse=True)
        else:
            place = group - first
            present = np.flatnonzero(np.bincount(place)) + first
            lookup = np.empty(last - first + 1, np.int64)
            lookup[present - first] = np.arange(len(present))
            place = lookup[place]
        low, high = np.full(len(present), _LATEST), np.full(len(present), -_LATEST)
        np.minimum.at(low, place, pane)
        np.maximum.at(high, place, pane)
        slots = [self._slot(one, np.array(ends)) for one, *ends in zip(present.tolist(), low, high, strict=True)]
        return np.array(slots, np.int64)[place]

    def clear(self) -> None:
        self.spans = []
        self._slots = {}

    def _slot(self, group: int, panes: npt.NDArray[np.int64]) -> int:
        start, end = int(panes.min()) * self._pane_ms, (int(panes.max()) + 1) * self._pane_ms
        slot = self._slots.get(group)
        if slot is None:
            slot = self._slots[group] = len(self.spans)
            self.spans.append((start, end))
        else:
            before = self.spans[slot]
            self.spans[slot] = min(before[0], start), max(before[1], end)
        return slot


def grown(counts: Counts, slots: int) -> Counts:
    """``counts``: int64[s, …] with room for ``slots`` slots."""
    if slots <= len(counts):
        return counts
    bigger = np.zeros((slots, *counts.shape[1:]), np.int64)
    bigger[: len(counts)] = counts
    return bigger
