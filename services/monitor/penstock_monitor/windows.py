"""Partial profiles merged into windows: pure state, no Kafka, no clock.

Offsets and tables of a Faust app are not atomic, so every window's value carries the highest offset that went into it
per source partition, and anything at or below is skipped: whatever is delivered again after a crash, each partial
counts once. Windows that are judged together are closed together, and once only by watermark: so what they say depends
on the rows, and not on the order in which their counts arrived.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields

import numpy as np
import orjson

from penstock.profiles.rows import OUTCOME, Counts, ProfileRow, top_names
from penstock.records import NO_TIME

KEPT_WINDOWS = 1000
"""Windows kept per measure behind the newest; what arrives for older ones is counted as too late and left out."""

_ADDED = ("rows", "nulls", "unseen", "correct", "expired_predictions", "expired_labels")
_COUNTS = ("bins", "positives", "negatives", "baseline_positives", "baseline_negatives")


def _none() -> Counts:
    return np.empty(0, np.int64)


Family = tuple[int, bool]
"""The windows that close, and are judged, together: those of one start, the outcomes apart, which wait for labels."""


@dataclass(slots=True)
class Window:
    """One measure over one window, all partials added up. ``start``, ``end``: ms since epoch.

    ``applied``: highest offset by source partition. ``reached``: end of its newest pane. ``judged``: rows when it was
    last closed, -1 while it is open. ``settled``: it was closed by watermark, and is not judged again. ``over``: kinds
    of alarm that it was over the threshold in; ``alerted``: those that were sent.
    """

    model: str
    version: str
    feature: str
    kind: str
    reference: str
    start: int
    end: int
    rows: int = 0
    nulls: int = 0
    unseen: int = 0
    bins: Counts = field(default_factory=_none)
    n: int = 0
    mean: float = 0.0
    m2: float = 0.0
    min: float | None = None
    max: float | None = None
    names: dict[str, int] = field(default_factory=dict)
    correct: int = 0
    positives: Counts = field(default_factory=_none)
    negatives: Counts = field(default_factory=_none)
    baseline_positives: Counts = field(default_factory=_none)
    baseline_negatives: Counts = field(default_factory=_none)
    expired_predictions: int = 0
    expired_labels: int = 0
    applied: dict[int, int] = field(default_factory=dict)
    reached: int = 0
    judged: int = -1
    settled: bool = False
    over: list[str] = field(default_factory=list)
    alerted: list[str] = field(default_factory=list)

    @property
    def key(self) -> str:
        return f"{self.model}|{self.version}|{self.feature}|{self.reference}|{self.start}"

    @property
    def family(self) -> "Family":
        return self.start, self.feature == OUTCOME

    @property
    def touched(self) -> int:
        """Everything that arrived, so that a change after closing is noticed."""
        return self.rows + self.expired_predictions + self.expired_labels

    def fits(self, row: ProfileRow) -> bool:
        """Whether its counts are of the same bins; anything else was not written by a monitor."""
        pairs = ((len(getattr(self, name)), len(getattr(row, name))) for name in _COUNTS)
        return all(not mine or not theirs or mine == theirs for mine, theirs in pairs)

    def add(self, row: ProfileRow, partition: int, offset: int) -> bool:
        """Add a partial; False when it is in already."""
        if offset <= self.applied.get(partition, -1):
            return False
        self.applied[partition] = offset
        for name in _ADDED:
            setattr(self, name, getattr(self, name) + getattr(row, name))
        for name in _COUNTS:
            setattr(self, name, _sum(getattr(self, name), getattr(row, name)))
        if row.n:
            total = self.n + row.n
            delta = row.mean - self.mean
            self.mean += delta * row.n / total
            self.m2 += row.m2 + delta**2 * self.n * row.n / total
            self.n = total
            if row.min is not None and row.max is not None:
                self.min = row.min if self.min is None else min(self.min, row.min)
                self.max = row.max if self.max is None else max(self.max, row.max)
        if row.names:
            self.names = top_names([*self.names.items(), *zip(row.names, row.name_counts, strict=True)])
        return True

    def save(self) -> bytes:
        """JSON."""
        return orjson.dumps(asdict(self), option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS)

    @staticmethod
    def load(content: bytes) -> "Window":
        """Values of an older release lack fields, which start empty."""
        known = {f.name for f in fields(Window)}
        values = {name: value for name, value in orjson.loads(content).items() if name in known}
        for name in _COUNTS:
            values[name] = np.asarray(values[name], np.int64)
        values["applied"] = {int(partition): offset for partition, offset in values["applied"].items()}
        return Window(**values)


@dataclass(slots=True)
class Added:
    """What a list of partials did: the windows that ``changed``, the ``rows`` that were new, how many of them were
    ``late``, because their window was settled, and how many partials were ``left_out``, because they are older than
    every window that is kept or have other bins than their window.
    """

    changed: dict[str, Window] = field(default_factory=dict)
    rows: list[ProfileRow] = field(default_factory=list)
    late: int = 0
    left_out: int = 0


class Windows:
    """All windows by key, and the ``watermark``: event time up to which the partials of every source are in.

    ``grace_ms``: how long after its end a window stays open, for a row may be late by as much; outcomes wait
    ``horizon_ms`` more, for that is when the last label may come.
    """

    def __init__(self, window_ms: int, grace_ms: int, horizon_ms: int) -> None:
        self._window_ms, self._grace_ms, self._horizon_ms = window_ms, grace_ms, horizon_ms
        self.load(())

    def __len__(self) -> int:
        return len(self._windows)

    def __getitem__(self, key: str) -> Window:
        return self._windows[key]

    def load(self, saved: Iterable[bytes]) -> None:
        """Start from these windows alone."""
        self._windows: dict[str, Window] = {}
        self._families: dict[Family, dict[str, Window]] = {}
        self._unsettled: set[Family] = set()
        self.newest, self.watermark = 0, NO_TIME
        for content in saved:
            self._take(Window.load(content))

    def add(self, rows: Iterable[tuple[ProfileRow, int, int]]) -> "Added":
        """Add partials (row, source partition, offset); those that are in already change nothing."""
        added = Added()
        for row, partition, offset in rows:
            start = row.pane - row.pane % self._window_ms
            if start < self.newest - KEPT_WINDOWS * self._window_ms:
                added.left_out += 1
                continue
            window = Window(
                row.model, row.version, row.feature, row.kind, row.reference, start, start + self._window_ms
            )
            window = self._windows.get(window.key, window)
            if not window.fits(row):
                added.left_out += 1
                continue
            if window.add(row, partition, offset):
                window.reached = max(window.reached, row.pane + row.pane_ms)
                self._take(window)
                added.changed[window.key] = window
                added.rows.append(row)
                added.late += window.settled
        return added

    def _take(self, window: Window) -> None:
        family = self._families.setdefault(window.family, {})
        # whoever comes to a family that was judged comes too late for it
        window.settled = window.settled or any(other.settled for other in family.values())
        self._windows[window.key] = family[window.key] = window
        self.newest = max(self.newest, window.reached)
        if not window.settled:
            self._unsettled.add(window.family)

    def due(self, *, stopped: bool) -> list[Window]:
        """The windows of every family that the watermark has passed, and of those with news when the stream has
        ``stopped``; oldest first.
        """
        found = []
        for family in sorted(self._unsettled):
            windows = self._families[family].values()
            news = any(window.judged != window.touched for window in windows)
            if self._passed(family) or (stopped and news):
                found += sorted(windows, key=lambda window: window.key)
        return found

    def close(self, windows: Iterable[Window]) -> None:
        """They are judged: for good where the watermark has passed them."""
        for window in windows:
            window.judged = window.touched
            window.settled = self._passed(window.family)
            if window.settled:
                self._unsettled.discard(window.family)

    def before(self, window: Window) -> Window | None:
        """The same measure, one window earlier."""
        key = f"{window.model}|{window.version}|{window.feature}|{window.reference}|{window.start - self._window_ms}"
        return self._windows.get(key)

    def forget(self) -> list[Window]:
        """Take out and return the windows that are older than any that is kept."""
        oldest = self.newest - KEPT_WINDOWS * self._window_ms
        gone = [window for window in self._windows.values() if window.start < oldest]
        for window in gone:
            del self._windows[window.key]
            self._families.pop(window.family, None)
            self._unsettled.discard(window.family)
        return gone

    def _passed(self, family: Family) -> bool:
        start, outcome = family
        wait = self._grace_ms + (self._horizon_ms if outcome else 0)
        return self.watermark >= start + self._window_ms + wait


def _sum(a: Counts, b: Counts) -> Counts:
    if len(a) == len(b):
        return a + b
    return a if len(a) else b.copy()
