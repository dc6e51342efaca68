"""Kafka through librdkafka. One static member of a classic cooperative group and one transactional producer per worker
slot, so that a restarted slot has its partitions back at once.

Every rebalance happens inside ``poll``. A rebalance may fire while rows are already in hand, and the broker's fencing
checks the generation, not the ownership, so rows of a partition that was revoked during a poll are thrown away here.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from penstock.records import Header, Partition, Values, column, watermark_of
from penstock.settings import Settings
from penstock.telemetry import STALE_ROWS
from penstock.transport import librdkafka
from penstock.transport.clients import Consumer, Producer
from penstock.transport.identity import identity
from penstock.transport.librdkafka import KafkaFault, Place
from penstock.transport.messages import Survey, messages
from penstock.transport.protocol import Fenced, Placement, Polled, Position, Refusal, TransactionAborted, Unavailable
from penstock.transport.readers import Readers

log = logging.getLogger(__name__)

CONSUMER = {
    "enable.auto.commit": False,
    "isolation.level": "read_committed",
    "auto.offset.reset": "earliest",
    "enable.partition.eof": True,
    "fetch.wait.max.ms": 10,
    "fetch.min.bytes": 65536,
    "fetch.queue.backoff.ms": 5,
    "queued.min.messages": 20_000,
    "queued.max.messages.kbytes": 32_768,
    "max.partition.fetch.bytes": 1_048_576,
    "fetch.max.bytes": 4_194_304,  # an answer is unpacked whole, and its messages take ten times as much
    "topic.metadata.refresh.interval.ms": 10_000,  # what new partitions wait for
}
PRODUCER = {
    "linger.ms": 5,
    "compression.type": "lz4",
    "partitioner": "murmur2_random",  # Java's: other clients' keyed records must land in the same partitions
    "queue.buffering.max.messages": 1_000_000,
    "delivery.report.only.error": True,
    "acks": "all",
}
PATIENCE_S = 10.0
_UNLIKE = "^penstock[.]joins[.]anew$"
"""A pattern that no topic's name is like: a subscription with it is another one, which makes the client join again."""
START_S = 60.0
ANSWER_S = 30.0
"""A broker under load is slow before it is away, and nothing is lost by waiting for it."""
SILENCE_S = 5.0
"""Without an answer of any kind for longer, a broker is away; or for two heartbeats where those are seldom."""
MOST_WAITING = 500_000
"""Rows that may lie in the client's queue before more are handed to it; it takes twice as many, so it refuses none."""
_ROW_FAULTS = {
    librdkafka.MSG_SIZE_TOO_LARGE,
    librdkafka.RECORD_LIST_TOO_LARGE,
    librdkafka.INVALID_RECORD,
    librdkafka.INVALID_TIMESTAMP,
    librdkafka.INVALID_MSG,
}
"""What a row itself can be guilty of; every other failed delivery is a fault of the way, and is sent again."""
_FATAL = {
    librdkafka.FATAL,
    librdkafka.FENCED,
    librdkafka.FENCED_INSTANCE_ID,
    librdkafka.INVALID_PRODUCER_EPOCH,
}


