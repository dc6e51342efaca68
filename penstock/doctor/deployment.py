"""What is examined: a plan on a broker, with the settings of its workers, and how long all the questions may take."""

import logging
import time
from collections.abc import Collection, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from confluent_kafka import (
    ConsumerGroupTopicPartitions,
    IsolationLevel,
    KafkaException,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import ConsumerGroupDescription, OffsetSpec, TopicDescription

from penstock.plan import Plan
from penstock.records import Partition
from penstock.settings import Settings
from penstock.topics import Admin

_silent = logging.getLogger("penstock.doctor.client")
_silent.addHandler(logging.NullHandler())
_silent.propagate = False
_SHORTEST_S = 0.5
_GRACE_S = 2.0
"""A request ends by itself; its answer is waited for a little longer."""


UNANSWERED = (KafkaException, TimeoutError)
"""What a question to Kafka may end with."""


def told(error: Exception) -> str:
    """What one of ``UNANSWERED`` says."""
    return str(error.args[0].str()) if isinstance(error, KafkaException) else "no answer in time"


@dataclass(frozen=True, slots=True)
class Deployment:
    """``folder`` is the pipeline's, with its ``schemas.lock``. ``deadline`` is on the monotonic clock. Methods raise
    ``UNANSWERED`` where the broker refuses or does not answer in time."""

    plan: Plan
    settings: Settings
    folder: Path
    admin: Admin
    deadline: float
    lag_s: float = 60.0
    plan_file: str = "PLAN"
    """How mends name the plan."""
    ids_known: bool = True
    """The plan's schema ids are those of the registry in force; else nothing that carries one can be read."""

    @property
    def left(self) -> float:
        """Seconds that the next question may take."""
        return max(_SHORTEST_S, self.deadline - time.monotonic())

    def client(self, **settings: Any) -> dict[str, Any]:
        """The configuration of a client that leaves it to us to say what is wrong."""
        return {**self.settings.kafka(), "client.id": f"{self.plan.pipeline}.doctor", "logger": _silent, **settings}

    def reader(self, isolation: str) -> dict[str, Any]:
        """A consumer that joins no group and commits nothing."""
        return self.client(
            **{
                "group.id": f"{self.plan.pipeline}.doctor",
                "enable.auto.commit": False,
                "isolation.level": isolation,
                "enable.partition.eof": True,
                "fetch.wait.max.ms": 20,
            }
        )

    def answer(self, future: "Future[Any]") -> Any:
        return future.result(self.left + _GRACE_S)

    def describe_topics(self, names: Collection[str]) -> "dict[str, Future[TopicDescription]]":
        """With the operations that these credentials are allowed."""
        if not names:
            return {}
        asked: dict[str, Future[TopicDescription]] = self.admin.describe_topics(
            TopicCollection(list(names)), include_authorized_operations=True, request_timeout=self.left
        )
        return asked

    def describe_groups(self) -> dict[str, ConsumerGroupDescription]:
        """By stage."""
        stages = {self.plan.group(stage.name): stage.name for stage in self.plan.stages}
        asked = self.admin.describe_consumer_groups(
            list(stages), include_authorized_operations=True, request_timeout=self.left
        )
        return {stages[group]: self.answer(future) for group, future in asked.items()}

    def ends(self, topics: Iterable[str], *, stable: bool = False) -> dict[Partition, int]:
        """End offsets, or last stable ones: where the oldest open transaction begins."""
        counts = self.partitions()
        latest = {TopicPartition(t, n): OffsetSpec.latest() for t in topics for n in range(counts.get(t, 0))}
        if not latest:
            return {}
        level = IsolationLevel.READ_COMMITTED if stable else IsolationLevel.READ_UNCOMMITTED
        asked = self.admin.list_offsets(latest, isolation_level=level, request_timeout=self.left)
        return {Partition(p.topic, p.partition): self.answer(future).offset for p, future in asked.items()}

    def committed(self, stage: str) -> dict[Partition, int]:
        group = self.plan.group(stage)
        asked = self.admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions(group)], request_timeout=self.left)
        found = self.answer(asked[group]).topic_partitions
        return {Partition(at.topic, at.partition): at.offset for at in found if at.offset >= 0}

    def partitions(self) -> dict[str, int]:
        """Partitions of every topic that is there."""
        there = self.admin.list_topics(timeout=self.left).topics
        return {name: len(topic.partitions) for name, topic in there.items() if topic.error is None}
