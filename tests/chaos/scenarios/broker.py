"""Kill -9 of the broker under load, and a restart with its data; SIGSTOP of the broker, and on."""

import time
from collections.abc import Callable

from tests.chaos.harness import OUTPUT, PATIENCE_S, Lab, Result, Trial
from tests.chaos.scenarios.crash import history_once, profiles_once
from tests.failing import FEAST_STAGE
from tests.integration.pipeline_world import until

NAME = "broker"
HOLDS = (
    "nothing lost, nothing doubled, Feast's history once each, profiles of one pass; workers reconnect, readiness goes "
    "false and comes back"
)
BACK_S = 60.0
STOPPED_S = 8.0
"""Longer than a session."""


def run(lab: Lab, rounds: int, result: Result) -> None:
    draw = lab.random(NAME)
    ways: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "stopped": (lab.broker.pause, lab.broker.resume),
        "killed": (lab.broker.kill, lab.broker.start),
    }
    for how, (leave, come_back) in ways.items():
        # each in a pipeline of its own, so that one that does not come back hides no other
        try:
            with lab.trial(result, stages=[*OUTPUT, "monitor", FEAST_STAGE]) as trial:
                trial.flowing()
                for number in range(1, rounds + 1):
                    time.sleep(draw.uniform(0.5, 1.5))
                    result.tell(f"{how}, {number} of {rounds}")
                    away(trial, how, leave, come_back)
                result.notes[f"{how}: workers that ended"] = trial.world.supervisor.restarted
                trial.settle()
                history_once(trial)
                profiles_once(trial)
        except AssertionError as error:
            result.problems.append(f"after the broker was {how}: {error}")


def away(trial: Trial, how: str, leave: Callable[[], object], come_back: Callable[[], object]) -> None:
    """The broker leaves, and comes back once every worker has said that it is not ready, or has had the time to."""
    workers = [worker for worker in trial.world.supervisor.workers if worker.stage in OUTPUT]
    began = time.time()
    leave()
    unready: set[str] = set()
    try:
        while time.time() - began < STOPPED_S:
            for worker in workers:
                worker.look()
                if not worker.ready:
                    unready.add(worker.name)
            time.sleep(0.2)
    finally:
        come_back()
    trial.result.trials += 1
    back = time.time()
    trial.flowing(BACK_S)
    trial.result.notes.setdefault(f"{how}: new predictions after, s", []).append(round(time.time() - back, 1))
    if still := sorted({worker.name for worker in workers} - unready):
        trial.problem(f"with the broker {how} for {STOPPED_S:.0f} s these said they were ready: {', '.join(still)}")

    def all_ready() -> bool:
        trial.world.supervisor.check()
        for worker in workers:
            worker.look()
        return all(worker.ready for worker in workers)

    until("every worker to be ready again", all_ready, PATIENCE_S, 0.2)
