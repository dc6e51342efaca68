"""Transactions that were left open: readers of committed records stop where the oldest begins, so that one hanging
transaction silences all that follows it.
"""

import time
from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

from confluent_kafka import Consumer, TopicPartition

from penstock.doctor.deployment import Deployment
from penstock.doctor.finding import Finding, fail, ok, warn
from penstock.records import Partition

CHECK = "open transactions"
SETTLE_S = 0.3
"""Workers begin and commit many a second: only what is still open after this is looked at."""


class OpenTransaction(NamedTuple):
    """The oldest of a partition. ``first``: the offset of its first record; ``age_s``: since that was appended, None
    where it could not be read."""

    partition: Partition
    first: int
    age_s: float | None


def check_transactions(deployment: Deployment, topics: Collection[str]) -> Iterator[Finding]:
    before = _unstable(deployment, topics)
    if before:
        time.sleep(SETTLE_S)
        before = {p: first for p, first in _unstable(deployment, topics).items() if before.get(p) == first}
    found = _aged(deployment, before)
    servers = deployment.settings.bootstrap_servers
    yield from judge(found, deployment.settings.transaction_timeout_ms / 1000, len(topics), servers)


def judge(found: Collection[OpenTransaction], timeout_s: float, topics: int, servers: str) -> Iterator[Finding]:
    """``timeout_s``: after this the broker should have aborted it."""
    hanging = [each for each in found if each.age_s is None or each.age_s > timeout_s]
    tool = f"kafka-transactions.sh --bootstrap-server {servers}"
    for partition, first, age_s in hanging:
        where = f"--topic {partition.topic} --partition {partition.number}"
        whose = f"`{tool} describe-producers {where}` tells whose"
        if age_s is None:
            yield warn(CHECK, f"{partition} has a transaction open from offset {first}, age unknown", whose)
        else:
            yield fail(
                CHECK,
                f"{partition} has a transaction open for {age_s:.0f} s, from offset {first}; at most {timeout_s:g} s "
                "are allowed, and nobody reads past it",
                f"{whose}; stop that process, or `{tool} abort {where} --start-offset {first}`",
            )
    if not hanging:
        young = f"; {len(found)} just begun" if found else ""
        yield ok(CHECK, f"none is older than {timeout_s:g} s in {topics} topics{young}")


def _unstable(deployment: Deployment, topics: Collection[str]) -> dict[Partition, int]:
    """Partition → first offset of its oldest open transaction."""
    # the stable offsets first: what is written in between is then seen as open, and looked at again
    stable = deployment.ends(topics, stable=True)
    ends = deployment.ends(topics)
    return {partition: at for partition, at in stable.items() if at < ends.get(partition, at)}


def _aged(deployment: Deployment, first: Mapping[Partition, int]) -> list[OpenTransaction]:
    if not first:
        return []
    ages: dict[Partition, float] = {}
    consumer = Consumer(deployment.reader("read_uncommitted"))
    try:
        consumer.assign([TopicPartition(p.topic, p.number, offset) for p, offset in first.items()])
        while len(ages) < len(first) and time.monotonic() < deployment.deadline:
            for message in consumer.consume(100, 0.05):
                if message.error() is None:
                    where = Partition(message.topic(), message.partition())
                    ages.setdefault(where, time.time() - message.timestamp()[1] / 1000)
    finally:
        consumer.close()
    return [OpenTransaction(partition, offset, ages.get(partition)) for partition, offset in first.items()]
