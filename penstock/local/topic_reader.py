"""Reads whole topics as anyone could: committed messages only, to the end as it is when it is reached."""

import logging
import time
from collections.abc import Iterator
from uuid import uuid4

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message, TopicPartition

from penstock.codec.avro import AvroDecoder
from penstock.plan import Plan
from penstock.settings import Settings
from penstock.worker import schema_lookup

log = logging.getLogger(__name__)

Int64s = npt.NDArray[np.int64]
CHUNK = 20_000


class Unsettled(Exception):
    """A topic could not be read to its end: a transaction is still open there."""


class TopicReader:
    """Reads whole topics of a plan, committed messages only."""

    def __init__(self, plan: Plan, settings: Settings, timeout: float = 60.0) -> None:
        self._plan, self._settings, self._timeout = plan, settings, timeout

    def chunks(self, suffix: str) -> Iterator[list[Message]]:
        """All messages of ``NAME.SUFFIX`` up to its end as it is when it is reached. Raises ``Unsettled``."""
        topic = self._plan.topic(suffix)
        consumer = Consumer(
            {
                **self._settings.kafka(),
                "group.id": f"count-{uuid4().hex}",
                "enable.auto.commit": False,
                "isolation.level": "read_committed",
                "enable.partition.eof": True,
                "fetch.wait.max.ms": 20,  # an end is only seen when a fetch comes back empty
                "fetch.queue.backoff.ms": 5,
                "queued.max.messages.kbytes": 32_768,
                "logger": log,
            }
        )
        try:
            consumer.assign([TopicPartition(topic.name, n, OFFSET_BEGINNING) for n in range(topic.partitions)])
            unfinished = set(range(topic.partitions))
            deadline = time.monotonic() + self._timeout
            while unfinished:
                messages = []
                for message in consumer.consume(CHUNK, 0.1):
                    error = message.error()
                    if error is None:
                        messages.append(message)
                    elif error.code() == KafkaError._PARTITION_EOF:
                        number = message.partition()
                        _, end = consumer.get_watermark_offsets(TopicPartition(topic.name, number), cached=True)
                        if message.offset() >= end:
                            unfinished.discard(number)
                    else:
                        raise KafkaException(error)
                if messages:
                    deadline = time.monotonic() + self._timeout
                    yield messages
                elif unfinished and time.monotonic() > deadline:
                    raise Unsettled(
                        f"{topic.name}: partitions {sorted(unfinished)} were not read to their end in "
                        f"{self._timeout:.0f} s; a transaction is open there. Look at the logs of the workers"
                    )
        finally:
            consumer.close()

    def rows(self, suffix: str, columns: tuple[str, ...]) -> Iterator[tuple[list[Message], pa.RecordBatch]]:
        """Decoded messages with only ``columns``. Raises ``ValueError`` when one of them cannot be read."""
        value = self._plan.topic(suffix).value
        assert value is not None
        narrow = value.avro | {"fields": [f for f in value.avro["fields"] if f["name"] in columns]}
        decoder = AvroDecoder(narrow, schema_lookup(self._plan, self._settings))
        for messages in self.chunks(suffix):
            decoded = decoder.decode([message.value() for message in messages])
            if decoded.bad:
                raise ValueError(f"{self._plan.pipeline}.{suffix} holds what is not its schema: {decoded.bad}")
            yield messages, decoded.rows


def coordinates(messages: list[Message]) -> tuple[Int64s, Int64s, Int64s]:
    """Partition, offset and append time (ms since epoch) of each: int64[n]."""
    n = len(messages)
    return (
        np.fromiter(map(Message.partition, messages), np.int64, n),
        np.fromiter(map(Message.offset, messages), np.int64, n),
        np.fromiter((stamp for _, stamp in map(Message.timestamp, messages)), np.int64, n),
    )
