"""One process of one stage: puts plan, settings, codec, transport, stage and loop together and runs them until SIGTERM.

Imports no feast: a worker is ready within seconds. What a stage's own service needs, its entry point brings along.
"""

import ctypes
import gc
import logging
import os
from collections.abc import Callable
from importlib.metadata import entry_points

import pyarrow as pa

from penstock import logs, telemetry
from penstock.breaker import Breaker
from penstock.codec.avro import AvroDecoder, AvroEncoder
from penstock.codec.input import InputDecoder
from penstock.codec.json import JsonDecoder
from penstock.fates import FateError
from penstock.health import BROKER, Health, HealthServer
from penstock.intake import Intake, TopicReader
from penstock.journal.notes import Notes
from penstock.journal.stepping import Journal
from penstock.loop import Loop
from penstock.memory import MIB, OutgrownError, cgroup_limit, memory_within
from penstock.observer import Observer
from penstock.outbox import Outbox, UnencodableError
from penstock.pace import Pace
from penstock.plan import AvroSchema, InputPlan, Plan, PlanError, StagePlan
from penstock.recovery import IncompleteLogError
from penstock.schemas.registry import ConfluentRegistry, UnknownSchemaId
from penstock.settings import InvalidSettings, Settings, misspelt
from penstock.slots import Slot, SlotTaken
from penstock.snapshots.files import SnapshotFiles, Store
from penstock.snapshots.taking import Snapshots
from penstock.stage import Stage, StageKind
from penstock.transport.kafka import KafkaTransport
from penstock.transport.protocol import Fenced, Repartitioned, Transport
from penstock.watchdog import watch

log = logging.getLogger(__name__)

HEADROOM_BYTES = 64 << 10
"""What an envelope, the features and a dead letter's headers may add to an event."""

_MMAP_THRESHOLD, _ARENA_MAX = -3, -8
"""Of glibc's malloc.h."""

Lookup = Callable[[int], AvroSchema]


def _save_memory() -> None:
    """What librdkafka's threads allocate and the loop's frees would lie idle in an arena of each thread, large columns
    in holes of the heap and in Arrow's own pool: a fifth of a worker's memory. So there are two arenas, what has a
    mebibyte goes back to the system at once, and Arrow allocates as all others do. Other C libraries have no arenas."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_ARENA_MAX, 2)
        mallopt(_MMAP_THRESHOLD, MIB)
        pa.set_memory_pool(pa.system_memory_pool())


def find_kind(name: str) -> StageKind:
    """The service behind a stage's name. Raises ``PlanError`` when it is not installed."""
    kind = name.split(".", 1)[0]
    for point in entry_points(group="penstock.stages"):
        if point.name == kind:
            found = point.load()
            if not isinstance(found, StageKind):
                raise PlanError(f"entry point penstock.stages:{kind} is {found!r}, not a StageKind")
            return found
    raise PlanError(f"the service that runs {name!r} is not installed. Install penstock-{kind}")


def find_main(name: str) -> Callable[[Plan, str, Settings], int] | None:
    """The main function of a worker that is no loop (``features.feast``, ``monitor.merge``), or None."""
    for point in entry_points(group="penstock.workers"):
        if point.name == name:
            main: Callable[[Plan, str, Settings], int] = point.load()
            return main
    return None


def run(plan: Plan, name: str, settings: Settings) -> int:
    """Runs stage or worker ``name`` until SIGTERM or SIGINT. Returns the exit code: 0 stopped, 1 it cannot go on."""
    logs.set_up(name, settings.slot, settings.log_level)
    _save_memory()
    for line in misspelt(os.environ):
        log.warning("%s", line)
    try:
        plan.stage(name)  # raises where the plan has none of that name, loop or not: nothing is to install then
        with Slot(settings.state_dir, plan.group(name), settings.slot):
            log.info("%s of %s, with Kafka at %s", name, plan.pipeline, settings.bootstrap_servers)
            telemetry.MEMORY_LIMIT.labels(name).set(cgroup_limit() or 0)
            main = find_main(name)
            return main(plan, name, settings) if main is not None else _run_stage(plan, name, settings)
    except OutgrownError as error:
        log.error("%s. Raise PENSTOCK_MEMORY_LIMIT_MB or the container's limit, or add a worker", error)
        return 1
    except (InvalidSettings, PlanError, SlotTaken, IncompleteLogError, Repartitioned, OSError) as error:
        log.error("%s", error)
        return 1


