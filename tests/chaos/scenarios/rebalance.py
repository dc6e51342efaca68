"""A second worker comes and goes again, over and over, under load."""

import signal
import time

from tests.chaos.harness import OUTPUT, PATIENCE_S, Lab, Result, Trial
from tests.chaos.scenarios.zombie import taken_over
from tests.integration.pipeline_world import until

NAME = "rebalance"
HOLDS = "nothing lost, nothing doubled while a stage goes from one worker to two and back; the longest stall is told"
SCALINGS = 2


def run(lab: Lab, rounds: int, result: Result) -> None:
    draw = lab.random(NAME)
    with lab.trial(result, stages=list(OUTPUT)) as trial:
        trial.flowing()
        for number in range(1, SCALINGS * rounds + 1):
            stage = draw.choice(list(OUTPUT))
            how = draw.choice([signal.SIGTERM, signal.SIGKILL])
            result.tell(f"{number} of {SCALINGS * rounds}: {stage} to two and back by {how.name}")
            to_two_and_back(trial, stage, how)
            time.sleep(draw.uniform(0.2, 1.0))


def to_two_and_back(trial: Trial, stage: str, how: signal.Signals) -> None:
    began = time.time()
    second = trial.start_extra(stage, 1)
    until(
        f"{stage}.1 to be given partitions ({second.log_path})",
        lambda: '"assigned ' in second.log_path.read_text(errors="replace"),
        PATIENCE_S,
        0.05,
    )
    trial.new_output(OUTPUT[stage], time.time())
    before = len(taken_over(trial, stage, 0))
    code = trial.end(second, how)
    if how is signal.SIGTERM and code != 0:
        trial.problem(f"{stage}.1 left with {code}: {second.log_path.read_text()[-300:]!r}")
    # it keeps its membership, so its partitions are free when its session ends
    until(f"{stage}.0 to have all partitions", lambda: len(taken_over(trial, stage, 0)) > before, PATIENCE_S, 0.1)
    trial.new_output(OUTPUT[stage], time.time())
    trial.result.trials += 2
    stall = trial.longest_stall(OUTPUT[stage], began)
    trial.result.notes.setdefault("longest stall, s", []).append(round(stall, 1))
