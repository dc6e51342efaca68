"""A consumer and a producer that move batches: one call takes or gives thousands of messages, and none of them becomes
a Python object (``messages.py`` turns them into columns and back).

confluent-kafka, whose librdkafka this is, takes and gives messages one by one, which was half of a worker's time;
whatever does not move batches stays with it. Clients must be closed: nothing here has a destructor. Callbacks run
inside ``consume``, ``poll``, ``flush`` and the transaction's calls, on the caller's thread.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from ctypes import POINTER, byref, c_int64, create_string_buffer
from typing import Any

import numpy as np
import numpy.typing as npt

from penstock.records import Header
from penstock.settings import refused
from penstock.transport.descriptions import Descriptions
from penstock.transport.librdkafka import (
    ASSIGN_PARTITIONS,
    END,
    ERRONEOUS_STATE,
    NO_ERROR,
    ON_DELIVERY,
    ON_ERROR,
    ON_LOG,
    ON_REBALANCE,
    TIMED_OUT,
    Content,
    KafkaFault,
    Metadata,
    Part,
    Place,
    check,
    check_error,
    content_of,
    elements,
    listed,
    named,
    places_of,
    rd,
)
from penstock.transport.traffic import Traffic

log = logging.getLogger(__name__)

_ANY_PARTITION, _COPY, _DESTROY_WITHOUT_CLOSE = -1, 2, 8
_CONSUMER, _PRODUCER = 1, 0
_VALUE, _KEY, _OPAQUE, _FLAGS, _HEADERS, _TOPIC = 4, 5, 6, 7, 10, 2
_SYSLOG = (logging.CRITICAL,) * 3 + (logging.ERROR, logging.WARNING, logging.INFO, logging.INFO, logging.DEBUG)
_TEXT = 512
_CLOSE_S = 10.0


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


class _Client:
    """One ``rd_kafka_t``. ``config``: librdkafka's settings by name. Raises ``ValueError`` for one it does not take,
    ``InvalidSettings`` where it cannot connect with them."""

    def __init__(self, kind: int, config: Mapping[str, Any], on_error: Callable[[int, str], None]) -> None:
        conf = rd.conf_new()
        text = create_string_buffer(_TEXT)
        for name, value in {**config, "log.queue": True}.items():
            plain = str(value).lower() if isinstance(value, bool) else str(value)
            if rd.conf_set(conf, name.encode(), plain.encode(), text, _TEXT):
                rd.conf_destroy(conf)
                raise ValueError(f"Kafka setting {name!r}: {text.value.decode()}")
        self._callbacks: list[Any] = [
            ON_ERROR(lambda _, code, why, __: on_error(code, why.decode(errors="replace"))),
            ON_LOG(_tell),
        ]
        rd.conf_set_error_cb(conf, self._callbacks[0])
        rd.conf_set_log_cb(conf, self._callbacks[1])
        self._configure(conf)
        self.traffic = Traffic(conf)
        self.handle = rd.new(kind, conf, text, _TEXT)
        if not self.handle:
            rd.conf_destroy(conf)
            raise refused(text.value.decode(errors="replace"))
        rd.set_log_queue(self.handle, None)

    def _configure(self, conf: int) -> None: ...

    def fatal_error(self) -> KafkaFault | None:
        """What has put the client beyond repair."""
        text = create_string_buffer(_TEXT)
        code = rd.fatal_error(self.handle, text, _TEXT)
        return KafkaFault(code, text.value.decode(errors="replace"), fatal=True) if code else None


def _tell(_: int, level: int, facility: bytes, text: bytes) -> None:
    log.log(_SYSLOG[level & 7], "%s: %s", facility.decode(errors="replace"), text.decode(errors="replace"))


class Consumer(_Client):
    """``on_rebalance(assigned, places, lost)`` must answer with ``assign`` or ``unassign`` of the same places; it is
    not asked while the consumer closes."""

    def __init__(
        self,
        config: Mapping[str, Any],
        on_error: Callable[[int, str], None],
        on_rebalance: Callable[[bool, list[Place], bool], None],
    ) -> None:
        self._on_rebalance = on_rebalance
        self._closing = self._answered = False
        super().__init__(_CONSUMER, config, on_error)
        rd.poll_set_consumer(self.handle)
        self._queue = rd.queue_get_consumer(self.handle)

    def _configure(self, conf: int) -> None:
        def rebalance(handle: int, code: int, them: Any, _: int) -> None:
            assigned = code == ASSIGN_PARTITIONS
            if self._closing:
                # the first answer ends the group, and a second one would wait for it for ever
                if not self._answered:
                    self._answered = True
                    check_error((rd.incremental_assign if assigned else rd.incremental_unassign)(handle, them))
            else:
                self._on_rebalance(assigned, named(them), not assigned and bool(rd.assignment_lost(handle)))

        self._callbacks.append(ON_REBALANCE(rebalance))
        rd.conf_set_rebalance_cb(conf, self._callbacks[-1])

    def consume(self, most: int, wait_s: float) -> npt.NDArray[np.uint64]:
        """Pointers to at most ``most`` messages, uint64[n], errors and ends of partitions among them; waits for the
        first one only. Each must be destroyed. Raises ``KafkaFault``."""
        found = np.empty(most, np.uint64)
        count = rd.consume_batch_queue(self._queue, _ms(wait_s), found.ctypes.data, 1)
        if count == 1 and most > 1:
            count += max(0, rd.consume_batch_queue(self._queue, 0, found[1:].ctypes.data, most - 1))
        if count < 0:
            raise KafkaFault(rd.last_error())
        return found[:count]

    def subscribe(self, topics: Sequence[str]) -> None:
        with listed(Place(topic, -1) for topic in topics) as them:
            check(rd.subscribe(self.handle, them))

    def assign(self, places: Iterable[Place]) -> None:
        """Adds to the assignment."""
        with listed(places) as them:
            check_error(rd.incremental_assign(self.handle, them))

    def unassign(self, places: Iterable[Place]) -> None:
        """Takes from the assignment."""
        with listed(places) as them:
            check_error(rd.incremental_unassign(self.handle, them))

    def seek(self, place: Place, wait_s: float) -> None:
        """Returns when it is done: whatever was fetched before is never given out then. A partition that is not being
        fetched yet has given nothing out."""
        with listed([place]) as them:
            check_error(rd.seek_partitions(self.handle, them, _ms(wait_s)))
            try:
                places_of(them)
            except KafkaFault as fault:
                if fault.code != ERRONEOUS_STATE:
                    raise

    def pause(self, places: Iterable[Place]) -> None:
        with listed(places) as them:
            check(rd.pause_partitions(self.handle, them))

    def resume(self, places: Iterable[Place]) -> None:
        with listed(places) as them:
            check(rd.resume_partitions(self.handle, them))

    def committed(self, places: Iterable[Place], wait_s: float) -> list[Place]:
        """What the group has committed; a negative offset where nothing is."""
        with listed(places) as them:
            check(rd.committed(self.handle, them, _ms(wait_s)))
            return places_of(them)

    def commit(self, places: Iterable[Place]) -> None:
        """Waits until the broker has them."""
        with listed(places) as them:
            check(rd.commit(self.handle, them, 0))

    def bounds(self, topic: str, partition: int, wait_s: float) -> tuple[int, int]:
        """First and end offset, asked of the broker."""
        low, high = c_int64(), c_int64()
        check(rd.query_watermark_offsets(self.handle, topic.encode(), partition, byref(low), byref(high), _ms(wait_s)))
        return low.value, high.value

    def ends(self, places: Iterable[Place], wait_s: float) -> list[Place]:
        """The end offsets, behind what is not committed yet too. Raises ``KafkaFault`` where one is not answered."""
        queue = rd.queue_new(self.handle)
        try:
            with listed(Place(place.topic, place.partition, END) for place in places) as them:
                rd.ListOffsets(self.handle, them, None, queue)
            event = rd.queue_poll(queue, _ms(wait_s))
            if not event:
                raise KafkaFault(TIMED_OUT)
            try:
                check(rd.event_error(event))
                told = elements(rd.ListOffsets_result_infos, rd.event_ListOffsets_result(event))
                found = [rd.ListOffsetsResultInfo_topic_partition(info).contents for info in told]
                for each in found:  # a leader that was lost meanwhile gives neither an error nor an offset
                    check(each.err or (TIMED_OUT if each.offset < 0 else NO_ERROR))
                return [Place(each.topic.decode(), each.partition, each.offset) for each in found]
            finally:
                rd.event_destroy(event)
        finally:
            rd.queue_destroy(queue)

    def known_high(self, topic: str, partition: int) -> int | None:
        """The end offset as the last fetch heard it."""
        low, high = c_int64(), c_int64()
        if rd.get_watermark_offsets(self.handle, topic.encode(), partition, byref(low), byref(high)):
            return None
        return high.value if high.value >= 0 else None

    def offset_at(self, topic: str, partition: int, timestamp: int, wait_s: float) -> int:
        """First offset appended at or after ``timestamp``; negative where there is none."""
        with listed([Place(topic, partition, timestamp)]) as them:
            check(rd.offsets_for_times(self.handle, them, _ms(wait_s)))
            (found,) = places_of(them)
            return found.offset

    def partitions(self, topic: str, wait_s: float) -> int:
        """How many partitions the topic has."""
        handle = rd.topic_new(self.handle, topic.encode(), None)
        answer = POINTER(Metadata)()
        try:
            check(rd.metadata(self.handle, 0, handle, byref(answer), _ms(wait_s)))
            facts = answer.contents.topics[0]
            check(facts.err)
            return int(facts.partition_cnt)
        finally:
            if answer:
                rd.metadata_destroy(answer)
            rd.topic_destroy(handle)

    @contextmanager
    def group_metadata(self) -> Iterator[int]:
        """What a transaction says to commit offsets for this member."""
        found = rd.consumer_group_metadata(self.handle)
        try:
            yield found
        finally:
            rd.consumer_group_metadata_destroy(found)

    def descriptions(self) -> Descriptions:
        """What is asked over this client's connections; to be closed before it."""
        return Descriptions(self.handle)

    def close(self) -> None:
        """Ends without leaving the group: a static member that comes back within the session has its partitions."""
        self._closing = True
        last = rd.queue_new(self.handle)
        fatal = rd.consumer_close_queue(self.handle, last)
        # a rebalance that is under way wants its answer first, or the close never ends
        found, deadline = np.empty(1, np.uint64), time.monotonic() + _CLOSE_S
        while not fatal and not rd.consumer_closed(self.handle) and time.monotonic() < deadline:
            for queue in (self._queue, last):
                if rd.consume_batch_queue(queue, 1, found.ctypes.data, 1) == 1:
                    rd.message_destroy(int(found[0]))
        if fatal:  # the group has forgotten this member already
            rd.error_destroy(fatal)
        rd.queue_destroy(last)
        rd.queue_destroy(self._queue)
        rd.destroy_flags(self.handle, _DESTROY_WITHOUT_CLOSE)


