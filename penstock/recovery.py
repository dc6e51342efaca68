"""Where a partition begins when it is assigned: at its committed offset where there is no state; else at its newest
usable snapshot, or as far back in the log as its state reaches, and from there by silent replay up to that offset.
"""

import logging
import time
from collections.abc import Callable, Iterable, Mapping

from penstock.journal.stepping import Journal
from penstock.records import NO_TIME, Partition
from penstock.snapshots.taking import Snapshots
from penstock.stage import Stage
from penstock.transport.protocol import Position, Transport

log = logging.getLogger(__name__)


MEND = "Raise the topic's retention.ms, or set PENSTOCK_ALLOW_INCOMPLETE_WINDOWS=true to go on with the rest"


class IncompleteLogError(Exception):
    """The log no longer reaches back to where the windows begin."""


class Recovery:
    """Of one stage. ``future_ms``: how far ahead of its arrival an event time may lie. ``allow_incomplete``: go on
    where the log does not reach back. ``snapshots``: None where none are kept; ``journal``: keeps nothing until it is
    replaced by one that does."""

    def __init__(
        self,
        stage: Stage,
        transport: Transport,
        future_ms: int,
        *,
        allow_incomplete: bool,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._stage, self._transport, self._clock = stage, transport, clock
        self._future_ms, self._allow_incomplete = future_ms, allow_incomplete
        self.snapshots: Snapshots | None = None
        self.journal = Journal(None, transport.identity, "", 0)

    def begin(self, partition: Partition, committed: Position | None) -> tuple[Position, Position]:
        """Gives the stage what state there is. Returns where to read from and where the partition is live. Raises
        ``IncompleteLogError``."""
        low, high = self._transport.bounds(partition)
        live = committed or Position(low)
        if live.offset < low:
            gone = f"{partition}: rows {live.offset} to {low - 1} were deleted by retention before they were read"
            if self._stage.reach(partition.topic) is not None and not self._allow_incomplete:
                raise IncompleteLogError(f"{gone}, and windows lack them. {MEND}")
            log.error("%s; going on at %d", gone, low)
            live = Position(low, live.watermark)
        if live.offset > high:
            raise IncompleteLogError(
                f"{partition}: the group committed {live.offset}, but the log ends at {high}: the topic was made"
                " anew. Reset the group's offsets or give the pipeline a new name"
            )
        start = self._restored(partition, low, live)
        self.journal.begin(partition, start.offset, live.offset, high)
        log.info("assigned %s from %d, live from %d", partition, start.offset, live.offset)
        return start, live

    def committed(self, positions: Mapping[Partition, Position]) -> None:
        """Call when nothing of the stage is uncommitted, with what the last commit moved."""
        self.journal.committed(positions)
        if self.snapshots is not None:
            self.snapshots.committed(positions)

    def release(self, partitions: Iterable[Partition], *, settled: bool) -> None:
        """These are another's; ``settled``: what the stage made of them is committed."""
        self.journal.release(partitions)
        if self.snapshots is not None:
            self.snapshots.release(partitions, settled=settled)

    def close(self, *, settled: bool) -> None:
        """The worker stops; ``settled`` as in ``release``."""
        self.journal.close()
        if self.snapshots is not None:
            self.snapshots.close(settled=settled)

    def _restored(self, partition: Partition, low: int, live: Position) -> Position:
        reach = self._stage.reach(partition.topic)
        if self.snapshots is not None and reach is not None:
            for at, state in self.snapshots.usable(partition, low, live.offset):
                try:
                    self._stage.restore(partition, state)
                except ValueError as error:
                    log.warning("%s: the snapshot of offset %d is not used: %s", partition, at.offset, error)
                    continue
                return at
        start = live.offset if reach is None else self._replay_start(partition, reach, low, live)
        self._stage.restore(partition, None)
        return live if start >= live.offset else Position(start)

    def _replay_start(self, partition: Partition, reach: int, low: int, live: Position) -> int:
        if live.offset <= low:
            if low > 0 and live.watermark != NO_TIME and not self._allow_incomplete:
                self._all_is_gone(partition, reach, low, live)
            return live.offset
        back_to = live.watermark - reach - self._future_ms
        start = self._transport.offset_at(partition, back_to) if back_to > 0 else low
        start = max(low, min(start, live.offset))
        if start == low > 0 and not self._allow_incomplete:
            raise IncompleteLogError(
                f"{partition}: the log begins at offset {low} and may not reach back to where the windows begin. {MEND}"
            )
        return start

    def _all_is_gone(self, partition: Partition, reach: int, low: int, live: Position) -> None:
        """Everything that was read was deleted. A partition that was idle for longer than its windows lacks nothing, if
        what comes is of about now; refusing would stop the others for it."""
        gone = f"{partition}: all rows before offset {low}, which the group has committed, were deleted"
        if live.watermark + reach + self._future_ms >= self._clock() * 1000:
            raise IncompleteLogError(f"{gone}, and windows reach back to them. {MEND}")
        log.warning("%s: its windows begin empty; what is of about now does not reach back to them", gone)
