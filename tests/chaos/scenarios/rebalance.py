"""A stage goes from one worker to four and back to one, over and over, under load; and a stranger joins its group just
to leave again, so that partitions are taken from a worker and given straight back: while it works, and while its loop
stands still with rows of them in hand, which it hears only then are another's.
"""

import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from confluent_kafka import Consumer

from penstock.local.supervisor import Worker
from tests import failing
from tests.chaos.harness import OUTPUT, PATIENCE_S, Lab, Result, Trial
from tests.failing import Death
from tests.integration.pipeline_world import QUIET, until

NAME = "rebalance"
HOLDS = (
    "nothing lost, nothing doubled while a stage goes from one worker to four and back, and while partitions are taken "
    "and given straight back, also those of which rows are in hand, which are thrown away; the longest stall is told"
)
SCALINGS = 2
SLOTS = (1, 2, 3)
"""Beside slot 0, which stays."""
IN_HAND = ("poll", "process")
"""Where rows in hand are still finished: they are committed before their partitions go."""
PASSES = 20
TRIES = 3
"""Which partition is taken is the client's to say, and the first of all usually is."""
HEARD_S = 0.2
"""From when the stranger knows what its share will be until the worker's client has heard it too, and not its loop."""


def run(lab: Lab, rounds: int, result: Result) -> None:
    draw = lab.random(NAME)
    with lab.trial(result, stages=list(OUTPUT), command=failing.command) as trial:
        trial.flowing()
        stages: list[str] = []
        for number in range(1, SCALINGS * rounds + 1):
            stages = stages or draw.sample(list(OUTPUT), len(OUTPUT))
            stage = stages.pop()
            how = [draw.choice([signal.SIGTERM, signal.SIGKILL]) for _ in SLOTS]
            began = time.time()
            result.tell(f"{number} of {SCALINGS * rounds}: {stage}'s partitions are taken and given back")
            taken_and_given_back(trial, stage)
            result.tell(f"{number} of {SCALINGS * rounds}: {stage}'s partitions are taken with rows in hand")
            taken_from_hand(trial, Death(draw.choice(IN_HAND), stage, draw.randint(1, PASSES)))
            thrown_from_hand(trial, stage)
            result.tell(f"{number} of {SCALINGS * rounds}: {stage} to four workers")
            others = to_four(trial, stage)
            result.tell(f"{number} of {SCALINGS * rounds}: {stage} back to one by {', '.join(h.name for h in how)}")
            back_to_one(trial, stage, others, how)
            stall = trial.longest_stall(OUTPUT[stage], began)
            result.notes.setdefault("longest stall, s", []).append(round(stall, 1))
            time.sleep(draw.uniform(0.2, 1.0))
        thrown = sum(stale_rows(worker) for worker in trial.world.supervisor.workers)
        result.notes["rows in hand of partitions that were taken"] = thrown
        if not thrown:
            trial.problem("no row was in hand of a partition that was taken, or none was thrown away")


def to_four(trial: Trial, stage: str) -> list[Worker]:
    """Each of the four has a partition: the plan has four."""
    others = [trial.start_extra(stage, slot) for slot in SLOTS]
    for worker in others:
        until(
            f"{worker.name} to be given partitions ({worker.log_path})",
            lambda worker=worker: '"assigned ' in worker.log_path.read_text(errors="replace"),
            PATIENCE_S,
            0.05,
        )
    trial.new_output(OUTPUT[stage], time.time())
    trial.result.trials += 1
    return others


def taken_and_given_back(trial: Trial, stage: str) -> None:
    """A member without a slot is given a share and leaves at once: its partitions go back within seconds."""
    with stranger(trial, stage):
        pass
    trial.new_output(OUTPUT[stage], time.time())
    trial.result.trials += 1


