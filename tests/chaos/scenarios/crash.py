"""Kill -9 of one worker after another, over a steady stream, the Feast writer and the Faust merge too."""

import random
import signal
import time
from collections import Counter

import pyarrow.parquet as pq

from tests.chaos.harness import OUTPUT, PATIENCE_S, Lab, Result, Trial, percentile
from tests.chaos.joined import joined
from tests.chaos.kafka_log import KafkaLog
from tests.chaos.records import Log
from tests.chaos.recovery import parts_of
from tests.integration.pipeline_world import World, until
from tests.integration.test_kill import by_window, merged, profiled

NAME = "crash"
HOLDS = "nothing lost, nothing doubled, Parquet rows once each, profile counts equal to one pass, back in 3 s (p95)"
KILLS = 10
SOON_S = 3.0
COUNTS_S = 60.0
BEHIND = ("monitor", "features.feast", "monitor.merge")
"""What looks on. It is not waited for, so some are killed while they still start."""
VIEWS = ("aircraft_delays", "airport_delays")


def run(lab: Lab, rounds: int, result: Result) -> None:
    draw = lab.random(NAME)
    with lab.trial(result) as trial:
        trial.flowing()
        for number, stage in enumerate(drawn(draw, KILLS * rounds), 1):
            result.tell(f"kill {number} of {KILLS * rounds}: {stage}")
            kill(trial, stage)
            time.sleep(draw.uniform(0.2, 1.0) * (1 if rounds == 1 else 4))
        trial.settle()
        look_behind(trial)
    result.notes[f"recoveries within {SOON_S:.0f} s"] = (
        f"{sum(took <= SOON_S for took in result.recoveries)} of {len(result.recoveries)}"
    )
    judge_recovery(result)


def judge_recovery(result: Result) -> None:
    p95 = percentile(result.recoveries, 0.95)
    if p95 is None or p95 > SOON_S:
        result.problems.append(f"the 95th percentile of recovery is {p95} s, and at most {SOON_S:g} s are good enough")


def drawn(draw: random.Random, kills: int) -> list[str]:
    """Every stage as often, in an order drawn anew each time: the supervisor gives up a worker that falls often."""
    found: list[str] = []
    while len(found) < kills:
        stages = [*OUTPUT, *BEHIND]
        draw.shuffle(stages)
        found += stages
    return found[:kills]


def kill(trial: Trial, stage: str) -> None:
    """Kills a stage's worker; one on the events' way is waited for until it works again."""
    world, result = trial.world, trial.result
    until(f"{stage} to run", lambda: world.worker(stage).running)
    killed = time.time()
    world.signal(stage, signal.SIGKILL)
    result.trials += 1
    if stage in OUTPUT:
        # what the dead had under way may still have been appended
        out = trial.new_output(OUTPUT[stage], killed + 0.05)
        result.recoveries.append(out - killed)
        for part, took in parts_of(world, world.worker(stage), killed, out).items():
            result.parts.setdefault(part, []).append(took)


def look_behind(trial: Trial) -> None:
    """What lies behind the topics: Feast's history holds each row once, the monitor's counts are those of one pass."""
    world = trial.world
    trial.result.tell("counting what lies behind the topics")
    history_once(trial)
    profiles_once(trial)
    try:
        until("windows", lambda: merged_once(world), COUNTS_S, pause=0.5)
    except AssertionError:
        trial.problem(f"the windows of the merge are not those of one pass: {merged(world)}")


def profiles_once(trial: Trial) -> None:
    """When every fate is there the monitor's counts are those of one pass, in the end."""
    try:
        until("profiles", lambda: counted_once(trial.world), COUNTS_S, pause=0.5)
    except AssertionError:
        trial.problem(f"the profiles of the monitor are not those of one pass: {profiled(trial.world)}")


def history_once(trial: Trial) -> None:
    world = trial.world
    until("the Feast writer to read all", lambda: world.behind("features.feast") == 0, PATIENCE_S, 0.2)
    world.ask_to_leave("features.feast")  # the rows of the last minute are in no file before
    for view in VIEWS:
        history = pq.read_table(world.folder / "feast/var/flights/offline" / view)
        written = Counter(history["_event_id"].to_pylist())
        sent = Counter(row["_event_id"] for row in world.rows(f"view.{view}"))
        if written != sent:
            lost, doubled = (sent - written).total(), (written - sent).total()
            trial.problem(f"Feast's history of {view}: {lost} rows lost, {doubled} doubled")


def counted_once(world: World, log: Log | None = None) -> bool:
    """``log``: where the outcomes are read that the broker may have no more."""
    assert world.plan.label is not None
    records = (log or KafkaLog(world.bootstrap)).read(world.topic("outcomes"))
    outcomes = ((record.partition, world.schemas.decode(record.value)) for record in records)
    return profiled(world) == {
        "departure_delay": len(world.records("features")),
        "_score": len(world.records("predictions")),
        "_outcome": joined(outcomes, world.plan.label.horizon_ms),
    }


def merged_once(world: World) -> bool:
    """The merge forgets windows that have been closed for long; all others it has, each with the counts of one pass."""
    held, whole = merged(world), by_window(world)
    oldest = min((start for *_, start in held), default=0)
    return bool(held) and held == {key: counts for key, counts in whole.items() if key[-1] >= oldest}
