"""One broker for the whole session, found as the product finds it, and small helpers in plain confluent-kafka.

The helpers import nothing of Penstock's transport, so that what a test reads back is a third party's view.
"""

import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Protocol
from uuid import uuid4

import pytest
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message, TopicPartition
from confluent_kafka.admin import NewTopic

from penstock.local.resolve import BrokerHandle, describe_kind, resolve_broker
from penstock.settings import Settings
from penstock.topics import admin_client, await_topics
from tests import not_run


class TopicFactory(Protocol):
    def __call__(self, name: str = ..., partitions: int = ..., **config: str) -> str: ...


class CommittedReader(Protocol):
    def __call__(self, topic: str, timeout: float = ..., settled: bool = ...) -> list[Message]: ...


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--docker", action="store_true", help="run the session's broker in Docker (testcontainers)")


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        not_run.look(config)


def pytest_report_header(config: pytest.Config) -> list[str]:
    return [describe_kind(config.getoption("docker")), *not_run.lines()]


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    not_run.leave_out(config, items)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    not_run.tell(terminalreporter)


@pytest.fixture(scope="session")
def broker(request: pytest.FixtureRequest) -> Iterator[BrokerHandle]:
    """The session's broker, started when the first test asks for it."""
    with (
        tempfile.TemporaryDirectory(prefix="penstock-broker-") as folder,
        resolve_broker(request.config.getoption("docker"), Path(folder)) as handle,
    ):
        yield handle


@pytest.fixture
def kafka_topic_prefix() -> str:
    """A name that no other test uses, for topics, groups and transactional ids."""
    return f"t{uuid4().hex[:10]}"


@pytest.fixture
def topic_factory(broker: BrokerHandle, kafka_topic_prefix: str) -> Iterator[TopicFactory]:
    """Makes topics `PREFIX.NAME` with LogAppendTime, as all of Penstock's are; they are deleted after the test."""
    admin = admin_client(Settings(bootstrap_servers=broker.bootstrap))
    made: list[str] = []

    def make(name: str = "events", partitions: int = 4, **config: str) -> str:
        topic = f"{kafka_topic_prefix}.{name}"
        settings = {"message.timestamp.type": "LogAppendTime"}
        settings |= {option.replace("_", "."): value for option, value in config.items()}
        admin.create_topics([NewTopic(topic, partitions, 1, config=settings)])[topic].result(30)
        made.append(topic)
        await_topics(admin, [topic])
        return topic

    yield make
    for deletion in admin.delete_topics(made).values() if made else ():
        deletion.result(30)


@pytest.fixture
def read_committed(broker: BrokerHandle) -> CommittedReader:
    """Reads all committed records of a topic, by partition and offset."""
    return partial(read_all_committed, broker.bootstrap)


def read_all_committed(bootstrap: str, topic: str, timeout: float = 30.0, settled: bool = True) -> list[Message]:
    """Every committed record of `topic`, ordered by partition and offset.

    Ends by position, not by a count or a last record: a log may end in transaction markers. A commit that has
    returned may still wait for its markers (long, if the broker was killed then), so by default an open transaction
    is waited for; `settled=False` stops before it. Raises TimeoutError.
    """
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": f"reader-{uuid4().hex}",
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
            "fetch.wait.max.ms": 20,  # an end is only seen when a fetch comes back empty
        }
    )
    try:
        unfinished = set(consumer.list_topics(topic, timeout=timeout).topics[topic].partitions)
        consumer.assign([TopicPartition(topic, partition, OFFSET_BEGINNING) for partition in unfinished])
        records: list[Message] = []
        deadline = time.monotonic() + timeout
        while unfinished:
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"{topic}: partitions {sorted(unfinished)} were not read to their end in {timeout} s"
                )
            for message in consumer.consume(10_000, 0.05):
                error = message.error()
                if error is None:
                    records.append(message)
                elif error.code() == KafkaError._PARTITION_EOF:
                    partition, position = message.partition(), message.offset()
                    _, end = consumer.get_watermark_offsets(TopicPartition(topic, partition), cached=True)
                    if not settled or position >= end:
                        unfinished.discard(partition)
                else:
                    raise KafkaException(error)
    finally:
        consumer.close()
    return sorted(records, key=lambda message: (message.partition(), message.offset()))
