"""A worker that is stopped for longer than its session, with rows in hand or with all of them in its open transaction,
while another slot takes its partitions over, and then goes on with what it was doing; and two processes on one slot."""

import signal
import time

from tests import failing
from tests.chaos.harness import OUTPUT, PATIENCE_S, Lab, Result, Trial
from tests.failing import Death
from tests.integration.pipeline_world import until

NAME = "zombie"
HOLDS = "no output of the zombie is committed; the second holder of a slot refuses, or on another machine fences"
POINTS = ("poll", "process", "send", "offsets")
"""``send``: its rows are at the broker; ``offsets``: all is in the transaction and only its end is missing, so that who
takes over is told no offset until the broker itself ends it."""
IN_TRANSACTION = ("send", "offsets")
PASSES = 20
STOPS = 2
WORKERS = 2


def run(lab: Lab, rounds: int, result: Result) -> None:
    draw = lab.random(NAME)
    with lab.trial(result, stages=[], workers=dict.fromkeys(OUTPUT, WORKERS), command=failing.command) as trial:
        trial.flowing()
        points: list[str] = []
        for number in range(1, STOPS * rounds + 1):
            points = points or draw.sample(POINTS, len(POINTS))
            at, slot = Death(points.pop(), draw.choice(list(OUTPUT)), draw.randint(1, PASSES)), draw.randrange(WORKERS)
            result.tell(f"stop {number} of {STOPS * rounds}: {at.stage}.{slot} after {at.point}")
            stop_for_too_long(trial, at, slot)
            time.sleep(draw.uniform(0.2, 1.0))
        stage = draw.choice(list(OUTPUT))
        result.tell(f"a second {stage}.0")
        second_holder(trial, stage)
        result.tell(f"a second {stage}.0 on another machine")
        second_machine(trial, stage)


def stop_for_too_long(trial: Trial, at: Death, slot: int) -> None:
    world, stage, other = trial.world, at.stage, 1 - slot
    until(f"{stage}.{slot} to stop after {at.point}", failing.arm(world.folder, at, slot, "stop").exists, pause=0.02)
    began, seen = time.time(), len(taken_over(trial, stage, other))
    try:
        until(f"{stage}.{other} to take over", lambda: len(taken_over(trial, stage, other)) > seen, PATIENCE_S, 0.1)
        trial.new_output(OUTPUT[stage], time.time())
    finally:
        before, before_told = len(taken_over(trial, stage, slot)), told_off(trial, stage, slot)
        world.signal(stage, signal.SIGCONT, slot)
    trial.result.trials += 1
    trial.result.notes[f"stopped after {at.point}"] = trial.result.notes.get(f"stopped after {at.point}", 0) + 1
    # it may say that it is ready for as long as it has not heard what it lost: until it has a share again
    until(
        f"{stage}.{slot} to be given partitions", lambda: len(taken_over(trial, stage, slot)) > before, PATIENCE_S, 0.1
    )
    refused = told_off(trial, stage, slot) - before_told
    trial.result.notes.setdefault(f"told off after {at.point}", []).append(refused)
    if not refused and at.point in IN_TRANSACTION:
        trial.problem(f"{stage}.{slot} went on after {at.point}, and nobody refused its transaction")
    until(f"{stage}.{slot} to be ready again", lambda: ready(trial, stage, slot), PATIENCE_S, 0.1)
    trial.new_output(OUTPUT[stage], time.time())
    stall = trial.longest_stall(OUTPUT[stage], began)
    trial.result.notes.setdefault("longest stall of a stop, s", []).append(round(stall, 1))


def taken_over(trial: Trial, stage: str, slot: int) -> list[str]:
    return [line["message"] for line in trial.world.said(stage, slot) if line["message"].startswith("assigned ")]


def told_off(trial: Trial, stage: str, slot: int) -> int:
    """How often a worker's transaction was refused, or the worker itself."""
    aborted = sum(line["message"].startswith("transaction aborted") for line in trial.world.said(stage, slot))
    return aborted + len(trial.world.worker(stage, slot).restarts)


def ready(trial: Trial, stage: str, slot: int) -> bool:
    trial.world.supervisor.check()
    worker = trial.world.worker(stage, slot)
    if worker.running:
        worker.look()
    return worker.running and worker.ready


def second_holder(trial: Trial, stage: str) -> None:
    """The lock of the slot's file refuses it before it has touched the broker."""
    second = trial.start_extra(stage, 0)
    code = trial.wait_ended(second)
    said = second.log_path.read_text()
    if code != 1 or "is held by process" not in said:
        trial.problem(f"a second {stage}.0 ended with {code} and said {said[-300:]!r}")
    trial.result.trials += 1


def second_machine(trial: Trial, stage: str) -> None:
    """Another machine has no such file: Kafka fences the older holder, which its supervisor starts again, which fences
    the newer, which nobody starts again."""
    second = trial.start_extra(stage, 0, state_dir=trial.world.folder / "elsewhere")
    before = trial.world.restarts(stage)
    until("the older holder to be fenced", lambda: trial.world.restarts(stage) > before, PATIENCE_S, 0.1)
    code = trial.wait_ended(second)
    said = second.log_path.read_text()
    if code != 1 or "fenced" not in said.lower():
        trial.problem(f"{stage}.0 of another machine ended with {code} and said {said[-300:]!r}")
    trial.result.trials += 1
    trial.new_output(OUTPUT[stage], time.time())
