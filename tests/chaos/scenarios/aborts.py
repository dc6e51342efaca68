"""One transaction in three is aborted, in every stage, under a steady stream and under bursts: what was aborted is sent
again from memory."""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import islice
from statistics import median

from penstock.local.scrape import by_label, scrape
from tests import aborting
from tests.chaos.harness import OUTPUT, RATE, Lab, Result, Stream, Trial
from tests.chaos.scenarios.crash import profiles_once

NAME = "aborts"
HOLDS = "the same rows come once, in profiles too; no worker starts anew, no partition is restored or replayed"
STAGES = (*OUTPUT, "monitor")
SHARE = 1 / 3
DEVIATIONS, FEW = 4.0, 5
"""How far from that a stage may be, in standard deviations and in transactions, or the harness did not do what it
says."""
STEADY_S = 8.0
BURST = 1500
BURSTS = 2
"""With and without aborts, in turn."""


def run(lab: Lab, rounds: int, result: Result) -> None:
    with lab.trial(result, rate=0, stages=list(STAGES), command=aborting.command(lab.seed)) as trial:
        feed = lab.feed()
        trial.burst(list(islice(feed, 300)))  # warm
        assigned, counts = taken(trial), Counter[tuple[str, str]]()
        speed: dict[bool, list[float]] = {False: [], True: []}
        for number in range(rounds):
            result.tell(f"round {number + 1}: a steady stream with aborts")
            stream = Stream(trial.world, feed, RATE)
            with aborts(trial, counts):
                stream.start()
                time.sleep(STEADY_S)
                stream.stop()
                trial.burst([])
            for _ in range(BURSTS):
                for harmed in (False, True):
                    result.tell(f"round {number + 1}: a burst {'with' if harmed else 'without'} aborts")
                    with aborts(trial, counts) if harmed else nullcontext():
                        speed[harmed].append(BURST / trial.burst(list(islice(feed, BURST))))
        judge_shares(trial, counts)
        trial.settle()
        profiles_once(trial)
        if trial.world.supervisor.restarted:
            trial.problem(f"a worker was started again: {trial.world.heard}")
        if (now := taken(trial)) != assigned:
            trial.problem(f"partitions were assigned or let go again: {assigned} before the aborts, {now} after them")
        result.notes["messages a second without aborts"] = round(median(speed[False]))
        result.notes["with aborts"] = f"{median(speed[True]) / median(speed[False]) - 1:+.0%}"


@contextmanager
def aborts(trial: Trial, counts: Counter[tuple[str, str]]) -> Iterator[None]:
    """A share of the transactions that begin meanwhile; all of them, by stage and outcome, are added to ``counts``."""
    said = trial.world.folder / "aborting"
    aside = said.with_suffix(".aside")
    before = transactions(trial)
    aside.write_text(str(SHARE))
    aside.rename(said)
    yield
    said.unlink()
    counts.update(transactions(trial) - before)


def taken(trial: Trial) -> dict[str, int]:
    """How often partitions were assigned or taken away; each assignment restores or replays."""
    return {
        stage: sum(line["message"].startswith(("assigned ", "let go of ")) for line in trial.world.said(stage))
        for stage in STAGES
    }


def transactions(trial: Trial) -> Counter[tuple[str, str]]:
    """So far, as the workers count them."""
    found = {
        stage: by_label(scrape([trial.world.worker(stage)]), "penstock_transactions", "outcome") for stage in STAGES
    }
    return Counter({(stage, outcome): round(n) for stage, counts in found.items() for outcome, n in counts.items()})


def judge_shares(trial: Trial, counts: Counter[tuple[str, str]]) -> None:
    for stage in STAGES:
        said = sum(aborting.WHY in line["message"] for line in trial.world.said(stage))
        of = counts[stage, "aborted"] + counts[stage, "committed"]
        trial.result.trials += said
        trial.result.notes[f"aborts of {stage}"] = f"{said} in {of}"
        if abs(said - SHARE * of) > max(FEW, DEVIATIONS * (of * SHARE * (1 - SHARE)) ** 0.5):
            trial.problem(f"{said} of {of} transactions of {stage} were aborted, a third was to be")
    if not trial.result.trials:
        trial.problem("nothing was aborted")
