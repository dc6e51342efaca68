"""Keeps a re-keyed topic in order across workers: nobody runs further than half the lateness past the slowest partition
that has lag, or past what all have reached where none has.

The workers tell each other in the metadata of their committed offsets: where a partition stands, and the time of the
row that it waits with (``Lane.reached``). So of workers that wait for one another the one with the oldest row goes on.
"""

import logging
from collections.abc import Mapping

from penstock.intake import Intake
from penstock.records import NO_TIME, Partition
from penstock.transport.protocol import Position, Transport, Unavailable

log = logging.getLogger(__name__)


class Holdback:
    """Of one loop. ``counts``: partitions of each topic; nothing is held where the intake does not merge."""

    def __init__(self, transport: Transport, intake: Intake, counts: Mapping[str, int], lateness_ms: int) -> None:
        self._transport, self._intake, self._counts = transport, intake, counts
        self._slack_ms = lateness_ms // 2

    def forget(self) -> None:
        """Partitions moved: nothing goes on before the next look."""
        if self._intake.merges:
            self._intake.hold_after.update(dict.fromkeys(self._counts, NO_TIME))

    def look(self) -> None:
        """Asks where the others are, and says how far this worker may go until the next look."""
        if not self._intake.merges:
            return
        reached = self._intake.reached()
        for topic, count in self._counts.items():
            others = {Partition(topic, n) for n in range(count)} - set(self._intake.lanes)
            if not others:
                self._intake.hold_after.pop(topic, None)
                continue
            try:
                slowest, furthest = self._elsewhere(others)
            except Unavailable as error:  # what was heard last holds
                log.warning("nothing heard of the other workers: %s", error)
                continue
            if slowest is None:
                own = [at.watermark for partition, at in reached.items() if partition.topic == topic]
                slowest = max(furthest, min(own, default=NO_TIME))
            self._intake.hold_after[topic] = slowest + self._slack_ms

    def _elsewhere(self, others: set[Partition]) -> tuple[int | None, int]:
        """The least watermark of those with lag, None where there is none; and the largest of all."""
        behind, furthest = [], NO_TIME
        for partition, committed in self._transport.committed(others).items():
            low, high = self._transport.bounds(partition)
            at = committed or Position(low)  # nothing is known of it until its worker has seen its first row
            furthest = max(furthest, at.watermark)
            if at.offset + 1 < high:  # + 1: a marker is no lag
                behind.append(at.watermark)
        return min(behind, default=None), furthest
