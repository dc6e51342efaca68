"""The broker as the benchmark sees it: topics made and removed, groups forgotten, committed records counted.

Counting is done by a plain read_committed consumer that knows nothing of Penstock.
"""

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from uuid import uuid4

import numpy as np
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

CONFIG = {"message.timestamp.type": "LogAppendTime", "retention.ms": "-1"}
TIMEOUT_S = 60.0


class BenchError(Exception):
    """The benchmark cannot go on, or counted something that must not be; the message says what."""


@dataclass(frozen=True, slots=True)
class Census:
    """A topic as it was read to its end: ``rows``, and the offset after the last row of each partition."""

    topic: str
    rows: int
    ends: Mapping[int, int]


class Cluster:
    """One broker."""

    def __init__(self, bootstrap: str) -> None:
        self.bootstrap = bootstrap
        self._admin = AdminClient({"bootstrap.servers": bootstrap})

    def create(self, topics: Iterable[str], partitions: int) -> None:
        """Raises ``BenchError`` where one exists: what lies in it is not ours."""
        wanted = [NewTopic(topic, partitions, 1, config=CONFIG) for topic in topics]
        for topic, done in (self._admin.create_topics(wanted) if wanted else {}).items():
            try:
                done.result(TIMEOUT_S)
            except KafkaException as error:
                raise BenchError(f"topic {topic!r} cannot be made: {error.args[0].str()}") from None
        self._wait(lambda there: {topic.topic for topic in wanted} <= there)

    def delete(self, topics: Iterable[str]) -> None:
        """Those that exist; returns when they are gone."""
        known = self._admin.list_topics(timeout=TIMEOUT_S).topics
        gone = [topic for topic in topics if topic in known]
        for done in (self._admin.delete_topics(gone) if gone else {}).values():
            done.result(TIMEOUT_S)
        self._wait(lambda there: not there & set(gone))

    def forget(self, groups: Iterable[str]) -> None:
        """Deletes groups, waiting until the broker has noticed that their static members left."""
        for group in groups:
            deadline = time.monotonic() + TIMEOUT_S
            while True:
                try:
                    self._admin.delete_consumer_groups([group])[group].result(TIMEOUT_S)
                except KafkaException as error:
                    if error.args[0].code() == KafkaError.GROUP_ID_NOT_FOUND:
                        break
                    if error.args[0].code() != KafkaError.NON_EMPTY_GROUP or time.monotonic() > deadline:
                        raise BenchError(f"group {group!r} cannot be deleted: {error.args[0].str()}") from None
                    time.sleep(0.2)
                else:
                    break

    def _wait(self, settled) -> None:  # type: ignore[no-untyped-def]  # a look of any kind
        deadline = time.monotonic() + TIMEOUT_S
        while not settled(set(self._admin.list_topics(timeout=TIMEOUT_S).topics)):
            if time.monotonic() > deadline:
                raise BenchError("the broker's list of topics did not settle. Look at its log")
            time.sleep(0.05)

    def read(self, topic: str) -> Iterator[list[Message]]:
        """Every committed record, in lists; the end is told by position, for a log may end in markers."""
        consumer = Consumer(
            {
                "bootstrap.servers": self.bootstrap,
                "group.id": f"bench-{uuid4().hex}",
                "enable.auto.commit": False,
                "isolation.level": "read_committed",
                "enable.partition.eof": True,
                "fetch.wait.max.ms": 20,  # an end is only seen when a fetch comes back empty
                "queued.min.messages": 200_000,
                "fetch.queue.backoff.ms": 5,
            }
        )
        try:
            left = set(consumer.list_topics(topic, timeout=TIMEOUT_S).topics[topic].partitions)
            consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in left])
            while left:
                messages = consumer.consume(20_000, 0.1)
                if any(map(Message.error, messages)):
                    for message in messages:
                        error = message.error()
                        if error is None:
                            continue
                        if error.code() != KafkaError._PARTITION_EOF:
                            raise KafkaException(error)
                        left.discard(message.partition())
                    messages = [message for message in messages if message.error() is None]
                if messages:
                    yield messages
        finally:
            consumer.close()

    def census(self, topic: str) -> Census:
        """Reads the topic to its end."""
        rows, ends = 0, {}
        for messages in self.read(topic):
            rows += len(messages)
            partition = np.fromiter(map(Message.partition, messages), np.int64, len(messages))
            offset = np.fromiter(map(Message.offset, messages), np.int64, len(messages))
            for number in np.flatnonzero(np.bincount(partition)).tolist():
                ends[number] = int(offset[partition == number].max()) + 1
        return Census(topic, rows, ends)

    def count(self, topic: str, wanted: int) -> Census:
        """The census. Raises ``BenchError`` when it is not ``wanted`` rows."""
        found = self.census(topic)
        if found.rows != wanted:
            raise BenchError(f"{topic} holds {found.rows} committed rows, and {wanted} were to be there")
        return found


class Progress:
    """How far a group has committed the rows of some topics, as a share of them: markers are no rows."""

    def __init__(self, cluster: Cluster, group: str, inputs: Iterable[Census]) -> None:
        inputs = list(inputs)
        self.rows = sum(census.rows for census in inputs)
        self._ends = {(census.topic, number): end for census in inputs for number, end in census.ends.items()}
        # read_uncommitted: to ask for stable offsets would wait for every open transaction
        self._consumer = Consumer(
            {"bootstrap.servers": cluster.bootstrap, "group.id": group, "isolation.level": "read_uncommitted"}
        )
        self._partitions = [TopicPartition(*where) for where in self._ends]

    def done(self) -> float:
        """Rows that were committed; ``rows`` once all are."""
        found = self._consumer.committed(self._partitions, timeout=30)
        reached = sum(min(max(at.offset, 0), self._ends[at.topic, at.partition]) for at in found)
        span = sum(self._ends.values())
        return self.rows * reached / span if span else 0.0

    def close(self) -> None:
        self._consumer.close()


class Moving:
    """How far a group has come in topics that are still being written: the sum of its committed offsets."""

    def __init__(self, cluster: Cluster, group: str, topics: Iterable[str], partitions: int) -> None:
        self._consumer = Consumer(
            {"bootstrap.servers": cluster.bootstrap, "group.id": group, "isolation.level": "read_uncommitted"}
        )
        self._partitions = [TopicPartition(topic, number) for topic in topics for number in range(partitions)]

    def offsets(self) -> float:
        return float(sum(max(at.offset, 0) for at in self._consumer.committed(self._partitions, timeout=30)))

    def close(self) -> None:
        self._consumer.close()
