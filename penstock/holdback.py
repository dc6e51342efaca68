"""Keeps a re-keyed topic in order across partitions and workers: no row goes further than half the lateness past the
slowest partition that has more in the log, or past what all have reached where none has. Within that no partition is
waited for, so live rows pass at once; a backlog is looked at once every half lateness.

The workers tell each other in the metadata of their committed offsets: where a partition stands, and the time of the
row that it waits with (``Lane.reached``). So of workers that wait for one another the one with the oldest row goes on.
"""

import logging
from collections.abc import Mapping, Sequence

from penstock.intake import Intake
from penstock.records import NO_TIME, Partition
from penstock.transport.protocol import Position, Transport, Unavailable

log = logging.getLogger(__name__)


class Holdback:
    """Of one loop; nothing is held where the intake does not merge. Partitions that are added to a topic count as soon
    as they are heard of. ``why``: nothing is heard of the partitions, and the broker's word."""

    def __init__(self, transport: Transport, intake: Intake, topics: Sequence[str], lateness_ms: int) -> None:
        self._transport, self._intake, self._topics = transport, intake, topics
        self._slack_ms = lateness_ms // 2
        self._open: dict[Partition, tuple[int, float]] = {}
        """Of partitions elsewhere with an open transaction: their stable end, and since when it has been that."""
        self.why: str | None = None

    def forget(self) -> None:
        """Partitions moved: nothing goes on before the next look."""
        if self._intake.merges:
            self._intake.hold_after.update(dict.fromkeys(self._topics, NO_TIME))

    def look(self, now: float) -> None:
        """Asks where the partitions are that have no row here to be merged, and says how far the others may go until
        the next look. An own one that gives nothing for the intake's patience is not waited for."""
        if not self._intake.merges:
            return
        try:
            for topic in self._topics:
                self._look_at(topic, now)
        except Unavailable as error:  # what was heard last holds
            log.warning("nothing heard of the other partitions: %s", error)
            self.why = str(error)
        else:
            self.why = None

    def _look_at(self, topic: str, now: float) -> None:
        reached, waiting = self._intake.reached(), self._intake.waiting()
        own = {partition for partition in self._intake.lanes if partition.topic == topic}
        every = own | {Partition(topic, n) for n in range(self._transport.partitions(topic))}
        empty = {p: reached[p] for p in own & reached.keys() - waiting if not self._intake.silent(p, now)}
        behind, furthest = self._behind(empty, every - own, now)
        # where none has more, whatever was read so far may go: what comes now comes later
        read = max((self._intake.watermark(partition) for partition in own), default=NO_TIME)
        self._intake.hold_after[topic] = min(behind, default=max(furthest, read)) + self._slack_ms

    def _behind(
        self, empty: Mapping[Partition, Position], elsewhere: set[Partition], now: float
    ) -> tuple[list[int], int]:
        """The watermarks of those that have more in the log, and the largest of all. ``empty``: own ones that were
        read to an end. What is not committed yet is more too: a transaction becomes visible in one partition after the
        other, and whoever saw the first would run ahead of the last.
        """
        if not empty and not elsewhere:
            return [], NO_TIME
        ends = self._transport.ends([*empty, *elsewhere])
        behind = [at.watermark for partition, at in empty.items() if at.offset < ends[partition]]
        furthest = max((at.watermark for at in empty.values()), default=NO_TIME)
        for partition, committed in (self._transport.committed(elsewhere) if elsewhere else {}).items():
            low, stable = self._transport.bounds(partition)
            at = committed or Position(low)  # nothing is known of it until its worker has seen its first row
            furthest = max(furthest, at.watermark)
            # + 1: a marker is no lag
            if at.offset + 1 < stable or self._opened(partition, stable, ends[partition], now):
                behind.append(at.watermark)
        return behind, furthest

    def _opened(self, partition: Partition, stable: int, end: int, now: float) -> bool:
        """Whether a transaction is open there; one that does not end is not waited for longer than a partition of our
        own that gives nothing."""
        if stable >= end:
            self._open.pop(partition, None)
            return False
        before, since = self._open.get(partition, (stable, now))
        if before != stable:
            since = now
        self._open[partition] = stable, since
        return now - since <= self._intake.patience_s
