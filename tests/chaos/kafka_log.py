"""A broker's topics as the verifier reads them, through plain confluent-kafka."""

import time
from collections.abc import Collection, Iterator, Mapping
from uuid import uuid4

from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    IsolationLevel,
    KafkaError,
    KafkaException,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, OffsetSpec

from tests.chaos.records import Record

OPEN_S = 5.0
"""How long a transaction may still be open. The broker itself ends it after 10 s, and would hide one that was left."""


class KafkaLog:
    """The topics of a broker, to the ends they have when reading begins.

    ``timeout`` seconds bound each topic's reading. Raises TimeoutError.
    """

    def __init__(self, bootstrap: str, timeout: float = 30.0, extra: Mapping[str, str] | None = None) -> None:
        self._client = {"bootstrap.servers": bootstrap, **(extra or {})}
        self._timeout = timeout

    def read(self, topic: str) -> Iterator[Record]:
        consumer = Consumer(
            {
                **self._client,
                "group.id": f"verify-{uuid4().hex}",
                "enable.auto.commit": False,
                "isolation.level": "read_committed",
                "enable.partition.eof": True,
                "fetch.wait.max.ms": 20,
            }
        )
        try:
            metadata = consumer.list_topics(topic, timeout=self._timeout).topics[topic]
            if metadata.error is not None:
                raise KafkaException(metadata.error)
            unread = set(metadata.partitions)
            consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in unread])
            deadline = time.monotonic() + self._timeout
            while unread:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{topic}: partitions {sorted(unread)} were not read in {self._timeout} s")
                for message in consumer.consume(10_000, 0.05):
                    deadline = time.monotonic() + self._timeout
                    error = message.error()
                    if error is None:
                        place, headers = (message.partition(), message.offset()), message.headers() or []
                        yield Record(*place, message.key(), message.value(), headers, message.timestamp()[1])
                    elif error.code() == KafkaError._PARTITION_EOF:
                        # the end of what is committed: behind it there are markers, or what unstable() will tell
                        unread.discard(message.partition())
                    else:
                        raise KafkaException(error)
        finally:
            consumer.close()  # its destructor would block the interpreter

    def unstable(self, topics: Collection[str]) -> list[str]:
        admin = AdminClient(self._client)
        there = admin.list_topics(timeout=self._timeout).topics
        wanted = {TopicPartition(name, n): OffsetSpec.latest() for name in topics for n in there[name].partitions}
        deadline = time.monotonic() + OPEN_S
        while True:
            ends: list[dict[tuple[str, int], int]] = []
            # the stable offsets first: what is written in between is then seen as open, and looked at again
            for level in (IsolationLevel.READ_COMMITTED, IsolationLevel.READ_UNCOMMITTED):
                asked = admin.list_offsets(wanted, isolation_level=level, request_timeout=self._timeout)
                ends.append({(p.topic, p.partition): answer.result().offset for p, answer in asked.items()})
            stable, whole = ends
            found = [
                f"{t}/{n}: stable to {stable[t, n]} of {end}" for (t, n), end in whole.items() if stable[t, n] != end
            ]
            if not found or time.monotonic() > deadline:
                return found
            time.sleep(0.1)
