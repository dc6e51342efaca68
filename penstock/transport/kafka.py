"""Kafka through librdkafka. One static member of a classic cooperative group and one transactional producer
(``transactions.py``) per worker slot, so that a restarted slot has its partitions back at once.

Every rebalance happens inside ``poll``. A rebalance may fire while rows are already in hand, and the broker's fencing
checks the generation, not the ownership, so rows of a partition that was revoked during a poll are thrown away here.
"""

import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np

from penstock.records import Header, Partition, Values, watermark_of
from penstock.settings import Settings
from penstock.telemetry import STALE_ROWS
from penstock.transport import librdkafka
from penstock.transport.clients import Consumer
from penstock.transport.identity import identity
from penstock.transport.librdkafka import KafkaFault, Place
from penstock.transport.messages import Survey
from penstock.transport.protocol import Fenced, Placement, Polled, Position, Unavailable
from penstock.transport.readers import Readers
from penstock.transport.transactions import FATAL, PATIENCE_S, Transactions

log = logging.getLogger(__name__)

CONSUMER = {
    "enable.auto.commit": False,
    "isolation.level": "read_committed",
    "auto.offset.reset": "earliest",
    "enable.partition.eof": True,
    "fetch.wait.max.ms": 10,
    "fetch.min.bytes": 65536,
    "fetch.queue.backoff.ms": 5,
    "queued.min.messages": 10_000,
    "queued.max.messages.kbytes": 32_768,
    "max.partition.fetch.bytes": 1_048_576,
    "fetch.max.bytes": 4_194_304,  # an answer is unpacked whole, and its messages take ten times as much
    "topic.metadata.refresh.interval.ms": 10_000,  # what new partitions wait for
    "socket.timeout.ms": 30_000,  # as Java's; a lost line is given up then, and one that takes longer for an answer
}
_UNLIKE = "^penstock[.]joins[.]anew$"
"""A pattern that no topic's name is like: a subscription with it is another one, which makes the client join again."""
ANSWER_S = 30.0
"""A broker under load is slow before it is away, and nothing is lost by waiting for it."""
SILENCE_S = 5.0
"""Without an answer of any kind for longer, a broker is away; or for two heartbeats where those are seldom."""


@contextmanager
def _asking(what: str) -> Iterator[None]:
    try:
        yield
    except KafkaFault as fault:
        raise Unavailable(f"Kafka was asked for {what}: {fault}") from fault


