"""Training sets from the very stages that serve: raw messages go through ingest and the features stages over the
transport in memory, so what a model learns from is what it will be shown, in log order and to the bit.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from penstock import envelope
from penstock.codec.avro import AvroDecoder
from penstock.health import Health
from penstock.models.manifest import Manifest, parse_version
from penstock.models.registry import ModelRegistry
from penstock.plan import Plan, PlanError
from penstock.records import Key, Partition
from penstock.settings import Settings
from penstock.transport.memory import MemoryBroker, MemoryTransport
from penstock.worker import find_kind, make_loop

COMMIT_MS = 100
STUCK_S = 60.0
"""Seconds without a commit after which a stage is taken to be stuck."""


@dataclass(frozen=True, slots=True)
class TrainingRows:
    """``rows``: the records of ``NAME.features`` by event time, envelope first, then the service's columns in order.
    ``dead`` and ``dropped``: how many messages became no such record, and why not: reason → count."""

    rows: pa.Table
    dead: int
    dropped: int


def training_rows(
    plan: Plan, raw: Iterable[tuple[Key, bytes | None]], settings: Settings | None = None
) -> TrainingRows:
    """Sends ``raw`` (key, value), in log order, through the ingest and features stages of ``plan``.

    Raises ``PlanError`` when a service is not installed, ``RuntimeError`` when a stage stops making progress.
    """
    broker = MemoryBroker()
    for topic in plan.topics:
        broker.create(topic.name, topic.partitions)
    name = plan.topic("raw").name
    for key, value in raw:
        broker.append(name, key, value)
    for stage in plan.stages:
        if stage.kind == "ingest" or (stage.kind == "features" and stage.entity is not None):
            _drain(plan, stage.name, broker, settings or Settings())
    return TrainingRows(
        _decoded(plan, broker), len(broker.rows(plan.topic("dead").name)), len(broker.rows(plan.topic("dropped").name))
    )


def _drain(plan: Plan, name: str, broker: MemoryBroker, settings: Settings) -> None:
    """Runs one stage until it has committed all that its inputs hold."""
    transport = MemoryTransport(broker, plan.group(name))
    settings = settings.model_copy(update={"dead_letter_limit": 0.0})  # bad history is counted, and nobody mends it
    loop = make_loop(plan, name, settings, find_kind(name).build(plan, name), transport, Health(), COMMIT_MS)
    topics = [source.topic for source in plan.stage(name).inputs]
    transport.subscribe(topics, loop)
    held = [Partition(topic, number) for topic in topics for number in range(len(broker.logs[topic]))]
    before, since = -1, time.monotonic()
    while (left := _left(transport, broker, held)) or loop.outbox:
        if left != before:
            before, since = left, time.monotonic()
        elif time.monotonic() - since > STUCK_S:
            raise RuntimeError(f"stage {name!r} does not read the last {left} records of {', '.join(topics)}")
        loop.step()
    transport.close()


def _left(transport: MemoryTransport, broker: MemoryBroker, partitions: Sequence[Partition]) -> int:
    """Rows not yet committed; the marks of transactions are no rows."""
    committed = transport.committed(partitions)
    left = 0
    for partition in partitions:
        at = committed.get(partition)
        log = broker.logs[partition.topic][partition.number]
        left += sum(row is not None for row in log[at.offset if at is not None else 0 :])
    return left


def _decoded(plan: Plan, broker: MemoryBroker) -> pa.Table:
    topic = plan.topic("features")
    if topic.value is None:
        raise PlanError(f"plan of {plan.pipeline!r} has no schema for {topic.name!r}. Compile it again")
    schema = topic.value.avro
    decoded = AvroDecoder(schema, lambda _: schema).decode([row.value for row in broker.rows(topic.name)])
    rows = pa.Table.from_batches([decoded.rows])
    return rows.sort_by([(envelope.EVENT_TIME, "ascending"), (envelope.EVENT_ID, "ascending")])


def matrix(rows: pa.Table, columns: Sequence[str], codes: dict[str, tuple[str, ...]]) -> npt.NDArray[np.float32]:
    """float32[n, len(columns)] as inference gives it to the model: null as NaN, a string as its place in ``codes``."""
    return np.column_stack([_numbers(rows[name], codes.get(name)) for name in columns]).astype(np.float32)


def _numbers(column: pa.ChunkedArray, values: tuple[str, ...] | None) -> npt.NDArray[np.float64]:
    if values is not None:
        column = pc.index_in(column, pa.array(values, pa.string()))
    numbers: npt.NDArray[np.float64] = np.asarray(pc.fill_null(column.cast(pa.float64()), np.nan))
    return numbers


def kept(registry: ModelRegistry, plan: Plan, data_hash: str) -> Manifest | None:
    """The newest version that was trained for the plan's feature service on this data, if there is one."""
    if plan.model is None:
        return None
    for version in reversed(registry.versions(plan.model.name)):
        manifest, _ = registry.manifest(plan.model.name, version)
        if (manifest.feature_service_hash, manifest.data_hash) == (plan.service.hash, data_hash):
            return manifest
    return None


def next_version(registry: ModelRegistry, name: str) -> str:
    """The next minor version of the model; 1.0.0 for the first."""
    latest = registry.latest(name)
    if latest is None:
        return "1.0.0"
    major, minor = parse_version(latest)[:2]
    return f"{major}.{minor + 1}.0"
