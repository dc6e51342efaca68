"""What the demo shows while it runs: its state, and the lines that tell it where there is no terminal."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

from penstock.local.offsets import Offsets
from penstock.local.scrape import Sample, by_label
from penstock.local.tail import RECENT, Tail
from penstock.plan import Plan

LINE_EVERY_S = 5.0
JUDGE_EVERY_S = 4.0
"""An area under the curve of a quarter million rows takes a while."""


@dataclass(slots=True)
class Status:
    """The state of a run, refreshed once a second. ``first``, ``last``: ms since epoch, what is replayed."""

    plan: Plan
    first: int
    last: int
    total: int
    look: Offsets | None = None
    before: Offsets | None = None
    sent: Any = None
    samples: list[Sample] = field(default_factory=list)
    percentiles: tuple[float, float] | None = None
    results: dict[str, float] = field(default_factory=dict)
    joined: int = 0
    _judged: float = float("-inf")

    def update(self, look: Offsets, sent: Any, tail: Tail) -> None:
        self.before, self.look, self.sent = self.look, look, sent
        self.percentiles = tail.latency.percentiles(RECENT)
        if look.at - self._judged >= JUDGE_EVERY_S:
            self._judged = look.at
            self.joined, self.results = len(tail.scores), tail.scores.results()

    def rate(self, topic: str) -> float:
        """Offsets per second since the last look, markers included."""
        if self.look is None or self.before is None:
            return 0.0
        return (self.look.end(topic) - self.before.end(topic)) / max(0.001, self.look.at - self.before.at)

    def lag(self) -> dict[str, int]:
        """Rows not yet committed, by stage."""
        if self.look is None:
            return {}
        return {stage.name: sum(self.look.lag(stage).values()) for stage in self.plan.stages}

    def lags(self) -> str:
        return ", ".join(f"{stage} {rows}" for stage, rows in self.lag().items() if rows) or "no lag"

    @property
    def date(self) -> str:
        """The day that is being replayed."""
        stamp = self.sent.time if self.sent is not None and self.sent.time else self.first
        return datetime.fromtimestamp(stamp / 1000, UTC).strftime("%Y-%m-%d")

    def dead(self) -> dict[str, int]:
        return {reason: int(n) for reason, n in by_label(self.samples, "penstock_dead_letters", "reason").items()}

    def drifted(self, most: int = 5) -> list[tuple[str, float]]:
        """Features by PSI in their last closed window."""
        found = [
            (sample.labels["feature"], sample.value)
            for sample in self.samples
            if sample.name == "penstock_drift" and sample.labels["statistic"] == "psi"
        ]
        return sorted(found, key=lambda pair: -pair[1])[:most]


class Screen(Protocol):
    """Where a run is shown."""

    def line(self, text: str) -> None:
        """Something happened, once."""

    def live(self) -> AbstractContextManager[object]:
        """Around the time when ``show`` is called."""

    def show(self, status: Status) -> None:
        """The newest state, about once a second."""


class Lines:
    """Without a terminal: a line for what happens, and one of progress every few seconds. ``write`` gets them."""

    def __init__(self, write: Callable[[str], object], every_s: float = LINE_EVERY_S) -> None:
        self._write, self._every_s, self._shown = write, every_s, float("-inf")

    def line(self, text: str) -> None:
        self._write(text)

    def live(self) -> AbstractContextManager[object]:
        return nullcontext()

    def show(self, status: Status) -> None:
        if time.monotonic() - self._shown >= self._every_s:
            self._shown = time.monotonic()
            self.line(" · ".join(parts(status)))


def parts(status: Status) -> Iterator[str]:
    """The state in a few words each."""
    sent = status.sent
    yield status.date
    yield f"{sent.events + sent.labels:,} of {status.total:,} sent"
    yield f"{status.rate(status.plan.topic('raw').name):,.0f} events/s"
    if status.percentiles is not None:
        yield "p50 {:.0f} ms, p99 {:.0f} ms".format(*status.percentiles)
    if {"auc", "baseline_auc"} <= status.results.keys():
        yield f"AUC {status.results['auc']:.3f}, baseline {status.results['baseline_auc']:.3f}"
    yield f"{sum(status.dead().values())} dead letters"
    yield f"lag: {status.lags()}"
