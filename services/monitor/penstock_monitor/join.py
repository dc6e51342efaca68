"""The label join of one partition of ``NAME.outcomes``: predictions wait for their label, labels for their
prediction.

By event time, and by two clocks: labels come straight from ingest and may run days ahead of the predictions when a
backlog is read, so a prediction is given up when the *labels* are a horizon past it, and a label when the predictions
are. Where one side falls silent, the own side's clock ends the wait after two horizons.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa

from penstock.records import string_buffers
from penstock.snapshots.entries import as_table, from_table
from penstock_monitor.meeting import CLOCK, ENTRY, GONE, LABEL, NEVER, PREDICTION, meet, move

JOIN_VERSION = 2
"""Rises with any change of what waits, or of the form it is kept in."""
SWEEPS_PER_HORIZON = 8
_FIRST_ROOM = 1024

Int64s = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Facts:
    """Rows of ``NAME.outcomes`` as columns, all of length n. ``times``: int64, event time in ms since epoch.
    ``served``: int64, which model and version; -1 of a label. ``predicted``: int64, 1 or 0, -1 when there is none.
    ``score``, ``baseline``, ``value``: float64, NaN for null.
    """

    is_label: npt.NDArray[np.bool_]
    label_key: "pa.StringArray"
    times: Int64s
    served: Int64s
    predicted: Int64s
    score: Floats
    baseline: Floats
    value: Floats

    def __len__(self) -> int:
        return len(self.times)


@dataclass(frozen=True, slots=True)
class Meetings:
    """``pairs``: structured array, a prediction's ``time``, ``served``, ``predicted``, ``score``, ``baseline``, and
    the ``value`` of its label. ``predictions``, ``labels``: int64[m, 2], served and time of those that were given up.
    """

    pairs: npt.NDArray[np.void]
    predictions: Int64s
    labels: Int64s


class Pending:
    """What waits. A label meets every prediction of its key that waits, and is used up by that; where none waits, it
    waits itself for the first. A function of the log alone, whatever the batches: replaying the log rebuilds it.
    """

    def __init__(self, horizon_ms: int) -> None:
        self._horizon = horizon_ms
        self._grid = max(horizon_ms // SWEEPS_PER_HORIZON, 1)
        self._entries = np.zeros(_FIRST_ROOM, ENTRY)
        self._heads = np.full(_FIRST_ROOM, -1, np.int64)
        self._arena = np.empty(16 * _FIRST_ROOM, np.uint8)
        self._clock = np.array([(0, 0, NEVER, NEVER)], CLOCK)

    @property
    def waiting(self) -> tuple[int, int]:
        """How many predictions and how many labels wait for another."""
        kinds = self._entries["kind"][: self._used]
        return int((kinds == PREDICTION).sum()), int((kinds == LABEL).sum())

    @property
    def size(self) -> tuple[int, int]:
        """Bytes of memory in use, and entries, met ones that are not swept yet among them."""
        held = self._used * ENTRY.itemsize + int(self._clock["bytes"][0]) + self._heads.nbytes
        return held, self._used

    def snapshot(self, names: Mapping[int, tuple[str, str]]) -> "pa.Table":
        """What waits, one in each row; ``names``: model and version behind the codes of ``served``."""
        alive, size = self._alive()
        entries, keys, _, clock = self._moved(alive, size, 1)
        codes = np.unique(entries["served"]).tolist()
        header = {
            "clock": orjson.dumps(clock[0].tolist()).decode(),
            "served": orjson.dumps([[code, *names[code]] for code in codes if code in names]).decode(),
        }
        return as_table(entries, keys).replace_schema_metadata(header)

    @classmethod
    def restore(cls, horizon_ms: int, snapshot: "pa.Table", code_of: Callable[[str, str], int]) -> "Pending":
        """What ``snapshot`` wrote; ``code_of``: the code that model and version have now."""
        header = snapshot.schema.metadata or {}
        pending = cls(horizon_ms)
        pending._entries, pending._arena = from_table(snapshot, ENTRY)
        pending._clock = np.array([tuple(orjson.loads(header[b"clock"]))], CLOCK)
        before = pending._entries["served"].copy()
        for code, model, version in orjson.loads(header[b"served"]):
            pending._entries["served"][before == code] = code_of(model, version)
        pending._grow(_FIRST_ROOM, _FIRST_ROOM)
        return pending

    @property
    def served(self) -> list[int]:
        """The codes among what waits."""
        return [int(code) for code in np.unique(self._entries["served"][: self._used])]

    def meet(self, facts: Facts, rows: Int64s) -> Meetings:
        """Take in the ``rows`` of ``facts`` that belong to this partition, in log order."""
        bounds, data = string_buffers(facts.label_key)
        size = int((bounds[1:] - bounds[:-1])[rows].sum())
        self._make_room(len(rows), size)
        room = self._used + len(rows)
        pairs, expired = np.empty(room, ENTRY), np.empty((room, 3), np.int64)
        met, over = meet(
            rows,
            facts.is_label,
            data,
            bounds,
            facts.times,
            facts.served,
            facts.predicted,
            facts.score,
            facts.baseline,
            facts.value,
            self._horizon,
            self._grid,
            self._entries,
            self._heads,
            self._arena,
            self._clock,
            pairs,
            expired,
        )
        expired = expired[:over]
        return Meetings(
            pairs[:met],
            expired[expired[:, 2] == PREDICTION, :2],
            expired[expired[:, 2] == LABEL, :2],
        )

    @property
    def _used(self) -> int:
        return int(self._clock["used"][0])

    def _make_room(self, more: int, more_bytes: int) -> None:
        used, size = self._used, int(self._clock["bytes"][0])
        if used + more <= len(self._entries) and size + more_bytes <= len(self._arena):
            return
        self._grow(more, more_bytes)

    def _grow(self, more: int, more_bytes: int) -> None:
        """Without what is gone, there is room for twice as much and ``more``."""
        alive, size = self._alive()
        room = _power(2 * (alive + more))
        moved = self._moved(room, _power(2 * (size + more_bytes)), room)
        self._entries, self._arena, self._heads, self._clock = moved

    def _alive(self) -> tuple[int, int]:
        """Entries that are not gone, and bytes of their keys."""
        entries = self._entries[: self._used]
        alive = entries["kind"] != GONE
        return int(alive.sum()), int((entries["stop"] - entries["start"])[alive].sum())

    def _moved(
        self, room: int, room_bytes: int, chains: int
    ) -> tuple["npt.NDArray[np.void]", "npt.NDArray[np.uint8]", Int64s, "npt.NDArray[np.void]"]:
        """Entries, keys, chains and clock without what is gone, in arrays of these lengths."""
        new, heads, arena = np.zeros(room, ENTRY), np.empty(chains, np.int64), np.empty(room_bytes, np.uint8)
        clock = self._clock.copy()
        clock["used"], clock["bytes"] = move(self._entries, self._used, self._arena, new, heads, arena)
        return new, arena, heads, clock


def _power(n: int) -> int:
    return 1 << max(n - 1, _FIRST_ROOM - 1).bit_length()
