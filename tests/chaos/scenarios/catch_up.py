"""Weeks of events wait when the workers start, read by one worker of each stage and by two."""

from itertools import islice
from zlib import crc32

from tests.chaos.harness import OUTPUT, PATIENCE_S, Lab, Result, Trial
from tests.integration.pipeline_world import until

NAME = "catch-up"
HOLDS = "no row is later than its view's lateness, and the windows are those of the log"
BACKLOG = 15_000
WEEKS = 3
THINNED = 3
"""Of so many flights one: events and labels of three weeks and more, of the same aircraft and airports."""


def run(lab: Lab, rounds: int, result: Result) -> None:
    for workers in (1, 2):
        with lab.trial(result, rate=0, stages=[], max_batch_rows=16_384) as trial:
            result.tell(f"{workers} worker(s) of each stage")
            read_backlog(trial, workers, BACKLOG * rounds)
            result.trials += 1
        for what, late in trial.counts.items():
            if what.startswith("late in ") and late:
                result.problems.append(f"{workers} worker(s) of each stage: {late} rows came too {what}")


def read_backlog(trial: Trial, workers: int, backlog: int) -> None:
    feed = (m for m in trial.lab.feed() if crc32(m.key) % THINNED == 0)  # a flight's label has its key
    sent = list(islice(feed, backlog))
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
    until("every fate", trial.finished, PATIENCE_S, 0.1)
    seen = [at for _, at, _ in trial.watcher.at["predictions"]]
    took = max(seen[-1] - seen[0], 0.1)
    trial.result.notes[f"{days:.0f} days by {workers} worker(s) of a stage"] = f"{len(seen) / took:.0f} predictions/s"
