"""Kafka through librdkafka: the only module on the hot path that knows confluent_kafka. One static member of a classic
cooperative group and one transactional producer per worker slot, so that a restarted slot has its partitions back at
once.

Every rebalance happens inside ``poll``. A rebalance may fire while rows are already in hand, and the broker's fencing
checks the generation, not the ownership, so rows of a partition that was revoked during a poll are thrown away here.
"""

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

from confluent_kafka import (
    OFFSET_INVALID,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicPartition,
)

from penstock.records import NO_TIME, Header, Key, Partition
from penstock.settings import Settings
from penstock.telemetry import STALE_ROWS
from penstock.transport.messages import by_topic
from penstock.transport.protocol import Fenced, Placement, Polled, Position, Refusal, TransactionAborted

log = logging.getLogger(__name__)

CONSUMER = {
    "enable.auto.commit": False,
    "isolation.level": "read_committed",
    "auto.offset.reset": "earliest",
    "enable.partition.eof": True,
    "fetch.wait.max.ms": 10,
    "fetch.min.bytes": 65536,
    "fetch.queue.backoff.ms": 5,
    "queued.min.messages": 60_000,
    "queued.max.messages.kbytes": 32_768,
    "max.partition.fetch.bytes": 2_097_152,
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
_ROW_FAULTS = {
    KafkaError.MSG_SIZE_TOO_LARGE,
    KafkaError.RECORD_LIST_TOO_LARGE,
    KafkaError.INVALID_RECORD,
    KafkaError.INVALID_TIMESTAMP,
    KafkaError.INVALID_MSG,
}
"""What a row itself can be guilty of; every other failed delivery is a fault of the way, and is sent again."""
_FATAL = {KafkaError._FATAL, KafkaError._FENCED, KafkaError.FENCED_INSTANCE_ID, KafkaError.INVALID_PRODUCER_EPOCH}


class KafkaTransport:
    """Consumes ``topics`` for ``group`` and produces in transactions named after the slot.

    ``max_message_bytes``: the largest row that any of the output topics takes. Raises ``Fenced`` where the slot has a
    newer holder.
    """

    def __init__(self, settings: Settings, group: str, stage: str, max_message_bytes: int = 1_100_000) -> None:
        slot = f"{group}.{settings.slot}"
        client = {**settings.kafka(), "client.id": slot, "error_cb": self._on_error, "logger": log}
        self._stage, self._group = stage, group
        self._exactly_once = settings.guarantee == "exactly_once"
        self._sends: list[tuple[str, Sequence[bytes | None], bool]] = []
        self._refused: list[Refusal] = []
        self._failed: list[tuple[str, bytes | None, str]] = []
        self._unsent: str | None = None
        self._open = self._closed = False
        self._placement: Placement | None = None
        self._only: str | None = None
        self._starts: dict[Partition, int] = {}
        self._revoked: set[Partition] = set()
        self._trouble: BaseException | None = None
        producer = {**client, **PRODUCER, "message.max.bytes": max_message_bytes, "on_delivery": self._on_delivery}
        if self._exactly_once:
            producer |= {"transactional.id": slot, "transaction.timeout.ms": settings.transaction_timeout_ms}
        else:
            producer |= {"enable.idempotence": True}
        self._producer = Producer(producer)
        if self._exactly_once:
            self._insist(lambda: self._producer.init_transactions(30.0), "init_transactions")
        self._consumer = Consumer(
            {
                **client,
                **CONSUMER,
                "group.id": group,
                "group.instance.id": slot,
                "partition.assignment.strategy": "cooperative-sticky",
                "session.timeout.ms": settings.session_timeout_ms,
                "heartbeat.interval.ms": max(500, settings.session_timeout_ms // 4),
            }
        )

    def subscribe(self, topics: Sequence[str], placement: Placement) -> None:
        self._placement = placement
        self._only = topics[0] if len(topics) == 1 else None
        self._consumer.subscribe(
            list(topics), on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost
        )

    def _on_assign(self, consumer: Consumer, assigned: list[TopicPartition]) -> None:
        if self._closed:
            return
        # an exception must not be lost inside librdkafka's callback: keep it for poll
        try:
            assert self._placement is not None
            starts = self._placement.assigned(self.committed([Partition(p.topic, p.partition) for p in assigned]))
            self._starts.update(starts)
            consumer.incremental_assign([TopicPartition(p.topic, p.number, at) for p, at in starts.items()])
        except BaseException as error:  # noqa: BLE001  # re-raised by poll
            self._trouble = error

    def _on_revoke(self, consumer: Consumer, revoked: list[TopicPartition]) -> None:
        self._take_away(consumer, revoked, lost=False)

    def _on_lost(self, consumer: Consumer, lost: list[TopicPartition]) -> None:
        self._take_away(consumer, lost, lost=True)

    def _take_away(self, consumer: Consumer, gone: list[TopicPartition], *, lost: bool) -> None:
        if self._closed:  # an unassign from inside close() waits for itself; the client does its own
            return
        partitions = [Partition(p.topic, p.partition) for p in gone]
        self._revoked.update(partitions)
        try:
            assert self._placement is not None
            (self._placement.lost if lost else self._placement.revoked)(partitions)
        except BaseException as error:  # noqa: BLE001  # re-raised by poll
            self._trouble = error
        for partition in partitions:
            self._starts.pop(partition, None)
        consumer.incremental_unassign(gone)

    def _on_error(self, error: KafkaError) -> None:
        log.warning("kafka client: %s", error.str(), extra={"code": error.name()})

    def _on_delivery(self, error: KafkaError, message: Message) -> None:
        if error.code() in _ROW_FAULTS:
            self._failed.append((message.topic(), message.value(), error.str()))

    def poll(self, max_rows: int, wait_s: float) -> Polled:
        self._revoked.clear()
        try:
            messages = self._consumer.consume(1, wait_s)
            if messages and max_rows > 1:
                messages += self._consumer.consume(max_rows - 1, 0)
        except KafkaException as raised:
            self._raise_fatal(raised.args[0])
            log.warning("poll failed and is tried again: %s", raised.args[0].str())
            messages = []
        if self._trouble is not None:
            trouble, self._trouble = self._trouble, None
            raise trouble
        errors = list(map(Message.error, messages))
        ends: dict[Partition, int] = {}
        if any(errors):
            for message, error in zip(messages, errors, strict=True):
                if error is None:
                    continue
                if error.code() == KafkaError._PARTITION_EOF:
                    ends[Partition(message.topic(), message.partition())] = message.offset()
                    continue
                self._raise_fatal(error)
                log.warning("consumer: %s", error.str(), extra={"topic": message.topic()})
            messages = [m for m, error in zip(messages, errors, strict=True) if error is None]
        if self._revoked:
            messages = self._without_stale(messages)
        return Polled(by_topic(messages, self._only), ends)

    def _without_stale(self, messages: list[Message]) -> list[Message]:
        fresh = [m for m in messages if Partition(m.topic(), m.partition()) not in self._revoked]
        STALE_ROWS.labels(self._stage).inc(len(messages) - len(fresh))
        for partition in self._revoked & self._starts.keys():  # taken and given back within one poll: read it again
            self._consumer.seek(TopicPartition(partition.topic, partition.number, self._starts[partition]))
        return fresh

    def _raise_fatal(self, error: KafkaError) -> None:
        if error.fatal() or error.code() in _FATAL:
            raise Fenced(f"slot {self._group}: {error.str()}. Another worker holds the slot, or the broker forgot it")
        if error.code() in (KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.GROUP_AUTHORIZATION_FAILED):
            raise PermissionError(
                f"{self._group}: {error.str()}. Grant this user read and write on the pipeline's topics"
            )

    def send(
        self,
        topic: str,
        keys: Sequence[Key],
        values: Sequence[bytes | None],
        headers: Sequence[list[Header]] | None = None,
        *,
        alone: bool = False,
    ) -> None:
        if self._exactly_once and not self._open:
            self._producer.begin_transaction()
        self._open = True
        number = len(self._sends)
        self._sends.append((topic, values, alone))
        produce = self._producer.produce
        if headers is None and not alone:  # the hot path: half of a worker's time may be spent in this loop
            for row, key, value in zip(range(len(values)), keys, values, strict=True):
                try:
                    produce(topic, value, key)
                except BufferError:
                    self._make_room(partial(produce, topic, value, key))
                except KafkaException as error:
                    self._refuse(number, row, error)
        else:
            for row, (key, value) in enumerate(zip(keys, values, strict=True)):
                try:
                    self._make_room(partial(produce, topic, value, key, headers=headers[row] if headers else None))
                except KafkaException as error:
                    self._refuse(number, row, error)
                if alone:
                    self._producer.flush()
        self._producer.poll(0)

    def _make_room(self, produce: Callable[[], None]) -> None:
        while True:
            try:
                return produce()
            except BufferError:
                self._producer.poll(0.05)

    def _refuse(self, send: int, row: int, raised: KafkaException) -> None:
        error = raised.args[0]
        if error.fatal():
            raise Fenced(f"slot {self._group}: {error.str()}")
        if error.code() in _ROW_FAULTS:
            self._refused.append(Refusal(send, row, error.str()))
        else:  # the transaction has failed already: this row is not to blame, and goes again with the others
            self._unsent = error.str()

    def commit(self, positions: Mapping[Partition, Position]) -> None:
        offsets = [
            TopicPartition(partition.topic, partition.number, at.offset, str(at.watermark))
            for partition, at in positions.items()
        ]
        if self._refused or self._unsent is not None:
            self._producer.flush(PATIENCE_S)
            why = self._unsent or "rows were refused by the client"
            raise TransactionAborted(why, [*self._refused, *self._named()])
        try:
            if not self._exactly_once:
                self._producer.flush()
                if self._failed:
                    raise TransactionAborted("rows were refused", self._named())
                if offsets:
                    self._consumer.commit(offsets=offsets, asynchronous=False)
            else:
                if not self._open:
                    self._producer.begin_transaction()
                    self._open = True
                if offsets:
                    group = self._consumer.consumer_group_metadata()
                    self._insist(
                        lambda: self._producer.send_offsets_to_transaction(offsets, group, PATIENCE_S), "send offsets"
                    )
                self._insist(lambda: self._producer.commit_transaction(PATIENCE_S), "commit")
        except KafkaException as raised:
            error = raised.args[0]
            if not self._exactly_once or error.txn_requires_abort():
                self._producer.flush(PATIENCE_S)  # the reports that name the rows may still be on their way
                raise TransactionAborted(error.str(), self._named()) from raised
            raise Fenced(f"slot {self._group}: {error.str()}") from raised
        self._forget()

    def abort(self) -> None:
        if self._open and self._exactly_once:
            try:
                self._insist(lambda: self._producer.abort_transaction(PATIENCE_S), "abort")
            except KafkaException as raised:
                raise Fenced(f"slot {self._group}: {raised.args[0].str()}") from raised
            self._producer.flush(PATIENCE_S)  # reports of this transaction must not be taken for the next one's
        self._forget()

    def _forget(self) -> None:
        self._open = False
        self._sends, self._refused, self._failed, self._unsent = [], [], [], None

    def _named(self) -> list[Refusal]:
        """The rows behind the delivery reports: rare, so they are searched for. When the broker refuses one row of a
        request, all of the request's rows fail; among rows that were sent alone only the first failure counts, for it
        brings down those after it."""
        named = []
        for topic, value, message in self._failed:
            for number, (sent_to, values, alone) in enumerate(self._sends):
                if sent_to == topic:
                    named += [Refusal(number, row, message) for row, sent in enumerate(values) if sent == value]
                    if alone and named:
                        return named
        return sorted(set(named))

    def _insist(self, call: Callable[[], None], what: str) -> None:
        """Retriable errors mean the same call again: a commit that timed out goes on in the background."""
        while True:
            try:
                return call()
            except KafkaException as raised:
                error = raised.args[0]
                if not error.retriable():
                    if error.fatal() or error.code() in _FATAL:
                        raise Fenced(f"slot {self._group}: {what}: {error.str()}") from raised
                    raise
                log.warning("%s is tried again: %s", what, error.str())
                time.sleep(0.01)

    def pause(self, partitions: Iterable[Partition]) -> None:
        self._consumer.pause([TopicPartition(p.topic, p.number) for p in partitions])

    def resume(self, partitions: Iterable[Partition]) -> None:
        self._consumer.resume([TopicPartition(p.topic, p.number) for p in partitions])

    def committed(self, partitions: Iterable[Partition]) -> dict[Partition, Position | None]:
        found = self._consumer.committed([TopicPartition(p.topic, p.number) for p in partitions], timeout=30)
        return {
            Partition(at.topic, at.partition): None
            if at.offset < 0
            else Position(at.offset, int(at.metadata) if at.metadata else NO_TIME)
            for at in found
        }

    def bounds(self, partition: Partition) -> tuple[int, int]:
        low, high = self._consumer.get_watermark_offsets(TopicPartition(partition.topic, partition.number), timeout=30)
        return low, high

    def high(self, partition: Partition) -> int | None:
        _, high = self._consumer.get_watermark_offsets(TopicPartition(partition.topic, partition.number), cached=True)
        return None if high < 0 else high

    def offset_at(self, partition: Partition, timestamp: int) -> int:
        (found,) = self._consumer.offsets_for_times(
            [TopicPartition(partition.topic, partition.number, max(0, timestamp))], timeout=30
        )
        if found.error is not None:
            raise KafkaException(found.error)
        return self.bounds(partition)[1] if found.offset in (-1, OFFSET_INVALID) else found.offset

    def partitions(self, topic: str) -> int:
        metadata = self._consumer.list_topics(topic, timeout=30).topics[topic]
        if metadata.error is not None:
            raise KafkaException(metadata.error)
        return len(metadata.partitions)

    def close(self) -> None:
        """Keeps the membership: a static member that comes back within the session has its partitions at once. Must be
        called: a client that is left to the garbage collector blocks the interpreter in its destructor.
        """
        if self._closed:
            return
        # an assignment that arrives only inside close() would wait for itself there: let it come in first
        if self._placement is not None:
            self._consumer.consume(1, 0.0)
        self._closed = True
        if self._open and self._exactly_once:
            try:
                self.abort()
            except Fenced as error:  # the newer holder's init_transactions has aborted it already
                log.warning("%s", error)
        self._consumer.close()
