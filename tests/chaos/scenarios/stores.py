"""What lies outside of Kafka fails: Feast's online store is locked, its disk is full, its folders are read-only or
gone; the models are gone; the disk under snapshots and logs is full; the registry is away while events of a new schema
come.

A full disk is a limit of nought on the files that a running worker may write (``prlimit``): it holds for root too, and
needs no file system of its own. Nor may root write what is read-only, for what is started here lacks the capability.
"""

import ctypes
import os
import re
import resource
import shutil
import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from penstock.local.supervisor import Worker
from tests.chaos.harness import OUTPUT, PATIENCE_S, Lab, Result, Trial
from tests.chaos.registry import SmallRegistry
from tests.chaos.scenarios.crash import history_once
from tests.chaos.windows import milliseconds
from tests.integration.pipeline_world import framed, until

NAME = "stores"
HOLDS = (
    "the stream goes on or its worker waits and says for what, nothing is dead-lettered for it, all of it catches up"
)
WRITER = "features.feast"
NEW_ID = 4_711
"""The first of those whose schemas are in no lock."""
PR_CAPBSET_DROP, CAP_DAC_OVERRIDE = 24, 1
"""Of Linux: linux/prctl.h, linux/capability.h."""
DOWN_S = 12.0
"""Longer than the registry's client waits, twice, with its second try."""
MINUTES_S = 150.0
"""Once, where there are several rounds."""
KEYS = {"aircraft_delays": "tailnum", "airport_delays": "origin"}


def run(lab: Lab, rounds: int, result: Result) -> None:
    models = lab.folder / "models-of-stores"
    shutil.rmtree(models, ignore_errors=True)
    shutil.copytree(lab.models, models)
    event = newer(lab.plan.event.avro)
    heed_permissions()
    with (
        SmallRegistry(NEW_ID, event) as registry,
        lab.trial(
            result, stages=[*OUTPUT, WRITER], models=models, schema_registry_url=registry.url, snapshot_interval_s=1
        ) as trial,
    ):
        trial.flowing()
        for number in range(1, rounds + 1):
            result.tell("the online store is locked")
            with locked(trial.world.folder / "feast/var/flights.online.db"):
                waits_and_says(trial, WRITER, "online store")
                trial.flowing()
            caught_up(trial, WRITER)
            result.tell("the disk under Feast's stores is full")
            with disk_full(trial, WRITER):
                waits_and_says(trial, WRITER, "online store")
                trial.flowing()
            caught_up(trial, WRITER)
            result.tell("the disk under snapshots and logs is full")
            no_snapshots(trial, "features.aircraft")
            result.tell("Feast's folders are read-only")
            with read_only(trial.world.folder / "feast/var"):
                trial.world.signal(WRITER, signal.SIGKILL)  # what has a file open may write it for as long as it lives
                waits_and_says(trial, WRITER, "store")
                trial.flowing()
            caught_up(trial, WRITER)
            result.tell("Feast's folders are gone")
            with gone(trial.world.folder / "feast/var"):
                waits_and_says(trial, WRITER, "store of")
                trial.flowing()
            caught_up(trial, WRITER)
            result.tell("the models are gone when inference starts")
            with gone(models):
                trial.world.signal("inference", signal.SIGKILL)
                waits_and_says(trial, "inference", "model")
                trial.new_output("features", time.time())
            caught_up(trial, "inference")
            trial.flowing()
            result.tell("the registry is away and a new schema comes")
            registry_away(trial, registry, MINUTES_S if 1 < rounds == number else DOWN_S)
        trial.settle()
        history_once(trial)
        newest_online(trial)


@contextmanager
def locked(database: Path) -> Iterator[None]:
    """Held by another writer, which does not let go."""
    connection = sqlite3.connect(database, isolation_level=None, timeout=30)
    try:
        connection.execute("BEGIN IMMEDIATE")
        yield
    finally:
        connection.close()


def heed_permissions() -> None:
    """What this process starts from now on, as root too, may write only where permissions say so."""
    if os.geteuid() == 0 and ctypes.CDLL(None, use_errno=True).prctl(PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "root's right to write anything cannot be given up")


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    every = {path: path.stat().st_mode for path in (folder, *folder.rglob("*"))}
    for path, mode in every.items():
        path.chmod(mode & ~0o222)
    try:
        yield
    finally:
        for path, mode in every.items():
            path.chmod(mode)


@contextmanager
def gone(folder: Path) -> Iterator[None]:
    """A file is in its place, so that nobody, root either, can make it anew."""
    away = folder.with_name(f"{folder.name}.away")
    folder.rename(away)
    folder.touch()
    try:
        yield
    finally:
        folder.unlink()
        away.rename(folder)


@contextmanager
def disk_full(trial: Trial, stage: str) -> Iterator[None]:
    """No file of the worker may grow. It is the same process before and after."""
    pid = trial.world.worker(stage).pid
    assert pid is not None
    _, most = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, most))
    try:
        yield
    finally:
        if trial.world.worker(stage).pid != pid:
            trial.problem(f"{stage} ended when its disk was full: {trial.world.log(stage)[-300:]!r}")
        else:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (most, most))


