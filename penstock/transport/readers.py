"""Whether every partition of what a group reads has a reader, looked at now and then by each of its members.

Kafka gives partitions out when a member joins with something new. A static member that comes back joins a group that
stays as it was, and takes the partitions that it finds for what was always there: those that were added just before its
predecessor ended would be nobody's for ever. So a member that sees such a partition joins anew, one member after the
other, for only the group's leader can be sure to start a rebalance and nobody is told who that is.
"""

import logging
import time
from collections.abc import Iterable, Mapping
from typing import Protocol

from penstock.records import Partition
from penstock.transport.descriptions import Counts, Members
from penstock.transport.protocol import Repartitioned

log = logging.getLogger(__name__)

LOOK_S = 10.0
SOON_S = 1.0
"""Between looks while something is missing."""
TELL, ACT = 2, 3
"""Looks in a row that find a partition without a reader, after which it is told, and after which a member joins anew:
between the two halves of a cooperative rebalance partitions are nobody's for a moment."""


class Asked(Protocol):
    """``Descriptions``, to be asked about topics and the group."""

    @property
    def outstanding(self) -> int: ...
    def ask(self, topics: Iterable[str], group: str) -> None: ...
    def answers(self, wait_s: float = 0.0) -> Iterable[Counts | Members]: ...


class Readers:
    """Of the group's member ``instance``. ``planned``: the number of partitions that topics must have, for keys are
    found by it. ``counts``: as last heard. ``why``: which partitions nobody reads."""

    def __init__(self, broker: Asked, group: str, instance: str, planned: Mapping[str, int]) -> None:
        self._broker, self._group, self._instance, self._planned = broker, group, instance, planned
        self._topics: tuple[str, ...] = ()
        self._missed = 0
        self._due = 0.0
        self.counts: dict[str, int] = {}
        self.why: str | None = None

    def watch(self, topics: Iterable[str], wait_s: float) -> None:
        """The group reads ``topics`` from now on. Returns when the broker has told of them, or ``wait_s`` later.
        Raises ``Repartitioned``."""
        self._topics = tuple(topics)
        self._ask()
        deadline = time.monotonic() + wait_s
        while not self.counts and self._broker.outstanding and (left := deadline - time.monotonic()) > 0:
            for answer in self._broker.answers(left):
                self._hear(answer)

    def soon(self) -> None:
        """Partitions came: the next turn looks."""
        self._due = 0.0

    def turn(self, now: float) -> bool:
        """Hears what was answered and asks when it is time; whether this member has to join anew. Never waits. Raises
        ``Repartitioned``."""
        join = False
        if self._broker.outstanding:
            for answer in self._broker.answers():
                join |= self._hear(answer)
            if not self._broker.outstanding:
                self._due = now + (SOON_S if self._missed else LOOK_S)
        elif now >= self._due and self._topics:
            self._ask()
        return join

    def _ask(self) -> None:
        self._broker.ask({*self._topics, *self._planned}, self._group)

    def _hear(self, answer: Counts | Members) -> bool:
        if isinstance(answer, Counts):
            self.counts.update(answer.of)
            for topic, planned in self._planned.items():
                if (found := answer.of.get(topic, planned)) != planned:
                    raise Repartitioned(topic, found, planned)
            return False
        if not answer.stable or self._instance not in answer.assigned:
            return False
        every = {Partition(topic, n) for topic in self._topics for n in range(self.counts.get(topic, 0))}
        unread = sorted(every.difference(*answer.assigned.values()))
        self._missed = self._missed + 1 if unread else 0
        named = ", ".join(map(str, unread))
        if self._missed < TELL:
            self.why = None
            return False
        self.why = f"no worker of {self._group} reads {named}: the group is asked to share its partitions anew"
        turn = sorted(answer.assigned).index(self._instance)
        if self._missed < ACT or (self._missed - ACT) % len(answer.assigned) != turn:
            return False
        log.warning("nobody reads %s: %s joins the group anew", named, self._instance)
        return True
