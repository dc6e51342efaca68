"""Workers that end at named points of their work: between any two steps of a batch, in the middle of a snapshot, before
and after each of Feast's stores has the rows (``tests/failing.py`` does it, and has the points)."""

import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock

from tests import failing
from tests.chaos.harness import OUTPUT, Lab, Result, Trial
from tests.chaos.scenarios.crash import history_once, profiles_once
from tests.failing import Death
from tests.integration.pipeline_world import until

NAME = "crash-points"
HOLDS = "nothing lost, nothing doubled, Feast's history once each, profile counts equal to one pass, wherever it ends"
MONITOR = "monitor"
WINDOWED = ("features.aircraft", "features.airport")
WHERE = {
    **dict.fromkeys(failing.LOOP, (*OUTPUT, MONITOR)),
    **dict.fromkeys(failing.SNAPSHOT, (*WINDOWED, MONITOR)),
    **dict.fromkeys(failing.FEAST, (failing.FEAST_STAGE,)),
}
OFTEN = 20
"""Passes of a point that comes by with each batch, within which the worker ends; elsewhere it is ``SELDOM``."""
SELDOM = 2
DIED_S = 30.0
COUNTING = Lock()


def run(lab: Lab, rounds: int, result: Result) -> None:
    draw = lab.random(NAME)
    stages = [*OUTPUT, MONITOR, failing.FEAST_STAGE]
    deaths = list(drawn(draw, rounds))
    with lab.trial(result, stages=stages, command=failing.command, snapshot_interval_s=0.5) as trial:
        trial.flowing()
        # the Feast writer needs long to start, and nobody waits for it but its own next death
        lanes = [[d for d in deaths if (d.stage == failing.FEAST_STAGE) is feast] for feast in (True, False)]
        with ThreadPoolExecutor(len(lanes)) as pool:
            list(pool.map(lambda lane: end_each(trial, lane, len(deaths)), lanes))
        trial.settle()
        history_once(trial)
        profiles_once(trial)


def drawn(draw: random.Random, rounds: int) -> Iterator[Death]:
    """Every point once a round, each at another of its stages than in the round before, in an order drawn anew."""
    turns = {point: draw.sample(stages, len(stages)) for point, stages in WHERE.items()}
    for number in range(rounds):
        for point in draw.sample(list(WHERE), len(WHERE)):
            stage = turns[point][number % len(turns[point])]
            often = point in failing.LOOP and stage != MONITOR
            yield Death(point, stage, draw.randint(1, OFTEN if often else SELDOM))


def end_each(trial: Trial, deaths: Sequence[Death], of: int) -> None:
    for death in deaths:
        trial.result.tell(f"{trial.result.trials} of {of} deaths; next is {death.stage} at {death.point}")
        end(trial, death)


def end(trial: Trial, death: Death) -> None:
    """Counts only where the worker was seen to end of it."""
    world, stage = trial.world, death.stage
    worker = world.worker(stage)
    worker.restarts.clear()  # it is not the supervisor's to give up a worker for what we ask of it
    said = f"{stage}.0 ended with exit code {failing.CODE};"
    before = heard(trial, said)
    died = failing.arm(world.folder, death)
    try:
        until(f"{stage} to end", lambda: died.exists() and heard(trial, said) > before, DIED_S, pause=0.02)
    except AssertionError:
        failing.armed_by(world.folder, stage).unlink(missing_ok=True)
        trial.problem(f"nobody died at {death.point} of {stage} within {DIED_S:.0f} s")
        return
    ended = moment(died)
    with COUNTING:
        trial.result.trials += 1
    trial.result.notes[death.point] = trial.result.notes.get(death.point, 0) + 1
    if stage in OUTPUT:
        # what the dead had under way may still have been appended
        trial.result.recoveries.append(trial.new_output(OUTPUT[stage], ended + 0.05) - ended)
    else:
        world.wait_restarted(stage, 1)


def heard(trial: Trial, said: str) -> int:
    return sum(line.startswith(said) for line in trial.world.heard)


def moment(died: Path) -> float:
    """A rename leaves the file's own time as it was."""
    return died.stat().st_ctime
