"""What lies outside of Kafka fails: Feast's online store is locked, its folders are gone, the models are gone."""

import shutil
import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from penstock.local.supervisor import Worker
from tests.chaos.harness import OUTPUT, PATIENCE_S, Lab, Result, Trial
from tests.chaos.scenarios.crash import history_once
from tests.chaos.windows import milliseconds
from tests.integration.pipeline_world import until

NAME = "stores"
HOLDS = (
    "the stream goes on or its worker waits and says for what, nothing is dead-lettered for it, all of it catches up"
)
WRITER = "features.feast"
KEYS = {"aircraft_delays": "tailnum", "airport_delays": "origin"}


def run(lab: Lab, rounds: int, result: Result) -> None:
    models = lab.folder / "models-of-stores"
    shutil.rmtree(models, ignore_errors=True)
    shutil.copytree(lab.models, models)
    with lab.trial(result, stages=[*OUTPUT, WRITER], models=models) as trial:
        trial.flowing()
        for _ in range(rounds):
            result.tell("the online store is locked")
            with locked(trial.world.folder / "feast/var/flights.online.db"):
                waits_and_says(trial, WRITER, "online store")
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
        trial.stop_stream()
        until("every fate", trial.finished, PATIENCE_S, pause=0.2)
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
