"""Trying a failing store again: a pause that doubles, a count, and a line in the worker's readiness that says why."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from penstock import telemetry
from penstock.health import Health

log = logging.getLogger(__name__)

WRITE = "write"
"""The worker's phase."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.25, 30.0


@dataclass(slots=True)
class _Pause:
    until: float = 0.0
    seconds: float = FIRST_PAUSE_S


class Attempts:
    """Writes to the stores of views, by view and kind of store (``online``, ``offline``)."""

    def __init__(self, health: Health, clock: Callable[[], float] = time.time) -> None:
        self._health, self._clock = health, clock
        self._pauses: dict[tuple[str, str], _Pause] = {}

    def failing(self, store: str, view: str | None = None) -> bool:
        """Whether the last try with this kind of store failed, of ``view`` or of any."""
        return any(kind == store and view in (None, of) for of, kind in self._pauses)

    def attempt(self, view: str, store: str, write: Callable[[], int], *, at_once: bool = False) -> bool:
        """One try, unless the last failure is too young; True when it succeeded. ``write`` returns its rows."""
        pause = self._pauses.get((view, store))
        if pause is not None and self._clock() < pause.until and not at_once:
            return False
        what = f"{store} store of {view}"
        try:
            with self._health.during(WRITE):
                written = write()
        except Exception as error:  # noqa: BLE001  # a store is foreign code: whatever it raises, its rows wait
            pause = self._pauses.setdefault((view, store), _Pause())
            pause.until = self._clock() + pause.seconds
            pause.seconds = min(2 * pause.seconds, LONGEST_PAUSE_S)
            telemetry.FEAST_FAILURES.labels(view, store).inc()
            self._health.wait(what, f"{type(error).__name__}: {error}")
            log.warning("%s failed and is tried again: %s", what, error, extra={"view": view})
            return False
        self._pauses.pop((view, store), None)
        self._health.wait(what, None)
        telemetry.FEAST_ROWS.labels(view, store).inc(written)
        return True
