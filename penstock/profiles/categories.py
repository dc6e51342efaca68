"""Categories counted by the reference's list; those that it never saw are counted apart, and some of them named."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from penstock.profiles.panes import Slots, grown
from penstock.profiles.reference import ColumnProfile
from penstock.profiles.rows import NAMES, top_names
from penstock.windows.keys import KeyIndex

_KEPT_KEYS = 1 << 16


class Categories:
    """Accumulators of one string column over slots. Without a reference only nulls are counted."""

    def __init__(self, feature: str, reference: ColumnProfile | None) -> None:
        self.feature = feature
        self._reference = reference
        self._width = 0 if reference is None else len(reference.categories) + 1
        # the last two columns count the unseen and the nulls
        self._counts = np.zeros((0, self._width + 2), np.int64)
        self._names: dict[int, dict[str, int]] = {}
        self._known = KeyIndex()
        self._learn()

    def add(self, values: "pa.Array", slots: Slots, slot_count: int) -> None:
        """``values``: string[n]; ``slots``: int64[n], all below ``slot_count``."""
        self._counts = grown(self._counts, slot_count)
        if self._reference is None:
            place = np.where(_validity(values), -1, self._width + 1)
            place, slots = place[place >= 0], slots[place >= 0]
        else:
            codes = self._known.rows(values)
            place = self._places[np.minimum(codes, len(self._places) - 2)]
            if self._reference.complete:
                self._name(values, codes, slots)
            if len(self._known) > len(self._places) + _KEPT_KEYS:
                self._learn()
        width = self._counts.shape[1]
        self._counts += np.bincount(slots * width + place, minlength=self._counts.size).reshape(self._counts.shape)

    def sums(self, slot: int) -> dict[str, Any]:
        """The fields of the slot's profile row."""
        counts = self._counts[slot]
        names = top_names(self._names.get(slot, {}).items())
        return {
            "feature": self.feature,
            "kind": "categorical",
            "nulls": int(counts[-1]),
            "unseen": int(counts[-2]),
            "bins": counts[:-2],
            "names": list(names),
            "name_counts": list(names.values()),
        }

    def clear(self) -> None:
        self._counts = np.zeros((0, self._width + 2), np.int64)
        self._names = {}

    def _learn(self) -> None:
        """(Re)build the index of known categories: without what it learned of unseen ones, which may be without end."""
        if self._reference is None:
            return
        known = [*self._reference.categories, *self._reference.rest]
        self._known = KeyIndex()
        self._known.rows(pa.array(known, pa.string()))
        top = len(self._reference.categories)
        unseen = self._width if self._reference.complete else self._width - 1
        # by code: the category's bin; all codes beyond share the second but last entry, code -1 finds the nulls
        self._places = np.array(
            [*range(top), *[self._width - 1] * len(self._reference.rest), unseen, self._width + 1], np.int64
        )

    def _name(self, values: "pa.Array", codes: npt.NDArray[np.int64], slots: Slots) -> None:
        unseen = np.flatnonzero(codes >= len(self._places) - 2)
        if not len(unseen):
            return
        for slot in np.unique(slots[unseen]).tolist():
            rows = unseen[slots[unseen] == slot]
            _, first, counts = np.unique(codes[rows], return_index=True, return_counts=True)
            chosen = np.argsort(-counts, kind="stable")[:NAMES]
            names = values.take(pa.array(rows[first[chosen]])).to_pylist()
            seen = self._names.setdefault(slot, {})
            for name, count in zip(names, counts[chosen].tolist(), strict=True):
                seen[name] = seen.get(name, 0) + count
            if len(seen) > 4 * NAMES:
                self._names[slot] = top_names(seen.items())


def _validity(values: "pa.Array") -> npt.NDArray[np.bool_]:
    return np.asarray(values.is_valid().to_numpy(zero_copy_only=False), np.bool_)
