"""Batches reduced to partial profiles that can be added: counts per reference bin, nulls, moments, categories. No raw
row is kept.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from penstock.profiles.binning import Floats, Kind, as_floats
from penstock.profiles.categories import Categories
from penstock.profiles.kernel import add_numbers
from penstock.profiles.panes import Panes, Slots, grown
from penstock.profiles.reference import ColumnProfile
from penstock.profiles.rows import Counts, ProfileRow


class Measure(NamedTuple):
    """A number that is profiled: ``edges`` empty where there is no reference."""

    feature: str
    kind: Kind
    edges: Floats


class Numbers:
    """Accumulators of k numeric measures over slots."""

    def __init__(self, measures: Sequence[Measure]) -> None:
        self.measures = tuple(measures)
        widest = max((len(m.edges) for m in self.measures), default=0)
        self._edges = np.full((len(self.measures), widest), np.inf)
        for row, measure in zip(self._edges, self.measures, strict=True):
            row[: len(measure.edges)] = measure.edges
        self._widths = np.array([len(m.edges) for m in self.measures], np.int64)
        self._allocate(0)

    def add(self, values: Floats, slots: Slots, slot_count: int) -> None:
        """``values``: float64[k, n], NaN for null; ``slots``: int64[n], all below ``slot_count``."""
        if slot_count > len(self._nulls):
            before, used = self._arrays(), len(self._nulls)
            self._allocate(max(slot_count, 2 * used))
            for new, old in zip(self._arrays(), before, strict=True):
                new[:used] = old
        add_numbers(values, slots, self._edges, self._widths, *self._arrays())

    def sums(self, slot: int) -> list[dict[str, Any]]:
        """Per measure the fields of the slot's profile row."""
        return [
            {
                "feature": measure.feature,
                "kind": measure.kind,
                "nulls": int(self._nulls[slot, i]),
                "bins": self._bins[slot, i, : len(measure.edges) + 1] if len(measure.edges) else np.empty(0, np.int64),
                "n": int(self._n[slot, i]),
                "mean": float(self._mean[slot, i]),
                "m2": float(self._m2[slot, i]),
                "min": float(self._low[slot, i]) if self._n[slot, i] else None,
                "max": float(self._high[slot, i]) if self._n[slot, i] else None,
            }
            for i, measure in enumerate(self.measures)
        ]

    def clear(self) -> None:
        self._allocate(0)

    def _allocate(self, slots: int) -> None:
        k = len(self.measures)
        self._bins = np.zeros((slots, k, self._edges.shape[1] + 1), np.int64)
        self._nulls = np.zeros((slots, k), np.int64)
        self._n = np.zeros((slots, k), np.int64)
        self._mean = np.zeros((slots, k))
        self._m2 = np.zeros((slots, k))
        self._low = np.full((slots, k), np.inf)
        self._high = np.full((slots, k), -np.inf)

    def _arrays(self) -> tuple[npt.NDArray[Any], ...]:
        return (self._bins, self._nulls, self._n, self._mean, self._m2, self._low, self._high)


class ColumnPartials:
    """Partial profiles of the columns of one topic.

    ``columns``: name and kind; ``references``: those that have one, others count only nulls and moments.
    ``reference``: id of the profile that they are from. ``window_ms``: panes of one window are counted together (see
    ``Panes``). ``model``, ``version``: written into every row.
    """

    def __init__(
        self,
        columns: Sequence[tuple[str, Kind]],
        references: dict[str, ColumnProfile],
        pane_ms: int,
        window_ms: int = 0,
        reference: str = "",
        model: str = "",
        version: str = "",
    ) -> None:
        self.panes = Panes(pane_ms, window_ms)
        self._stamp: dict[str, Any] = {"model": model, "version": version}
        self._reference = reference
        self._referenced = frozenset(name for name, kind in columns if _fits(references.get(name), kind))
        edges = {name: np.asarray(references[name].edges, np.float64) for name in self._referenced}
        self._numbers = Numbers(
            [Measure(name, kind, edges.get(name, np.empty(0))) for name, kind in columns if kind != "categorical"]
        )
        self._categories = [
            Categories(name, references[name] if name in self._referenced else None)
            for name, kind in columns
            if kind == "categorical"
        ]
        self._rows: Counts = np.zeros(0, np.int64)

    def add(self, rows: "pa.RecordBatch", times: npt.NDArray[np.int64]) -> None:
        """Count a batch. ``times``: event times, ms since epoch. Raises before anything is counted when a column is
        missing or of another type.
        """
        numbers = np.empty((len(self._numbers.measures), rows.num_rows))
        for row, measure in zip(numbers, self._numbers.measures, strict=True):
            row[:] = as_floats(rows.column(measure.feature))
        strings = [rows.column(column.feature) for column in self._categories]
        slots = self.panes.slots(times)
        used = len(self.panes)
        self._rows = grown(self._rows, used)
        self._rows += np.bincount(slots, minlength=len(self._rows))
        self._numbers.add(numbers, slots, used)
        for column, values in zip(self._categories, strings, strict=True):
            column.add(values, slots, used)

    def drain(self) -> list[ProfileRow]:
        """The partial profiles since the last call, one per measure and pane or window, and start anew."""
        drained = []
        for slot, (pane, end) in enumerate(self.panes.spans):
            rows = int(self._rows[slot])
            for sums in (*self._numbers.sums(slot), *(column.sums(slot) for column in self._categories)):
                reference = self._reference if sums["feature"] in self._referenced else ""
                drained.append(
                    ProfileRow(pane=pane, pane_ms=end - pane, rows=rows, reference=reference, **self._stamp, **sums)
                )
        self.panes.clear()
        self._rows = np.zeros(0, np.int64)
        self._numbers.clear()
        for column in self._categories:
            column.clear()
        return drained


def _fits(reference: ColumnProfile | None, kind: Kind) -> bool:
    return reference is not None and reference.kind == kind and (kind == "categorical" or len(reference.edges) > 0)