class KafkaTransport:
    """Consumes ``topics`` for ``group`` and produces in transactions named after the slot.

    ``max_message_bytes``: the largest row that any of the output topics takes; ``planned``: the number of partitions
    that topics must have, read or written. Raises ``Fenced`` where the slot has a newer holder.
    """

    def __init__(
        self,
        settings: Settings,
        group: str,
        stage: str,
        max_message_bytes: int = 1_100_000,
        planned: Mapping[str, int] | None = None,
    ) -> None:
        slot = f"{group}.{settings.slot}"
        client = {**settings.kafka(), "client.id": slot}
        self._client, self._stage, self._group = client, stage, group
        self._closed = False
        self._placement: Placement | None = None
        self._starts: dict[Partition, int] = {}
        self._revoked: set[Partition] = set()
        self._trouble: BaseException | None = None
        self._silence_s = max(SILENCE_S, settings.session_timeout_ms / 2000)
        self._heard, self._heard_at = 0, time.monotonic()
        self._transactions = Transactions(settings, client, max_message_bytes)  # the slot's former holder is out
        try:
            self._consumer = Consumer(
                {
                    **client,
                    **CONSUMER,
                    "group.id": group,
                    "group.instance.id": slot,
                    "partition.assignment.strategy": "cooperative-sticky",
                    "session.timeout.ms": settings.session_timeout_ms,
                    "heartbeat.interval.ms": max(500, settings.session_timeout_ms // 4),
                },
                self._on_error,
                self._on_rebalance,
            )
        except BaseException:
            self._transactions.close()
            raise
        self._topics: list[str] = []
        self._altered = False
        self._asked = self._consumer.descriptions()
        self._readers = Readers(self._asked, group, slot, planned or {})

    def subscribe(self, topics: Sequence[str], placement: Placement) -> None:
        self._placement, self._topics, self._heard_at = placement, list(topics), time.monotonic()
        self._readers.watch(topics, PATIENCE_S)
        for topic in topics:
            self.partitions(topic)  # raises where it is not there, or the broker is away
        log.info("joining %s", self._group)
        self._consumer.subscribe(topics)

    def _see_to_readers(self) -> None:
        """Joins anew where partitions have no reader; the subscription is as it was when they have."""
        join = self._readers.turn(time.monotonic())
        if join or (self._altered and self._readers.why is None):
            self._altered = join
            self._consumer.subscribe([*self._topics, _UNLIKE] if join else self._topics)

    def _on_rebalance(self, assigned: bool, places: list[Place], lost: bool) -> None:
        # an exception must not be lost inside librdkafka's callback: keep it for poll
        try:
            (self._take_on if assigned else self._take_away)(places, lost)
        except BaseException as error:  # noqa: BLE001  # re-raised by poll
            self._trouble = error

    def _take_on(self, places: list[Place], _: bool) -> None:
        assert self._placement is not None
        starts = self._placement.assigned(self.committed([Partition(p.topic, p.partition) for p in places]))
        self._starts.update(starts)
        self._consumer.assign(Place(p.topic, p.number, at) for p, at in starts.items())
        self._readers.soon()

    def _take_away(self, places: list[Place], lost: bool) -> None:
        partitions = [Partition(p.topic, p.partition) for p in places]
        self._revoked.update(partitions)
        try:
            assert self._placement is not None
            (self._placement.lost if lost else self._placement.revoked)(partitions)
        finally:
            for partition in partitions:
                self._starts.pop(partition, None)
            self._consumer.unassign(places)

    def _on_error(self, code: int, why: str) -> None:
        log.warning("kafka client: %s", why, extra={"code": librdkafka.name_of(code)})

    def poll(self, max_rows: int, wait_s: float) -> Polled:
        self._revoked.clear()
        self._see_to_readers()
        try:
            found = self._consumer.consume(max_rows, wait_s)
        except KafkaFault as fault:
            self._raise_fatal(fault.code, str(fault))
            log.warning("poll failed and is tried again: %s", fault)
            found = np.empty(0, np.uint64)
        survey = Survey.of(found)
        try:
            if self._trouble is not None:
                trouble, self._trouble = self._trouble, None
                raise trouble
            ends: dict[Partition, int] = {}
            for code, topic, number, offset in survey.faults():
                if code == librdkafka.PARTITION_EOF:
                    ends[Partition(topic, number)] = offset
                    continue
                why = str(KafkaFault(code))
                self._raise_fatal(code, why)
                log.warning("consumer: %s", why, extra={"topic": topic})
            records = survey.records()
        finally:
            survey.close()
        if self._revoked:
            stale = {topic: {p.number for p in self._revoked if p.topic == topic} for topic, _ in self._revoked}
            fresh = [rows.without(stale.get(rows.topic, set())) for rows in records]
            STALE_ROWS.labels(self._stage).inc(sum(map(len, records)) - sum(map(len, fresh)))
            records = [rows for rows in fresh if len(rows)]
            ends = {partition: end for partition, end in ends.items() if partition not in self._revoked}
            for partition in self._revoked & self._starts.keys():  # taken and given back within one poll: read it again
                self._consumer.seek(Place(partition.topic, partition.number, self._starts[partition]), PATIENCE_S)
        return Polled(records, ends)

    def _raise_fatal(self, code: int, why: str) -> None:
        if code in FATAL:
            fatal = self._consumer.fatal_error()
            raise Fenced(f"slot {self._group}: {fatal or why}. Another worker holds the slot, or the broker forgot it")
        if code in (librdkafka.TOPIC_AUTHORIZATION_FAILED, librdkafka.GROUP_AUTHORIZATION_FAILED):
            raise PermissionError(f"{self._group}: {why}. Grant this user read and write on the pipeline's topics")

    def send(
        self,
        topic: str,
        keys: Values,
        values: Values,
        headers: Sequence[list[Header]] | None = None,
        *,
        alone: bool = False,
    ) -> None:
        self._transactions.send(topic, keys, values, headers, alone=alone)

    def commit(self, positions: Mapping[Partition, Position]) -> None:
        places = [Place(p.topic, p.number, at.offset, str(at.watermark)) for p, at in positions.items()]
        self._transactions.commit(places, self._consumer)

    def abort(self) -> None:
        self._transactions.abort()

    def pause(self, partitions: Iterable[Partition]) -> None:
        self._consumer.pause(Place(p.topic, p.number) for p in partitions)

    def resume(self, partitions: Iterable[Partition]) -> None:
        self._consumer.resume(Place(p.topic, p.number) for p in partitions)

    def committed(self, partitions: Iterable[Partition]) -> dict[Partition, Position | None]:
        with _asking("what the group has committed"):
            found = self._consumer.committed((Place(p.topic, p.number) for p in partitions), ANSWER_S)
        return {
            Partition(at.topic, at.partition): None if at.offset < 0 else Position(at.offset, watermark_of(at.metadata))
            for at in found
        }

    def bounds(self, partition: Partition) -> tuple[int, int]:
        with _asking(f"the ends of {partition}"):
            return self._consumer.bounds(partition.topic, partition.number, ANSWER_S)

    def ends(self, partitions: Iterable[Partition]) -> dict[Partition, int]:
        with _asking("the ends of partitions"):
            found = self._consumer.ends([Place(p.topic, p.number) for p in partitions], ANSWER_S)
        return {Partition(place.topic, place.partition): place.offset for place in found}

    def high(self, partition: Partition) -> int | None:
        return self._consumer.known_high(partition.topic, partition.number)

    def offset_at(self, partition: Partition, timestamp: int) -> int:
        with _asking(f"what was appended to {partition} at {timestamp}"):
            found = self._consumer.offset_at(partition.topic, partition.number, max(0, timestamp), ANSWER_S)
        return self.bounds(partition)[1] if found < 0 else found

    def partitions(self, topic: str) -> int:
        if (heard := self._readers.counts.get(topic)) is not None:
            return heard
        with _asking(f"the partitions of {topic}"):
            return self._consumer.partitions(topic, ANSWER_S)

    def identity(self, topic: str) -> str:
        return identity(self._client, topic, ANSWER_S)

    def trouble(self) -> str | None:
        """A consumer fetches or at least beats all the time, once it is subscribed: what does not answer it then is
        away, or the way there is."""
        if self._placement is None:
            return None
        heard, now = self._consumer.traffic.answers, time.monotonic()
        if heard != self._heard:
            self._heard, self._heard_at = heard, now
        if (silent := now - self._heard_at) < self._silence_s:
            return None
        return f"nothing was heard of Kafka at {self._client['bootstrap.servers']} for {silent:.0f} s"

    def unread(self) -> str | None:
        return self._readers.why

    def close(self) -> None:
        """Keeps the membership: a static member that comes back within the session has its partitions at once."""
        if self._closed:
            return
        self._closed = True
        try:
            self._transactions.close()
        finally:
            self._asked.close()
            self._consumer.close()