def taken_from_hand(trial: Trial, at: Death) -> None:
    """So are partitions of a worker that has rows in hand, and hears of it with its next poll, or within this one. Its
    loop stands still for less than its session; stopped by a signal, its client would stand still too, and nothing
    could be taken from it."""
    stage = at.stage
    until_it_has_all(trial, stage)  # what it has not been told yet it would not answer while it stands
    waits = failing.arm(trial.world.folder, at, then="wait")
    try:
        until(f"{stage} to wait after {at.point}", waits.exists, PATIENCE_S, 0.02)
        with stranger(trial, stage):
            time.sleep(HEARD_S)
            waits.unlink()
    finally:
        failing.armed_by(trial.world.folder, stage).unlink(missing_ok=True)
        waits.unlink(missing_ok=True)
    trial.new_output(OUTPUT[stage], time.time())
    trial.result.trials += 1


def thrown_from_hand(trial: Trial, stage: str) -> None:
    """A poll that hears that the partition of its first row is another's: tried until such a row was thrown away."""
    worker, first = trial.world.worker(stage), min(places_of(trial, stage))
    before = stale_rows(worker)
    for _ in range(TRIES):
        taken_from_hand(trial, Death(f"{failing.FIRST_ROW}{first}", stage, 1))
        if stale_rows(worker) > before:
            return


@contextmanager
def stranger(trial: Trial, stage: str) -> Iterator[None]:
    """A member without a slot has joined the stage's group, and nothing is its own before others have let go of it. At
    the end of the block it waits for that, and leaves."""
    world = trial.world
    given: list[int] = []
    member = Consumer(
        {
            "bootstrap.servers": world.bootstrap,
            "group.id": world.plan.group(stage),
            "partition.assignment.strategy": "cooperative-sticky",
            "session.timeout.ms": 6000,
            "heartbeat.interval.ms": 200,
            "enable.auto.commit": False,
            **QUIET,
        }
    )

    def poll_until(what: str, holds: Callable[[], object]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not holds():
            assert time.monotonic() < deadline, f"a stranger in {stage}'s group was not {what}"
            member.poll(0.01)

    try:
        topics = [source.topic for source in world.plan.stage(stage).inputs]
        member.subscribe(topics, on_assign=lambda _, places: given.append(len(places)))
        poll_until("let in", lambda: given)
        yield
        poll_until("given a share", lambda: sum(given))
    finally:
        member.close()


def back_to_one(trial: Trial, stage: str, others: list[Worker], how: list[signal.Signals]) -> None:
    for worker, number in zip(others, how, strict=True):
        code = trial.end(worker, number)
        if number is signal.SIGTERM and code != 0:
            trial.problem(f"{worker.name} left with {code}: {worker.log_path.read_text()[-300:]!r}")
    # they keep their memberships, so their partitions are free when the sessions end
    until_it_has_all(trial, stage)
    trial.new_output(OUTPUT[stage], time.time())
    trial.result.trials += 1


def until_it_has_all(trial: Trial, stage: str) -> None:
    every = set(places_of(trial, stage))

    def has_all() -> bool:
        held: set[str] = set()
        for line in trial.world.said(stage, 0):
            taken = re.findall(r"[\w.]+/\d+", line["message"])
            if line["message"].startswith("assigned "):
                held.update(taken)
            elif line["message"].startswith("let go of "):
                held.difference_update(taken)
        return held >= every

    until(f"{stage}.0 to have all partitions", has_all, PATIENCE_S, 0.1)


def places_of(trial: Trial, stage: str) -> list[str]:
    topics = [source.topic for source in trial.world.plan.stage(stage).inputs]
    return [f"{topic}/{n}" for topic in topics for n in range(trial.lab.plan.partitions)]


def stale_rows(worker: Worker) -> int:
    answer = worker.ask("/metrics")
    text = "" if answer is None else answer[1].decode()
    return sum(int(float(n)) for n in re.findall(r"^penstock_stale_rows_total\{.*\} (\S+)$", text, re.MULTILINE))