@dataclass(frozen=True, slots=True)
class _Mark:
    """What a row carries through the client, so that a report of its failure names it: the transaction (the last seven
    bits of its number), the send and the row."""

    transaction: int
    send: int
    row: int

    @property
    def number(self) -> int:
        return (self.transaction & 0x7F) << 56 | self.send << 32 | self.row

    @staticmethod
    def read(number: int) -> "_Mark":
        return _Mark(number >> 56, number >> 32 & 0xFFFFFF, number & 0xFFFFFFFF)


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
        self._exactly_once = settings.guarantee == "exactly_once"
        self._sends = 0
        self._transaction = 0
        self._refused: list[Refusal] = []
        self._failed: list[Refusal] = []
        self._unsent: str | None = None
        self._open = self._closed = False
        self._placement: Placement | None = None
        self._starts: dict[Partition, int] = {}
        self._revoked: set[Partition] = set()
        self._trouble: BaseException | None = None
        self._silence_s = max(SILENCE_S, settings.session_timeout_ms / 2000)
        self._heard, self._heard_at = 0, time.monotonic()
        self._produces = {**client, **PRODUCER, "message.max.bytes": max_message_bytes}
        if self._exactly_once:
            self._produces |= {"transactional.id": slot, "transaction.timeout.ms": settings.transaction_timeout_ms}
        else:
            self._produces |= {"enable.idempotence": True}
        self._cut_off = False
        self._producer = Producer(self._produces, self._on_producer_error, self._on_failed)
        try:
            if self._exactly_once:
                self._begin_as(slot)
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
            self._producer.close()
            raise
        self._topics: list[str] = []
        self._altered = False
        self._asked = self._consumer.descriptions()
        self._readers = Readers(self._asked, group, slot, planned or {})

    def _begin_as(self, slot: str) -> None:
        """Fences the slot's former holder. A wrong address or certificate looks like a broker that is late."""
        deadline = time.monotonic() + START_S
        while True:
            try:
                self._producer.init_transactions(PATIENCE_S)
                self._producer.poll()  # tells of what went wrong on the way here
                self._cut_off = False
                return
            except KafkaFault as fault:
                if fault.fatal or fault.code in _FATAL:
                    raise Fenced(f"slot {slot}: init_transactions: {fault}") from fault
                if not fault.retriable or time.monotonic() > deadline:
                    raise Unavailable(
                        f"Kafka at {self._client['bootstrap.servers']} does not let {slot} begin: {fault}. Look at the"
                        " address, the TLS and SASL settings, and this user's right on the transactional id"
                    ) from fault
                log.warning("Kafka is asked again to let %s begin: %s", slot, fault)

    def _begin(self) -> None:
        """With a new producer where the old one may be harmed by what went before. Its epoch keeps a former
        transaction's late requests out, and it remembers no coordinator that is gone: the old one might wait for that
        for ever (librdkafka's issue 5511).
        """
        if self._exactly_once:
            self._producer.poll()  # tells its errors
            repeated = self._asked_again(librdkafka.END_TXN) or self._asked_again(librdkafka.TXN_OFFSET_COMMIT)
            if repeated or self._cut_off:
                why = "an end was asked for twice" if repeated else "the broker was away"
                log.warning("a new producer takes over: %s", why)
                self._producer.close()
                self._producer = Producer(self._produces, self._on_producer_error, self._on_failed)
                self._begin_as(self._client["client.id"])
            self._producer.traffic.mark()
            self._producer.begin()
        self._open = True

    def _asked_again(self, api: int) -> bool:
        """A transaction sends one request of this kind. If that was lost on its way and another did what it should, the
        lost one may come yet, and act on whichever transaction is open then: librdkafka has no KIP-890."""
        return self._producer.traffic.sent(api) > 1

    def subscribe(self, topics: Sequence[str], placement: Placement) -> None:
        self._placement, self._topics, self._heard_at = placement, list(topics), time.monotonic()
        self._readers.watch(topics, PATIENCE_S)
        for topic in topics:
            self.partitions(topic)  # raises where it is not there, or the broker is away
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

    def _on_producer_error(self, code: int, why: str) -> None:
        self._cut_off = True
        self._on_error(code, why)

    def _on_failed(self, code: int, number: int) -> None:
        mark = _Mark.read(number)
        if mark.transaction != self._transaction & 0x7F:  # of an aborted transaction, whose rows were sent again
            return
        why = str(KafkaFault(code))
        if code in _ROW_FAULTS:
            self._failed.append(Refusal(mark.send, mark.row, why))
        else:
            self._unsent = why

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
        if code in _FATAL:
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
        if not self._open:
            self._begin()
        send, self._sends = self._sends, self._sends + 1
        keys, values = column(keys), column(values)
        if len(keys) != len(values):
            raise ValueError(f"{len(values)} rows for {topic!r} and {len(keys)} keys: each row has one, or a null")
        if alone:
            self._producer.flush(PATIENCE_S)
        if self._unsent is not None:  # the transaction is lost, and all of this goes again
            return
        if headers is None:
            self._send_together(topic, keys, values, send)
        else:
            self._send_one_by_one(topic, keys, values, headers, send)
        if alone:
            self._producer.flush(PATIENCE_S)
            if self._failed:  # what comes behind them would only fail with them
                self._unsent = self._failed[0].message
        self._producer.poll()

    def _send_together(self, topic: str, keys: "pa.Array", values: "pa.Array", send: int) -> None:
        rows = messages(keys, values, _Mark(self._transaction, send, 0).number)
        self._make_room(len(rows))
        if self._producer.produce(topic, rows) < len(rows):
            for row in np.flatnonzero(rows["err"]).tolist():
                self._refuse(send, row, int(rows["err"][row]))

    def _send_one_by_one(
        self,
        topic: str,
        keys: "pa.Array",
        values: "pa.Array",
        headers: Sequence[list[Header]],
        send: int,
    ) -> None:
        for row, (key, value) in enumerate(zip(keys.to_pylist(), values.to_pylist(), strict=True)):
            self._make_room(1)
            mark = _Mark(self._transaction, send, row).number
            try:
                self._producer.produce_one(topic, key, value, headers[row], mark)
            except KafkaFault as fault:
                self._refuse(send, row, fault.code)

    def _make_room(self, rows: int) -> None:
        while (waiting := self._producer.waiting) and waiting + rows > MOST_WAITING:
            self._producer.poll(0.005)

    def _refuse(self, send: int, row: int, code: int) -> None:
        why = str(KafkaFault(code))
        if code == librdkafka.FATAL:
            raise Fenced(f"slot {self._group}: {self._producer.fatal_error() or why}")
        if code in _ROW_FAULTS:
            self._refused.append(Refusal(send, row, why, sure=True))
        else:  # the transaction has failed already: this row is not to blame, and goes again with the others
            self._unsent = why

    def commit(self, positions: Mapping[Partition, Position]) -> None:
        places = [Place(p.topic, p.number, at.offset, str(at.watermark)) for p, at in positions.items()]
        if self._refused or self._unsent is not None:
            self._producer.flush(PATIENCE_S)
            why = self._unsent or "rows were refused by the client"
            raise TransactionAborted(why, [*self._refused, *self._failed])
        try:
            if not self._exactly_once:
                while not self._producer.flush(PATIENCE_S):
                    log.warning("%d rows are not delivered yet", self._producer.waiting)
                if self._failed or self._unsent is not None:
                    raise TransactionAborted(self._unsent or "rows were refused", self._failed)
                if places:
                    self._consumer.commit(places)
            else:
                if not self._open:
                    self._begin()
                if places:
                    with self._consumer.group_metadata() as group:
                        self._insist(lambda: self._producer.send_offsets(places, group, PATIENCE_S), "send offsets")
                self._insist(lambda: self._producer.commit(PATIENCE_S), "commit")
        except KafkaFault as fault:
            # of two requests to commit the first may have done it, whatever the second was told
            abortable = fault.abortable and not self._asked_again(librdkafka.END_TXN)
            if not self._exactly_once or abortable:
                self._producer.flush(PATIENCE_S)  # the reports that name the rows may still be on their way
                raise TransactionAborted(str(fault), self._failed) from fault
            raise Fenced(f"slot {self._group}: {fault}") from fault
        self._forget()

    def abort(self) -> None:
        opened, self._open = self._open, False
        self._forget()
        if opened and self._exactly_once:
            # an abort that overtakes the registration of its partitions is refused, and that is fatal
            self._producer.flush(PATIENCE_S)
            try:
                self._insist(lambda: self._producer.abort(PATIENCE_S), "abort")
            except KafkaFault as fault:
                raise Fenced(f"slot {self._group}: {fault}") from fault

    def _forget(self) -> None:
        self._open = False
        self._transaction += 1
        self._sends, self._refused, self._failed, self._unsent = 0, [], [], None

    def _insist(self, call: Callable[[], None], what: str) -> None:
        """Retriable errors mean the same call again: a commit that timed out goes on in the background."""
        while True:
            try:
                return call()
            except KafkaFault as fault:
                if not fault.retriable:
                    if fault.fatal or fault.code in _FATAL:
                        raise Fenced(f"slot {self._group}: {what}: {fault}") from fault
                    raise
                log.warning("%s is tried again: %s", what, fault)
                time.sleep(0.01)

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
            if self._open and self._exactly_once:
                self._producer.abort(PATIENCE_S)
        except KafkaFault as fault:  # the next holder's init_transactions aborts it, or has done so
            log.warning("the open transaction is left to the broker: %s", fault)
        try:
            self._asked.close()
            self._consumer.close()
        finally:
            self._producer.close()
