"""Weeks of events wait when the workers start, read by one worker of each stage and by two."""

import os
import signal
import time
from itertools import islice
from zlib import crc32

from pipelines.flights.replay import Message
from tests.chaos.harness import OUTPUT, PATIENCE_S, Lab, Result, Trial
from tests.integration.pipeline_world import until

NAME = "catch-up"
HOLDS = "no row is later than its view's lateness, and the windows are those of the log"
BACKLOG = 6_000
WEEKS = 3
STILL_S = 3.0
THINNED = 8
"""Of so many flights one: events and labels of three weeks and more, of the same aircraft and airports."""


def run(lab: Lab, rounds: int, result: Result) -> None:
    for workers in (1, 2):
        with lab.trial(result, rate=0, stages=[], max_batch_rows=16_384) as trial:
            result.tell(f"{workers} worker(s) of each stage")
            read_backlog(trial, workers, BACKLOG * rounds)
            result.trials += 1
        none_late(trial, f"{workers} worker(s) of each stage")
    with lab.trial(result, rate=0, stages=[]) as trial:
        result.tell("one of two workers stands still")
        one_stands_still(trial)
        result.trials += 1
    none_late(trial, "one of two workers stood still")


def none_late(trial: Trial, how: str) -> None:
    for what, late in trial.counts.items():
        if what.startswith("late in ") and late:
            trial.problem(f"{how}: {late} rows came too {what}")


def one_stands_still(trial: Trial) -> None:
    """The second worker of the stages that merge stands still, shorter than a session, while weeks come: the first one
    waits for it, and gives out no row that would make those of the other late."""
    second = []
    for stage in OUTPUT:
        for slot in range(2 if trial.world.plan.stage(stage).rekeys else 1):
            worker = trial.start_extra(stage, slot)
            until(
                f"{worker.name} to be given partitions",
                lambda worker=worker: '"assigned ' in worker.log_path.read_text(errors="replace"),
                PATIENCE_S,
                0.05,
            )
            second += [worker.pid] * slot
    sent = backlog_of(trial, BACKLOG // 3)
    for pid in second:
        os.kill(pid, signal.SIGSTOP)
    trial.world.send(sent)
    time.sleep(STILL_S)
    for pid in second:
        os.kill(pid, signal.SIGCONT)
    trial.settle()


def backlog_of(trial: Trial, rows: int) -> list[Message]:
    feed = (m for m in trial.lab.feed() if crc32(m.key) % THINNED == 0)  # a flight's label has its key
    return list(islice(feed, rows))


def read_backlog(trial: Trial, workers: int, backlog: int) -> None:
    sent = backlog_of(trial, backlog)
    for start in range(0, len(sent), 10_000):
        trial.world.send(sent[start : start + 10_000])
    days = (sent[-1].time - sent[0].time) / 86_400_000
    if days < WEEKS * 7:
        trial.problem(f"the backlog is of {days:.1f} days only")
    for stage in OUTPUT:
        for slot in range(workers):
            trial.start_extra(stage, slot)
    # the rate is measured from the first prediction on: before that processes start
    until("the first prediction", lambda: trial.watcher.at["predictions"], PATIENCE_S, 0.02)
    trial.settle()
    appended = [at for at, _, _ in trial.watcher.at["predictions"]]  # when the broker had it, ms
    rate = len(appended) * 1000 / max(max(appended) - min(appended), 1)
    trial.result.notes[f"{days:.0f} days by {workers} worker(s) of a stage"] = f"{rate:.0f} predictions/s"
