"""How far every stage is behind, and whether anybody works on it. Offsets alone do not tell: markers of transactions
and aborted rows lie behind the last row, and nobody commits those. So what is not committed is read.
"""

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, TopicPartition

from penstock.doctor.deployment import Deployment
from penstock.doctor.finding import Finding, fail, ok, warn
from penstock.records import Partition

CHECK = "lag"


@dataclass(frozen=True, slots=True)
class Lag:
    """``members`` of the group; ``rows`` that could be read and are not committed, markers among them; ``seconds``
    since the oldest of them was appended."""

    stage: str
    members: int
    rows: int
    seconds: float


def judge(lag: Lag, most_s: float, plan_file: str, no_model: Finding | None = None) -> Finding:
    """``most_s``: a lag that is older is worth a warning. ``no_model``: why there is no model, where this stage's
    workers wait for one: until then they are no members."""
    seen = f"{lag.stage}: {lag.rows:,} rows, the oldest {lag.seconds:.1f} s old" if lag.rows else f"{lag.stage}: none"
    start = f"penstock run {lag.stage} {plan_file}"
    if not lag.members and no_model is not None:
        waits = f"{seen}; its workers wait for a model and read nothing before: see {no_model.check}"
        return (fail if lag.rows else warn)(CHECK, waits, no_model.mend)
    if not lag.members:
        if lag.rows:
            return fail(CHECK, f"{seen}; nobody works on it", f"start {start}")
        return warn(CHECK, f"{seen}; no worker is there for the next row", f"start {start}")
    seen = f"{seen}; {lag.members} worker{'s' if lag.members > 1 else ''}"
    if lag.rows and lag.seconds > most_s:
        return warn(CHECK, f"{seen}; more than {most_s:g} s", f"look at its log, or start another: {start} --slot N")
    return ok(CHECK, seen)


def measure(deployment: Deployment, absent: Collection[str]) -> list[Lag]:
    """Of every stage; ``absent`` topics have no rows."""
    plan = deployment.plan
    groups = deployment.describe_groups()
    # committed before ends: a row that arrives in between counts as lag, never the other way round
    committed = {stage.name: deployment.committed(stage.name) for stage in plan.stages}
    inputs = {source.topic for stage in plan.stages for source in stage.inputs} - set(absent)
    ends = deployment.ends(sorted(inputs), stable=True)
    found = []
    for stage in plan.stages:
        mine = {source.topic for source in stage.inputs}
        behind = {
            partition: committed[stage.name].get(partition, OFFSET_BEGINNING)
            for partition, end in ends.items()
            if partition.topic in mine and committed[stage.name].get(partition, 0) < end
        }
        first = _first_rows(deployment, behind)
        rows = sum(ends[partition] - offset for partition, (offset, _) in first.items())
        oldest = min((stamp for _, stamp in first.values()), default=0)
        seconds = max(0.0, time.time() - oldest / 1000) if first else 0.0
        found.append(Lag(stage.name, len(groups[stage.name].members), max(0, rows), seconds))
    return found


def _first_rows(deployment: Deployment, behind: Mapping[Partition, int]) -> dict[Partition, tuple[int, int]]:
    """Offset and append time (ms) of the first committed row of each partition; partitions without one are left out."""
    if not behind:
        return {}
    found: dict[Partition, tuple[int, int]] = {}
    unread = set(behind)
    consumer = Consumer(deployment.reader("read_committed") | {"auto.offset.reset": "earliest"})
    try:
        consumer.assign([TopicPartition(p.topic, p.number, offset) for p, offset in behind.items()])
        while unread and time.monotonic() < deployment.deadline:
            for message in consumer.consume(1000, 0.05):
                where, error = Partition(message.topic(), message.partition()), message.error()
                if error is None and where not in found:
                    found[where] = message.offset(), message.timestamp()[1]
                if error is None or error.code() == KafkaError._PARTITION_EOF:
                    unread.discard(where)
    finally:
        consumer.close()
    return found