def no_snapshots(trial: Trial, stage: str) -> None:
    """Snapshots fail and are counted, the log takes no line, and the stream goes on."""
    until(f"{stage} to write snapshots", lambda: snapshots(trial, stage, "written"), PATIENCE_S, 0.1)
    with disk_full(trial, stage):
        failed = snapshots(trial, stage, "failed")
        until(f"{stage} to fail with a snapshot", lambda: snapshots(trial, stage, "failed") > failed, PATIENCE_S, 0.1)
        trial.new_output(OUTPUT[stage], time.time())
        said = len(trial.world.said(stage))
    written = snapshots(trial, stage, "written")
    until(f"{stage} to write again", lambda: snapshots(trial, stage, "written") > written, PATIENCE_S, 0.1)
    trial.world.signal(stage, signal.SIGKILL)
    until(f"{stage} to log again", lambda: len(trial.world.said(stage)) > said, PATIENCE_S, 0.1)
    trial.flowing()
    trial.result.trials += 1


def snapshots(trial: Trial, stage: str, outcome: str) -> int:
    trial.world.supervisor.check()
    answer = trial.world.worker(stage).ask("/metrics")
    text = "" if answer is None else answer[1].decode()
    found = re.findall(rf'^penstock_snapshots_total{{.*outcome="{outcome}".*}} (\S+)$', text, re.MULTILINE)
    return sum(int(float(n)) for n in found)


def newer(schema: dict[str, Any]) -> dict[str, Any]:
    """The next version of a producer's schema: one more field, which the reader leaves out."""
    return {**schema, "fields": [*schema["fields"], {"name": "gate_of_test", "type": "string", "default": ""}]}


def registry_away(trial: Trial, registry: SmallRegistry, seconds: float) -> None:
    """Ingest has not met the id, and nobody tells it: it reads no further, and says why. Then it reads it all."""
    world = trial.world
    registry.hang()
    before = registry.asked
    event = next(m for m in reversed(world.events) if m.topic == "raw" and (m.value or b"")[:1] == b"\0")
    schema, row = newer(trial.lab.plan.event.avro), world.row(event)
    number = trial.result.trials
    schema_id = NEW_ID + number  # that no worker has met in an earlier round
    world.schemas.register(schema_id, schema)
    flight = f"2013-01-01.ZZ.{number}.ZZZ"
    row |= {"flight_id": flight, "gate_of_test": "7"}
    world.send([replace(event, key=flight.encode(), value=framed(schema, schema_id, row))])
    waits_and_says(trial, "ingest", "schemas")
    began, worker = time.time(), world.worker("ingest")
    while time.time() - began < seconds:
        time.sleep(0.2)
        if not _waits_for(trial, worker, "schemas"):
            trial.problem(f"ingest said it waits for nothing after {time.time() - began:.1f} s without a registry")
            break
    if registry.asked == before:
        trial.problem("ingest waited for a registry that it did not ask")
    if dead := trial.watcher.watch.distinct("dead"):
        trial.problem(f"{dead} dead letters while the registry was away")
    registry.come_back()
    caught_up(trial, "ingest")
    trial.flowing()


def waits_and_says(trial: Trial, stage: str, what: str) -> None:
    worker = trial.world.worker(stage)
    until(f"{stage} to say that it waits for {what}", lambda: _waits_for(trial, worker, what), PATIENCE_S, 0.1)
    trial.result.trials += 1


def _waits_for(trial: Trial, worker: Worker, what: str) -> bool:
    trial.world.supervisor.check()
    worker.look()
    return not worker.ready and any(what in name for name in worker.waiting_for)


def caught_up(trial: Trial, stage: str) -> None:
    began, worker = time.time(), trial.world.worker(stage)

    def ready() -> bool:
        trial.world.supervisor.check()
        worker.look()
        return worker.ready

    until(f"{stage} to be ready again", ready, PATIENCE_S, 0.1)
    trial.result.notes.setdefault(f"{stage} ready again after, s", []).append(round(time.time() - began, 1))


def newest_online(trial: Trial) -> None:
    """The online store holds each entity's newest row: by event time, then by offset."""
    world = trial.world
    with sqlite3.connect(world.folder / "feast/var/flights.online.db") as connection:
        for view, key in KEYS.items():
            newest: dict[str, tuple[int, int]] = {}
            for row in world.rows(f"view.{view}"):
                at = milliseconds(row["_event_time"]) * 1000, row["_offset"]
                newest[row[key]] = max(at, newest.get(row[key], at))
            held = connection.execute(f"SELECT event_time, version FROM flights_{view}").fetchall()
            if sorted(held) != sorted(newest.values()):
                wrong = set(held) ^ set(newest.values())
                trial.problem(f"{len(wrong)} of {len(newest)} entities of {view} are not online as they were last")
