"""The worker ``monitor.merge``: a Faust app that merges the partial profiles of all monitors into windows, and tells
drift, quality and accuracy.

One such worker is enough (partials come at hundreds a second), and only one may run: a second one that still wrote
its last changes could put an older count over a newer one in the changelog.
"""

import asyncio
import logging
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import faust

from penstock import telemetry
from penstock.health import BROKER, Health, HealthServer
from penstock.memory import Memory, OutgrownError, memory_within
from penstock.observer import tell_lag
from penstock.plan import Plan, PlanError
from penstock.records import Partition
from penstock.settings import Settings
from penstock.topics import BrokerUnavailable
from penstock.watchdog import LONGEST_COMMIT, LONGEST_STOP_S, watch_phases
from penstock_monitor.committed import CommittedApp, SafeTable, broker_of, make_changelog
from penstock_monitor.merging import Merge
from penstock_monitor.sources import Progress, Sources

log = logging.getLogger(__name__)

TABLE = "windows"
TAKE = 2000
WITHIN_S = 0.5
CLOSE_EVERY_S = 1.0
TURN = "turn of the event loop"
"""The worker's only phase: while it lasts, nothing else is done."""


def main(plan: Plan, name: str, settings: Settings) -> int:
    """Runs until SIGTERM or SIGINT. Returns the exit code: 0 stopped, 1 it cannot go on."""
    for chatty in ("faust", "mode", "aiokafka", CommittedApp.__module__):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    if settings.slot:
        raise PlanError(f"{name} runs in one worker only, slot 0; PENSTOCK_SLOT is {settings.slot}. Start it once")
    health = Health()
    server = HealthServer(health, settings.metrics_host, settings.metrics_port)
    log.info("metrics and health on port %d", server.port, extra={"port": server.port})
    try:
        make_changelog(settings, f"{plan.group(name)}-{TABLE}-changelog", plan.partitions)
        return asyncio.run(_serve(plan, name, settings, health))
    except BrokerUnavailable as error:
        log.error("%s", error)
        return 1
    finally:
        health.alive = False
        server.close()


def make_app(plan: Plan, name: str, settings: Settings, health: Health) -> Any:
    """The Faust app of a plan's merge; must be called with an event loop running."""
    memory = memory_within(settings.memory_limit_mb)  # before there is a client to close
    group = plan.group(name)
    # nothing is kept there with an in-memory store, but Faust wants the folder
    folder = settings.state_dir.absolute() / "faust" / group
    folder.mkdir(parents=True, exist_ok=True)
    app = CommittedApp(
        group,
        **broker_of(settings),
        store="memory://",
        datadir=str(folder),
        autodiscover=False,
        web_enabled=False,
        topic_disable_leader=True,
        topic_partitions=plan.partitions,
        consumer_auto_offset_reset="earliest",
        consumer_group_instance_id=f"{group}.{settings.slot}",
        broker_session_timeout=settings.session_timeout_ms / 1000,
        broker_heartbeat_interval=settings.session_timeout_ms / 4000,
        broker_commit_interval=1.0,
    )
    raw = {"key_type": bytes, "value_type": bytes, "key_serializer": "raw", "value_serializer": "raw"}
    profiles = app.topic(plan.topic("profiles").name, partitions=plan.partitions, allow_empty=True, **raw)
    alerts = app.topic(plan.topic("alerts").name, partitions=plan.partitions, **raw)
    table = SafeTable(
        app, name=TABLE, partitions=plan.partitions, schema=faust.Schema(**raw), key_type=bytes, value_type=bytes
    )
    merge = Merge(plan, settings, app.tables.add(table), alerts, health.wait)
    sources = Sources(plan, settings)
    progress: Progress | None = None
    looked = 0.0
    source = plan.topic("profiles").name
    begun = False
    health.ask(BROKER, sources.trouble)
    health.wait("start", None)
    health.wait("recovery", "the windows are being read back")
    health.wait("lag", f"the ends of {source} are not known yet")

    async def recovered() -> None:
        nonlocal begun
        begun = True
        merge.recovered()
        health.wait("recovery", None)

    async def merge_profiles(stream: Any) -> None:
        async for events in stream.take_events(TAKE, within=WITHIN_S):
            with leaving_on_failure():
                await merge.add(events)
                app.safe(events)

    async def look() -> None:
        nonlocal progress, looked
        look_at_memory(memory, health)
        with leaving_on_failure():
            try:
                seen = await asyncio.to_thread(sources.look)
            except BrokerUnavailable as error:
                log.warning("%s", error)
                return
            if progress is None:  # a later look would claim more, and under load be true as late again
                progress, looked = seen, time.monotonic()
            for number, rows in app.behind(source, seen.ends).items():
                tell_lag(name, Partition(source, number), rows, time.monotonic() - looked)
            health.wait("lag", None)
            telemetry.READY.labels(name).set(health.ready)

    async def close_windows() -> None:
        nonlocal progress
        if not begun or progress is None:
            return
        with leaving_on_failure():
            if not any(app.behind(source, progress.ends).values()):
                reached, progress = progress, None
                await merge.close(reached.watermark, stopped=reached.stopped)

    table.on_recover(recovered)
    app.agent(profiles)(merge_profiles)
    app.timer(CLOSE_EVERY_S)(look)
    app.timer(CLOSE_EVERY_S)(close_windows)
    return app


def look_at_memory(memory: Memory | None, health: Health) -> None:
    """Faust reads on; so a merge that holds too much for long can only start anew."""
    try:
        health.wait("memory", None if memory is None else memory.look(time.monotonic()))
    except OutgrownError as error:
        log.critical("%s. Raise PENSTOCK_MEMORY_LIMIT_MB or the container's limit", error)
        os._exit(1)


@contextmanager
def leaving_on_failure() -> Iterator[None]:
    """Ends the process when the body raises: that is as safe as a kill, and going on is not.

    Faust would start the agent again behind what could not be merged.
    """
    try:
        yield
    except Exception:  # whatever it was, the counts on disk are right and those in memory may not be
        log.critical("profiles could not be merged; leaving, to start again from the changelog", exc_info=True)
        os._exit(1)


async def _serve(plan: Plan, name: str, settings: Settings, health: Health) -> int:
    app = make_app(plan, name, settings, health)
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    watch_phases(health, {TURN: LONGEST_COMMIT})
    await app.start()
    while not stopping.is_set() and not app.should_stop:
        health.began(TURN)
        await asyncio.sleep(0.1)
    crashed = app.crashed
    health.ended()
    try:
        async with asyncio.timeout(LONGEST_STOP_S):
            await app.stop()
    except TimeoutError:
        log.error("not stopped %.0f s after it was told to: the worker ends", LONGEST_STOP_S)
        os._exit(1)
    log.info("stopped")
    return 1 if crashed else 0
