"""A worker that must not read on: schemas cannot be looked up, nearly all rows fail, memory is short. All its
partitions are paused and still polled, so that no membership is lost, and readiness says why.
"""

import logging
from collections.abc import Iterable

from penstock.intake import Intake
from penstock.observer import Observer
from penstock.records import Partition
from penstock.transport.protocol import Transport

log = logging.getLogger(__name__)


class Standstill:
    """Of one loop. ``paused``: the partitions that it has stopped."""

    def __init__(self, transport: Transport, intake: Intake, observer: Observer) -> None:
        self._transport, self._intake, self._observer = transport, intake, observer
        self._stopped: dict[str, bool] = {}
        self.paused: set[Partition] = set()

    def say(self, what: str, why: str | None, *, stopped: bool = True) -> None:
        """The worker does without ``what`` because of ``why``; None: no longer. ``stopped`` False: it is not well, but
        reads."""
        if why is None and what not in self._stopped:
            return
        if why is None:
            del self._stopped[what]
            log.info("reading goes on after it was stopped by %s", what)
        else:
            if what not in self._stopped:
                log.warning("reading stops: %s", why)
            self._stopped[what] = stopped
        self._observer.stopped(what, why)

    def keep(self) -> None:
        """Pauses what has come since, or resumes everything when no reason is left."""
        if any(self._stopped.values()):
            if new := set(self._intake.lanes) - self.paused:
                self.paused |= new
                self._transport.pause(new)
        elif self.paused:
            self._transport.resume(self.paused & set(self._intake.lanes) - self._intake.paused)
            self.paused = set()

    def forget(self, gone: Iterable[Partition]) -> None:
        """These are another's."""
        self.paused -= set(gone)
