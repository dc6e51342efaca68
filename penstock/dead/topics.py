"""Reading topics of which no plan is at hand: committed records up to the end as it was at the start, and single
records by their place.
"""

import time
from collections.abc import Iterator

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from penstock.connecting import connecting
from penstock.settings import Settings

DEAD, REPLAYED = ".dead", ".replayed"
TIMEOUT_S = 15.0
_CHUNK = 500
_ABSENT = (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION)


class TopicUnreadable(Exception):
    """A topic that is not there, or a broker that does not answer; the message names the mend."""


def pipeline_of(topic: str) -> str:
    """``NAME`` of ``NAME.dead``. Raises ``TopicUnreadable`` for any other name."""
    if not topic.endswith(DEAD):
        raise TopicUnreadable(f"{topic!r} is no topic of dead letters: theirs end with {DEAD!r}, as {topic + DEAD!r}")
    return topic.removesuffix(DEAD)


def reading(settings: Settings) -> Consumer:
    """A consumer that joins no group and commits nothing. Raises ``InvalidSettings``."""
    config = {
        **settings.kafka(),
        "group.id": "penstock.dead",  # librdkafka wants a name
        "enable.auto.commit": False,
        "auto.offset.reset": "earliest",
        "isolation.level": "read_committed",
        "enable.partition.eof": True,
        "fetch.wait.max.ms": 20,  # an end is only seen when a fetch comes back empty
        "queued.max.messages.kbytes": 32_768,
        "log_level": 0,  # it is left to us to say what is wrong
    }
    with connecting():
        return Consumer(config)


def bounds(consumer: Consumer, settings: Settings, topic: str) -> dict[int, tuple[int, int]]:
    """Partition → first offset and last stable offset. Raises ``TopicUnreadable``."""
    try:
        found = consumer.list_topics(topic, timeout=TIMEOUT_S).topics[topic]
        if found.error is not None:
            raise TopicUnreadable(
                f"topic {topic!r} cannot be read: {found.error.str()}. Look at the name, or make the pipeline's "
                "topics with `penstock topics PLAN --create`"
            )
        return {
            number: consumer.get_watermark_offsets(TopicPartition(topic, number), timeout=TIMEOUT_S)
            for number in sorted(found.partitions)
        }
    except KafkaException as error:
        raise TopicUnreadable(
            f"{topic} cannot be read at {settings.bootstrap_servers}: {error.args[0].str()}. "
            "Look at KAFKA_BOOTSTRAP_SERVERS and PENSTOCK_SECURITY_PROTOCOL, or `penstock broker start`"
        ) from None


def read_topic(settings: Settings, topic: str) -> Iterator[Message]:
    """Every committed record, in log order within each partition. What is written meanwhile is left out, and an end is
    a position, since the log may end in transaction markers. Raises ``TopicUnreadable``."""
    consumer = reading(settings)
    try:
        places = bounds(consumer, settings, topic)
        ends = {number: end for number, (first, end) in places.items() if first < end}
        consumer.assign([TopicPartition(topic, number, places[number][0]) for number in ends])
        deadline = time.monotonic() + TIMEOUT_S
        while ends:
            found = consumer.consume(_CHUNK, 0.1)
            for message in found:
                number, end = message.partition(), ends.get(message.partition())
                error = message.error()
                if error is not None and error.code() != KafkaError._PARTITION_EOF:
                    raise TopicUnreadable(f"{topic}/{number} cannot be read: {error.str()}")
                if end is None:
                    continue
                if error is None and message.offset() < end:
                    yield message
                if message.offset() >= (end if error is not None else end - 1):
                    del ends[number]
            if found:  # whoever reads may take as long as it likes
                deadline = time.monotonic() + TIMEOUT_S
            elif time.monotonic() > deadline:
                raise TopicUnreadable(
                    f"{topic}: partitions {sorted(ends)} gave nothing for {TIMEOUT_S:.0f} s. Look at the broker's log"
                )
    finally:
        consumer.close()


class PlaceReader:
    """Single records by topic, partition and offset. ``close`` it."""

    def __init__(self, settings: Settings) -> None:
        self._consumer = reading(settings)

    def read(self, topic: str, partition: int, offset: int) -> Message | None:
        """The record, or None where the log does not hold it: deleted, never written, or aborted. Raises
        ``TopicUnreadable``."""
        try:
            first, end = self._consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=TIMEOUT_S)
        except KafkaException as error:
            if error.args[0].code() in _ABSENT:
                return None
            raise TopicUnreadable(f"{topic}/{partition} cannot be read: {error.args[0].str()}") from None
        if not first <= offset < end:
            return None
        self._consumer.assign([TopicPartition(topic, partition, offset)])
        deadline = time.monotonic() + TIMEOUT_S
        while time.monotonic() < deadline:
            message = self._consumer.poll(0.5)
            if message is None or (message.topic(), message.partition()) != (topic, partition):
                continue
            fault = message.error()
            if fault is None or fault.code() == KafkaError._PARTITION_EOF:
                return message if fault is None and message.offset() == offset else None
            raise TopicUnreadable(f"{topic}/{partition}@{offset} cannot be read: {fault.str()}")
        raise TopicUnreadable(
            f"{topic}/{partition}@{offset} was not read in {TIMEOUT_S:.0f} s. Look at the broker's log"
        )

    def close(self) -> None:
        self._consumer.close()
