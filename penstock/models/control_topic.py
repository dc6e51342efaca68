"""``NAME.control`` on Kafka: write one message, or read the whole compacted topic and go on reading.

It has a consumer and a producer of its own, outside any group and any transaction of a stage: every worker reads all
of it, and what serves is decided by people, not by batches.
"""

import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from penstock.connecting import connecting
from penstock.models.control import CHAMPION, ControlCodec, ControlMessage, InForce, Lookup, Role, retirement
from penstock.models.manifest import ModelError
from penstock.models.matrix import matrix_for
from penstock.models.registry import ModelRegistry
from penstock.plan import Plan
from penstock.settings import Settings

log = logging.getLogger(__name__)

_LOG_LEVEL = 6
"""librdkafka's own, by syslog's numbers."""


class ControlUnavailable(Exception):
    """The control topic cannot be read or written now; the message names the mend. Trying again may help."""


class ControlReader:
    """Reads the topic from its beginning, committed messages only. Used by one thread. ``quiet``: what librdkafka says
    of its connections is not logged, for whoever asks is told.

    Raises ``ControlUnavailable`` when the broker or the topic is not there, ``InvalidSettings`` where no client can
    connect with them.
    """

    def __init__(
        self,
        settings: Settings,
        plan: Plan,
        lookup: Lookup | None = None,
        timeout: float = 10.0,
        *,
        quiet: bool = False,
    ) -> None:
        self._topic = plan.topic("control").name
        self._codec = ControlCodec(plan, lookup)
        config = {
            **settings.kafka(),
            "client.id": f"{plan.pipeline}.control",
            # librdkafka wants a name; nothing joins or commits under it
            "group.id": f"{plan.pipeline}.control",
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
            "fetch.wait.max.ms": 100,
            "log_level": 0 if quiet else _LOG_LEVEL,
            "logger": log,
        }
        with connecting():
            self._consumer = Consumer(config)
        try:
            partitions = self._partitions(settings, timeout)
        except ControlUnavailable:
            self._consumer.close()
            raise
        self._unread = set(partitions)
        self._consumer.assign([TopicPartition(self._topic, number, OFFSET_BEGINNING) for number in partitions])

    def _partitions(self, settings: Settings, timeout: float) -> list[int]:
        try:
            found = self._consumer.list_topics(self._topic, timeout=timeout).topics[self._topic]
        except KafkaException as error:
            raise ControlUnavailable(
                f"{self._topic} cannot be read at {settings.bootstrap_servers}: {error.args[0].str()}. "
                "Start the broker or set PENSTOCK_BOOTSTRAP_SERVERS"
            ) from None
        if found.error is not None:
            raise ControlUnavailable(
                f"{self._topic}: {found.error.str()}. Make the pipeline's topics with `penstock topics`"
            )
        return sorted(found.partitions)

    @property
    def caught_up(self) -> bool:
        """Whether every partition was once read to its end."""
        return not self._unread

    def poll(self, wait_s: float) -> list[InForce]:
        """The next messages, in log order within a key; waits up to ``wait_s`` for the first."""
        found = []
        for message in self._consumer.consume(1, wait_s) + self._consumer.consume(1000, 0):
            error = message.error()
            if error is None:
                read = self._read(message)
                if read is not None:
                    found.append(read)
            elif error.code() == KafkaError._PARTITION_EOF:
                self._unread.discard(message.partition())
            else:
                log.warning("%s: %s", self._topic, error.str())
        return found

    def _read(self, message: Message) -> InForce | None:
        where = f"{self._topic}/{message.partition()}@{message.offset()}"
        value = message.value()
        try:
            if value is None:
                decoded = retirement(message.key(), datetime.fromtimestamp(message.timestamp()[1] / 1000, UTC))
            else:
                decoded = self._codec.decode(value)
        except ModelError as error:
            log.error("%s is ignored: %s", where, error)
            return None
        return InForce(message=decoded, partition=message.partition(), offset=message.offset())

    def close(self) -> None:
        self._consumer.close()


def read_control(settings: Settings, plan: Plan, timeout: float = 10.0, lookup: Lookup | None = None) -> list[InForce]:
    """What is in force now, one message per model and role. Raises ``ControlUnavailable``."""
    reader = ControlReader(settings, plan, lookup, timeout, quiet=True)
    try:
        newest: dict[bytes, InForce] = {}
        deadline = time.monotonic() + timeout
        while not reader.caught_up:
            if time.monotonic() > deadline:
                raise ControlUnavailable(
                    f"{plan.topic('control').name} was not read to its end in {timeout:.0f} s. Look at the broker's log"
                )
            newest.update({found.message.key: found for found in reader.poll(0.1)})
    finally:
        reader.close()
    return [newest[key] for key in sorted(newest)]


def publish(
    settings: Settings,
    plan: Plan,
    model: str,
    version: str | None,
    role: Role = CHAMPION,
    author: str | None = None,
    reason: str | None = None,
    *,
    digest: str | None = None,
    timeout: float = 30.0,
) -> InForce:
    """Says that ``version`` of ``model`` serves as ``role`` from now on (None: nobody does) and returns the message
    with its offset. Nothing is checked: ``promote`` does that. Raises ``ControlUnavailable`` when the broker does
    not take it."""
    message = ControlMessage(model=model, role=role, version=version, digest=digest, author=author, reason=reason)
    topic = plan.topic("control").name
    delivered: list[tuple[KafkaError | None, Message]] = []
    report: Callable[[Any, Any], None] = lambda error, sent: delivered.append((error, sent))  # noqa: E731
    config = {
        **settings.kafka(),
        "acks": "all",
        "enable.idempotence": True,
        "partitioner": "murmur2_random",
        "message.timeout.ms": int(timeout * 1000),
        "log_level": 0,
        "logger": log,
    }
    with connecting():
        producer = Producer(config)
    producer.produce(topic, ControlCodec(plan).encode(message), message.key, on_delivery=report)
    producer.flush(timeout + 5)
    error, sent = delivered[0] if delivered else (None, None)
    if sent is None or error is not None:
        what = "no answer" if error is None else error.str()
        raise ControlUnavailable(
            f"{topic} at {settings.bootstrap_servers} did not take the message: {what}. "
            "Start the broker, and make the pipeline's topics with `penstock topics`"
        )
    return InForce(message=message, partition=sent.partition(), offset=sent.offset())


def promote(
    settings: Settings, plan: Plan, version: str, author: str | None = None, reason: str | None = None
) -> InForce:
    """Makes ``version`` the champion of the plan's model, after its files and its columns have been checked.

    Raises ``ModelError`` when the version cannot serve this plan, and ``ControlUnavailable``.
    """
    if plan.model is None:
        raise ModelError(f"pipeline {plan.pipeline!r} declares no model. Add model=Model(name=…) to its pipeline.py")
    verified = ModelRegistry(settings.models_url).load(plan.model.name, version)
    matrix_for(plan, verified.manifest)
    return publish(settings, plan, plan.model.name, version, CHAMPION, author, reason, digest=verified.digest)
