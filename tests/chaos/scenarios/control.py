"""The harness's own control: kills as in ``crash``, but at least once. What comes twice then has to be seen, or the
verifiers are blind."""

import time

from tests.chaos.harness import OUTPUT, Lab, Result
from tests.chaos.scenarios.crash import kill

NAME = "control"
HOLDS = "with guarantee=at_least_once the same kills double something, and both verifiers say so"
KILLS = 4
COMMIT_MS = 500
"""Long, so that a kill finds rows that are sent and not yet committed."""


def run(lab: Lab, rounds: int, result: Result) -> None:
    draw = lab.random(NAME)
    result.control = True
    with lab.trial(result, stages=list(OUTPUT), guarantee="at_least_once", commit_interval_ms=COMMIT_MS) as trial:
        trial.flowing()
        for number in range(1, KILLS * rounds + 1):
            stage = draw.choice(list(OUTPUT))
            result.tell(f"kill {number} of {KILLS * rounds}: {stage}")
            kill(trial, stage)
            time.sleep(draw.uniform(0.5, 1.5))
