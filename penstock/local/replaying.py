"""The replay beside a pipeline, on a thread of its own: found by name, because penstock imports no pipeline."""

import threading
from collections.abc import Callable
from datetime import timedelta
from importlib import import_module
from typing import Any

from penstock.plan import Plan
from penstock.settings import Settings

FIRST_DAY, AFTER_LAST_DAY = "2013-04-01", "2014-01-01"
"""What the model has not seen: it is trained on the months before."""


class Replaying:
    """Plays the log of the pipeline ``source``; ``limit`` departures at most."""

    def __init__(self, source: str, plan: Plan, settings: Settings, limit: int | None) -> None:
        package = source.partition(":")[0].rpartition(".")[0]
        self._module: Any = import_module(f"{package}.replay")
        flights = import_module(f"{package}.data").load().between(FIRST_DAY, AFTER_LAST_DAY)
        ids = (plan.event.id, plan.label.id if plan.label is not None else 0)
        self._replay = self._module.Replay(flights, ids, limit)
        self._lateness = timedelta(milliseconds=plan.lateness_ms)
        self._settings, self._pipeline = settings, plan.pipeline
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._finished = False
        self.sent: Any = self._module.Sent()

    def __len__(self) -> int:
        """Messages in all, labels included."""
        return len(self._replay)

    @property
    def first(self) -> int:
        """When its first message became known, ms since epoch."""
        return int(self._replay.first)

    @property
    def last(self) -> int:
        return int(self._replay.last)

    @property
    def share(self) -> float:
        """How much of the nine months it covers."""
        return (self.last - self.first) / timedelta(days=275).total_seconds() / 1000

    @property
    def finished(self) -> bool:
        """Everything is sent and acknowledged. Raises what ended it before."""
        if self._error is not None:
            raise self._error
        return self._finished

    def sent_so_far(self) -> tuple[int, int]:
        """Messages handed to the producer, and when the newest became known, ms since epoch."""
        time = int(self.sent.time)  # first, for the replay's thread counts on
        return int(self.sent.events + self.sent.labels), time

    def start(self, duration_s: float | None, slowest_watermark: Callable[[], int | None]) -> None:
        pace = self._module.Pace(
            self._replay, self._lateness, slowest_watermark, duration_s, stopped=self._stopping.is_set
        )
        self._thread = threading.Thread(target=self._run, args=(pace,), name="replay", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self, pace: Any) -> None:
        try:
            self._module.produce(self._replay, pace, self._settings.kafka(), self._pipeline, self._heard)
            self._finished = not self._stopping.is_set()
        except BaseException as error:  # noqa: BLE001  # raised again where the demo waits for the end
            self._error = error

    def _heard(self, sent: Any) -> None:
        self.sent = sent