def _run_stage(plan: Plan, name: str, settings: Settings) -> int:
    kind = find_kind(name)
    health = Health()
    server = HealthServer(health, settings.metrics_host, settings.metrics_port)
    log.info("metrics and health on port %d", server.port, extra={"port": server.port})
    stage = kind.build(plan, name)
    try:
        memory = memory_within(settings.memory_limit_mb)  # before there is a client to close
        transport = KafkaTransport(
            settings, plan.group(name), name, max_message_bytes=largest_message(plan), planned=plan.keyed(name)
        )
        companion = kind.companion(plan, name, settings) if kind.companion is not None else None
        interval_ms = kind.commit_interval_ms or settings.commit_interval_ms
        loop = make_loop(plan, name, settings, stage, transport, health, interval_ms)
        loop.companion = companion
        loop.recovery.snapshots = snapshots_of(plan, name, settings, stage, transport)
        loop.memory = memory
        loop.recovery.journal = journal_of(plan, name, settings, transport, loop.intake)
        watch(health, loop.stop)
        gc.collect()
        gc.freeze()
        gc.disable()
        loop.run()
    except Fenced as error:
        log.error("fenced: %s", error)
        return 1
    except (FateError, UnencodableError) as error:
        log.error("%s", error)
        return 1
    finally:
        health.alive = False
        server.close()
    log.info("stopped")
    return 0


def make_loop(
    plan: Plan, name: str, settings: Settings, stage: Stage, transport: Transport, health: Health, interval_ms: int
) -> Loop:
    """The loop of ``stage`` on any transport: what a worker runs on Kafka, training and tests run in memory."""
    stage_plan = plan.stage(name)
    topics = [source.topic for source in stage_plan.inputs]
    lookup = schema_lookup(plan, settings)
    intake = Intake(
        [reader(source, lookup, largest_message(plan)) for source in stage_plan.inputs],
        stage_plan.rekeys,
        settings.merge_buffer_rows,
        settings.max_batch_rows,
    )
    outbox = Outbox(
        transport,
        name,
        encoders(plan, stage_plan),
        plan.topic("dead").name,
        plan.topic("dropped").name,
        plan.topic("raw").name,
        [source.topic for source in stage_plan.inputs if source.format == "raw"],
        stage.absorbs,
        f"{plan.pipeline}.labels" if plan.label is not None else None,
    )
    health.ask(BROKER, transport.trouble)
    health.ask("readers", transport.unread)
    observer = Observer(name, health)
    pace = Pace(
        interval_ms / 1000,
        settings.max_batch_rows,
        settings.max_wait_ms / 1000,
        plan.lateness_ms,
        plan.event.future_ms,
        settings.allow_incomplete_windows,
    )
    breaker = Breaker(settings.dead_letter_limit, settings.dead_letter_window_rows)
    return Loop(stage, transport, intake, outbox, observer, pace, topics, breaker=breaker)


def snapshots_of(plan: Plan, name: str, settings: Settings, stage: Stage, transport: Transport) -> Snapshots | None:
    """What keeps the stage's state; None where it has none, or none is wanted."""
    if not settings.snapshot_interval_s or all(stage.reach(source.topic) is None for source in plan.stage(name).inputs):
        return None
    files = SnapshotFiles(settings.snapshots, plan.group(name))
    return Snapshots(files, stage, name, transport.identity, settings.snapshot_interval_s)


def largest_message(plan: Plan) -> int:
    """The most bytes that a worker writes as one message, and that a reader of its topics looks into."""
    return plan.event.max_bytes + 2 * HEADROOM_BYTES


def journal_of(plan: Plan, name: str, settings: Settings, transport: Transport, intake: Intake) -> Journal:
    """What finds a row that kills the worker, also where the stage has no state."""
    notes = Notes(Store(settings.snapshots, plan.group(name)))
    return Journal(notes, transport.identity, name, intake.most_in_hand)


def reader(source: InputPlan, lookup: Lookup, largest: int) -> TopicReader:
    """How an input topic is decoded: framed Avro, or on raw topics Avro and JSON told apart by the frame. No value is
    looked into that is longer than its topic may hold: ``largest``, where the plan does not say less."""
    limit = source.max_bytes or largest
    avro = AvroDecoder(source.value.avro, lookup, limit)
    decode = avro.decode
    if source.format == "raw":
        decode = InputDecoder(avro, JsonDecoder(source.value.avro, limit)).decode
    return TopicReader(source.topic, decode, source.event_time, source.future_ms, raw=source.format == "raw")


def encoders(plan: Plan, stage: StagePlan) -> dict[str, Callable[..., list[bytes]]]:
    """The encoder of every topic that the stage may write."""
    found = {}
    for topic in (*stage.outputs, plan.topic("dropped").name):
        value = plan.named(topic).value
        if value is not None:
            found[topic] = AvroEncoder(value.avro, value.id).encode
    return found


def schema_lookup(plan: Plan, settings: Settings) -> Lookup:
    """Writers' schemas by id: the plan's own first, then the registry if one is set. The answers are kept."""
    known = dict(plan.schemas)
    registry = ConfluentRegistry.from_settings(settings) if settings.schema_registry_url else None

    def look_up(schema_id: int) -> AvroSchema:
        if schema_id not in known:
            if registry is None:
                raise UnknownSchemaId(f"no schema has the id {schema_id} in the lock of {plan.pipeline!r}")
            known[schema_id] = registry.schema(schema_id)
        return known[schema_id]

    return look_up