class Producer(_Client):
    """``on_failed(code, mark)`` is told of every row that could not be delivered, by the mark it was sent with."""

    def __init__(
        self,
        config: Mapping[str, Any],
        on_error: Callable[[int, str], None],
        on_failed: Callable[[int, int], None],
    ) -> None:
        self._on_failed = on_failed
        self._topics: dict[str, int] = {}
        super().__init__(_PRODUCER, config, on_error)

    def _configure(self, conf: int) -> None:
        def delivered(_: int, message: Any, __: int) -> None:
            found = message.contents
            if found.err:
                self._on_failed(found.err, found.private)

        self._callbacks.append(ON_DELIVERY(delivered))
        rd.conf_set_dr_msg_cb(conf, self._callbacks[-1])

    def topic(self, name: str) -> int:
        """The topic's handle, made once."""
        found = self._topics.get(name)
        if found is None:
            found = self._topics[name] = rd.topic_new(self.handle, name.encode(), None)
        return found

    def produce(self, topic: str, messages: npt.NDArray[np.void]) -> int:
        """Hands over ``messages`` (of ``MESSAGE``), whose bytes are copied; returns how many were taken and leaves the
        others' ``err`` set. The partitioner chooses by key."""
        return int(rd.produce_batch(self.topic(topic), _ANY_PARTITION, _COPY, messages.ctypes.data, len(messages)))

    def produce_one(
        self, topic: str, key: bytes | None, value: bytes | None, headers: Sequence[Header], mark: int
    ) -> None:
        """One row with headers. Raises ``KafkaFault``."""
        made = rd.headers_new(len(headers))
        for name, content in headers:
            raw = name.encode()
            rd.header_add(made, raw, len(raw), content, -1 if content is None else len(content))
        parts = (Part * 6)(
            Part(_TOPIC, Content(self.topic(topic))),
            Part(_VALUE, content_of(value)),
            Part(_KEY, content_of(key)),
            Part(_FLAGS, Content(_COPY)),
            Part(_OPAQUE, Content(mark)),
            Part(_HEADERS, Content(made)),
        )
        try:
            check_error(rd.produceva(self.handle, parts, len(parts)))
        except KafkaFault:
            rd.headers_destroy(made)
            raise

    def poll(self, wait_s: float = 0.0) -> None:
        """Serves callbacks."""
        rd.poll(self.handle, _ms(wait_s))

    @property
    def waiting(self) -> int:
        """Rows that are not delivered yet."""
        return int(rd.outq_len(self.handle))

    def flush(self, wait_s: float) -> bool:
        """Whether everything was delivered, or has failed. Where only failures are reported, librdkafka sees a delivery
        at its next look, 10 ms later: it is asked in smaller steps."""
        deadline, step_ms = time.monotonic() + wait_s, 1
        while rd.flush(self.handle, min(step_ms, _ms(wait_s))) != NO_ERROR:
            if time.monotonic() > deadline:
                return False
            step_ms = min(step_ms * 2, 50)
        return True

    def init_transactions(self, wait_s: float) -> None:
        check_error(rd.init_transactions(self.handle, _ms(wait_s)))

    def begin(self) -> None:
        check_error(rd.begin_transaction(self.handle))

    def send_offsets(self, places: Iterable[Place], group: int, wait_s: float) -> None:
        with listed(places) as them:
            check_error(rd.send_offsets_to_transaction(self.handle, them, group, _ms(wait_s)))

    def commit(self, wait_s: float) -> None:
        check_error(rd.commit_transaction(self.handle, _ms(wait_s)))

    def abort(self, wait_s: float) -> None:
        check_error(rd.abort_transaction(self.handle, _ms(wait_s)))

    def close(self) -> None:
        """What was not delivered is given up."""
        for handle in self._topics.values():
            rd.topic_destroy(handle)
        rd.destroy_flags(self.handle, _DESTROY_WITHOUT_CLOSE)
