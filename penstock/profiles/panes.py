"""Everything is counted per source partition and pane of event time, so that what an uncommitted partition added can
be taken out again when the partition is lost.
"""

import numpy as np
import numpy.typing as npt

from penstock.profiles.rows import Counts

_DENSE = 1 << 16

Slots = npt.NDArray[np.int64]


class Panes:
    """Which row of the accumulators belongs to which partition and pane; ``used`` rows have been given out."""

    def __init__(self, pane_ms: int) -> None:
        self.pane_ms = pane_ms
        self.used = 0
        self._slots: dict[tuple[int, int], int] = {}

    def slots(self, partition: npt.NDArray[np.int32], times: npt.NDArray[np.int64]) -> Slots:
        """int64[n]: the slot of every row. ``times``: ms since epoch."""
        if not len(times):
            return np.empty(0, np.int64)
        pane = times // self.pane_ms
        first, partitions = int(pane.min()), int(partition.max()) + 1
        if (int(pane.max()) - first + 1) * partitions > _DENSE:
            _, index, inverse = np.unique(np.stack([pane, partition]), axis=1, return_index=True, return_inverse=True)
            found = [self._slot(int(partition[i]), int(pane[i])) for i in index]
            return np.asarray(found, np.int64)[inverse.reshape(-1)]
        code = (pane - first) * partitions + partition
        present = np.flatnonzero(np.bincount(code))
        places = np.empty(int(present[-1]) + 1, np.int64)
        for one in present.tolist():
            places[one] = self._slot(one % partitions, first + one // partitions)
        slots: Slots = places[code]
        return slots

    def by_pane(self) -> dict[int, list[int]]:
        """Slots of every pane, by the ms since epoch at which it starts, oldest first."""
        panes: dict[int, list[int]] = {}
        for (_, pane), slot in sorted(self._slots.items(), key=lambda item: item[0][1]):
            panes.setdefault(pane * self.pane_ms, []).append(slot)
        return panes

    def forget(self, partition: int) -> None:
        """The slots of ``partition`` belong to nobody from now on."""
        self._slots = {key: slot for key, slot in self._slots.items() if key[0] != partition}

    def clear(self) -> None:
        self._slots = {}
        self.used = 0

    def _slot(self, partition: int, pane: int) -> int:
        # a forgotten slot is not given out again before everything is cleared
        slot = self._slots.setdefault((partition, pane), self.used)
        self.used = max(self.used, slot + 1)
        return slot


def grown(counts: Counts, slots: int) -> Counts:
    """``counts``: int64[s, …] with room for ``slots`` slots."""
    if slots <= len(counts):
        return counts
    bigger = np.zeros((slots, *counts.shape[1:]), np.int64)
    bigger[: len(counts)] = counts
    return bigger
