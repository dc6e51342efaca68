"""One transaction in three is aborted, in every stage, under a steady stream and under bursts: what was aborted is sent
again from memory."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from statistics import median

from penstock.local.scrape import by_label, scrape
from tests import aborting
from tests.chaos.harness import OUTPUT, RATE, Lab, Result, Stream, Trial

NAME = "aborts"
HOLDS = "the same rows are sent again and come once; no worker starts anew, no partition is restored or replayed"
STAGES = (*OUTPUT, "monitor")
SHARE = 1 / 3
NEAR = 0.1
"""How far from that the share of a stage with enough transactions may be, or the harness did not do what it says."""
ENOUGH = 100
STEADY_S = 8.0
BURST = 1500
BURSTS = 2
"""With and without aborts, in turn."""


def run(lab: Lab, rounds: int, result: Result) -> None:
    with lab.trial(result, rate=0, stages=list(STAGES), command=aborting.command(lab.seed)) as trial:
        feed = lab.feed()
        trial.burst(list(islice(feed, 300)))  # warm
        assigned, before = taken(trial), aborted(trial)
        speed: dict[bool, list[float]] = {False: [], True: []}
        for number in range(rounds):
            result.tell(f"round {number + 1}: a steady stream with aborts")
            stream = Stream(trial.world, feed, RATE)
            with aborts(trial):
                stream.start()
                time.sleep(STEADY_S)
                stream.stop()
            trial.burst([])
            for _ in range(BURSTS):
                for harmed in (False, True):
                    result.tell(f"round {number + 1}: a burst {'with' if harmed else 'without'} aborts")
                    with aborts(trial, SHARE if harmed else 0.0):
                        speed[harmed].append(BURST / trial.burst(list(islice(feed, BURST))))
        judge_shares(trial, before)
        if trial.world.supervisor.restarted:
            trial.problem(f"a worker was started again: {trial.world.heard}")
        if (now := taken(trial)) != assigned:
            trial.problem(f"partitions were assigned or let go again: {assigned} before the aborts, {now} after them")
        result.notes["messages a second without aborts"] = round(median(speed[False]))
        result.notes["with aborts"] = f"{median(speed[True]) / median(speed[False]) - 1:+.0%}"


@contextmanager
def aborts(trial: Trial, share: float = SHARE) -> Iterator[None]:
    """A share of the transactions that begin from now on; a transaction lasts some milliseconds."""
    said = trial.world.folder / "aborting"
    aside = said.with_suffix(".aside")
    aside.write_text(str(share))
    aside.rename(said)
    yield
    said.unlink()


def taken(trial: Trial) -> dict[str, int]:
    """How often partitions were assigned or taken away; each assignment restores or replays."""
    return {
        stage: sum(line["message"].startswith(("assigned ", "let go of ")) for line in trial.world.said(stage))
        for stage in STAGES
    }


def aborted(trial: Trial) -> dict[str, dict[str, float]]:
    """Transactions by outcome, by stage, as the workers count them."""
    return {s: by_label(scrape([trial.world.worker(s)]), "penstock_transactions", "outcome") for s in STAGES}


def judge_shares(trial: Trial, before: dict[str, dict[str, float]]) -> None:
    for stage, counts in aborted(trial).items():
        n = {outcome: number - before[stage].get(outcome, 0.0) for outcome, number in counts.items()}
        of, counted = round(sum(n.values())), n.get("aborted", 0.0)
        said = sum(aborting.WHY in line["message"] for line in trial.world.said(stage))
        trial.result.trials += said
        trial.result.notes[f"aborts of {stage}"] = f"{said} in {of}"
        if counted < said:
            trial.problem(f"{stage} counts {counted:.0f} aborts and tells of {said}")
        if of >= ENOUGH and abs(said / of - SHARE) > NEAR:
            trial.problem(f"{said} of {of} transactions of {stage} were aborted, a third was to be")
    if not trial.result.trials:
        trial.problem("nothing was aborted")
