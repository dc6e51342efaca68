"""A stage goes from one worker to four and back to one, over and over, under load; and a stranger joins its group just
to leave again, so that partitions are taken from a worker while rows of them are in hand, and given straight back.
"""

import re
import signal
import time

from confluent_kafka import Consumer

from penstock.local.supervisor import Worker
from tests.chaos.harness import OUTPUT, PATIENCE_S, Lab, Result, Trial
from tests.integration.pipeline_world import QUIET, until

NAME = "rebalance"
HOLDS = (
    "nothing lost, nothing doubled while a stage goes from one worker to four and back, and while partitions are taken "
    "and given straight back; the longest stall is told"
)
SCALINGS = 2
VISITS = 1
SLOTS = (1, 2, 3)
"""Beside slot 0, which stays."""


def run(lab: Lab, rounds: int, result: Result) -> None:
    draw = lab.random(NAME)
    with lab.trial(result, stages=list(OUTPUT)) as trial:
        trial.flowing()
        for number in range(1, SCALINGS * rounds + 1):
            stage = draw.choice(list(OUTPUT))
            how = [draw.choice([signal.SIGTERM, signal.SIGKILL]) for _ in SLOTS]
            began = time.time()
            result.tell(f"{number} of {SCALINGS * rounds}: {stage}'s partitions are taken and given back")
            for _ in range(VISITS):
                taken_and_given_back(trial, stage)
            result.tell(f"{number} of {SCALINGS * rounds}: {stage} to four workers")
            others = to_four(trial, stage)
            result.tell(f"{number} of {SCALINGS * rounds}: {stage} back to one by {', '.join(h.name for h in how)}")
            back_to_one(trial, stage, others, how)
            stall = trial.longest_stall(OUTPUT[stage], began)
            result.notes.setdefault("longest stall, s", []).append(round(stall, 1))
            time.sleep(draw.uniform(0.2, 1.0))
        thrown = sum(stale_rows(worker) for worker in trial.world.supervisor.workers)
        result.notes["rows in hand of partitions that were taken"] = thrown


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
    """A member without a slot is given a share and leaves at once: its partitions go back within a second."""
    world = trial.world
    given: list[int] = []
    stranger = Consumer(
        {
            "bootstrap.servers": world.bootstrap,
            "group.id": world.plan.group(stage),
            "partition.assignment.strategy": "cooperative-sticky",
            "session.timeout.ms": 6000,
            "enable.auto.commit": False,
            **QUIET,
        }
    )
    try:
        topics = [source.topic for source in world.plan.stage(stage).inputs]
        stranger.subscribe(topics, on_assign=lambda _, places: given.append(len(places)))
        deadline = time.monotonic() + PATIENCE_S
        while not given:
            assert time.monotonic() < deadline, f"a stranger was let into {stage}'s group by nobody"
            stranger.poll(0.02)
    finally:
        stranger.close()
    trial.new_output(OUTPUT[stage], time.time())
    trial.result.trials += 1


def back_to_one(trial: Trial, stage: str, others: list[Worker], how: list[signal.Signals]) -> None:
    for worker, number in zip(others, how, strict=True):
        code = trial.end(worker, number)
        if number is signal.SIGTERM and code != 0:
            trial.problem(f"{worker.name} left with {code}: {worker.log_path.read_text()[-300:]!r}")
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

    # they keep their memberships, so their partitions are free when the sessions end
    until(f"{stage}.0 to have all partitions", has_all, PATIENCE_S, 0.1)
    trial.new_output(OUTPUT[stage], time.time())
    trial.result.trials += 1


def places_of(trial: Trial, stage: str) -> list[str]:
    topics = [source.topic for source in trial.world.plan.stage(stage).inputs]
    return [f"{topic}/{n}" for topic in topics for n in range(trial.lab.plan.partitions)]


def stale_rows(worker: Worker) -> int:
    answer = worker.ask("/metrics")
    text = "" if answer is None else answer[1].decode()
    return sum(int(float(n)) for n in re.findall(r"^penstock_stale_rows_total\{.*\} (\S+)$", text, re.MULTILINE))
