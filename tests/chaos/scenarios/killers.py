"""Events of which a worker dies (a segfault, a process that eats memory until it is killed): in the live range, inside
a replay, and after their partition moved to another worker; and kills from outside while there is nothing to do.
"""

import json
import re
import signal
import sys
from collections import Counter
from functools import partial
from itertools import islice
from pathlib import Path

from penstock.local.supervisor import Worker, run_command
from pipelines.flights.broken import Breaker
from pipelines.flights.replay import Message, schema
from tests.chaos.harness import OUTPUT, PATIENCE_S, Lab, Result, Trial
from tests.chaos.scenarios.poison import plain
from tests.chaos.verify import KILLED
from tests.integration.pipeline_world import until

NAME = "killers"
HOLDS = "the guilty row alone is dead-lettered, undecoded; kills while idle quarantine nothing"
LIVE = {
    "ingest": ("decoding", "segfault"),
    "features.aircraft": ("processing", "memory"),
    "inference": ("decoding", "segfault"),
}
"""Which stages die of an event of theirs, where, and how."""
READS = {"features.aircraft": "events", "inference": "features"}
HOWS = ("memory", "segfault")
REPLAYS, MOVES = "features.airport", "features.aircraft"
IDLE_KILLS = 1
"""As many as make a stage take its rows one by one where it had any; the supervisor bears no more after those that a
row takes."""
RATE = 100
ENDED = re.compile(r"(.+) ended with exit code (\d+);")


class Doom:
    """Starts workers that die: ``of`` says of each stage's what ``tests/dying.py`` is to know. The machines of those
    whose names are in ``gone`` are away: something else runs in their place."""

    def __init__(self) -> None:
        self.of: dict[str, dict[str, object]] = {}
        self.gone: set[str] = set()

    def command(self, worker: Worker, plan_path: Path) -> list[str]:
        if worker.name in self.gone:
            return ["/bin/sleep", "3600"]
        if worker.stage not in self.of:
            return run_command(worker, plan_path)
        said = json.dumps(self.of[worker.stage])
        return [sys.executable, "-m", "tests.dying", worker.stage, str(plan_path), str(worker.slot), said]


def run(lab: Lab, rounds: int, result: Result) -> None:
    for number in range(1, rounds + 1):
        said = f"{number} of {rounds}"
        doom = Doom()
        names = {stage: f"2013-04-01.ZZ.{n}.JFK" for n, stage in enumerate([*LIVE, REPLAYS], 1)}
        doom.of = {stage: {where: [names[stage]], "how": how} for stage, (where, how) in LIVE.items()}
        # without snapshots a restart replays all
        options = {"command": doom.command, "snapshot_interval_s": 0.0}
        with lab.trial(result, rate=RATE, stages=list(OUTPUT), **options) as trial:
            trial.flowing()
            result.tell(f"events that kill, {said}")
            live(trial, names)
            result.tell(f"an event that kills in a replay, {said}")
            replayed(trial, doom, names[REPLAYS], HOWS[number % 2])
            result.tell(f"kills while idle, {said}")
            idle(trial)
        doom = Doom()
        doom.of = {MOVES: {"processing": [names[MOVES]], "how": HOWS[number % 2]}}
        others = [stage for stage in OUTPUT if stage != MOVES]
        with lab.trial(result, rate=RATE, stages=others, workers={MOVES: 2}, command=doom.command) as trial:
            trial.flowing()
            result.tell(f"an event that kills and whose partition moves, {said}")
            moved(trial, doom, names[MOVES])


def live(trial: Trial, names: dict[str, str]) -> None:
    """One event for each stage that dies, of an aircraft that has others; and one that nobody dies of yet, of an
    aircraft and an airport of its own: a row that is left out of a replay is in no window after it."""
    trial.world.send([event_of(trial, names[REPLAYS], tailnum="Z0001", origin="QQQ")])
    for stage in reversed(LIVE):  # the last stage's first, so that all of them search at once
        trial.world.send([event_of(trial, names[stage])])
        if stage in READS:
            until(f"{stage}'s event", partial(arrived, trial, READS[stage], "_event_id", names[stage]), PATIENCE_S, 0.1)
    trial.expected_dead = len(LIVE)
    until("the dead letters of those that kill", lambda: dead(trial) >= len(LIVE), PATIENCE_S, 0.1)
    trial.result.trials += len(LIVE)
    trial.flowing()
    judge(trial, {name: stage for stage, name in names.items() if stage in LIVE})
    for stage, (_, how) in LIVE.items():
        deaths(trial, stage, "of an event", how)


def replayed(trial: Trial, doom: Doom, name: str, how: str) -> None:
    world, before = trial.world, dead(trial)
    until(f"{name} to be predicted", partial(arrived, trial, "predictions", "prediction_id", name), PATIENCE_S, 0.2)
    doom.of[REPLAYS] = {"processing": [name], "how": how}
    world.signal(REPLAYS, signal.SIGKILL)
    until(f"{REPLAYS} to find its row", lambda: said(trial, REPLAYS, "it is quarantined"), PATIENCE_S, 0.1)
    trial.result.trials += 1
    trial.flowing()
    deaths(trial, REPLAYS, "in a replay", how)
    if dead(trial) != before:
        trial.problem(f"{name} had its fate before it killed in a replay, and is a dead letter now")


def idle(trial: Trial) -> None:
    """All of it is done, and workers are killed with nothing to do; then rows come again."""
    world, stages = trial.world, list(LIVE)
    trial.settle()
    aside, stepped = quarantined(trial), {stage: said(trial, stage, "single-stepping") for stage in OUTPUT}
    for _ in range(IDLE_KILLS):
        until("nothing to be left", lambda: all(world.behind(stage) == 0 for stage in stages), PATIENCE_S, 0.1)
        before = {stage: world.restarts(stage) for stage in stages}
        for stage in stages:
            world.signal(stage, signal.SIGKILL)
            trial.result.trials += 1
        for stage in stages:
            world.wait_restarted(stage, before[stage] + 1)
    trial.burst(list(islice(trial.feed, 200)))
    for stage in OUTPUT:
        if said(trial, stage, "single-stepping") != stepped[stage]:
            trial.problem(f"{stage} was killed while idle {IDLE_KILLS} times, and took its next rows one by one")
    if quarantined(trial) != aside or sum(map(len, aside.values())) != len(LIVE) + 1:
        trial.problem(f"quarantined are {quarantined(trial)}, and before the kills while idle {aside}")


def moved(trial: Trial, doom: Doom, name: str) -> None:
    """The first worker dies of it twice and is gone for good; the other goes on with the search, and when the first is
    back it need not search."""
    world = trial.world
    trial.world.send([event_of(trial, name)])
    trial.expected_dead = 1
    first, *_ = until("a death", lambda: [code for code in ends(world.heard) if code[0].startswith(MOVES)], PATIENCE_S)
    doom.gone.add(first[0])
    until("its dead letter", lambda: dead(trial) == 1, PATIENCE_S, 0.1)
    trial.result.trials += 1
    judge(trial, {name: MOVES})
    found = Counter(worker for worker, _ in ends(world.heard))
    if set(found) != {f"{MOVES}.0", f"{MOVES}.1"}:
        trial.problem(f"the partition was to move, but these died: {dict(found)}")
    trial.result.notes.setdefault("deaths of an event whose partition moves", []).append(found.total())
    doom.gone.clear()
    slot = int(first[0].rpartition(".")[2])
    back = world.worker(MOVES, slot)
    before = len(back.restarts)
    world.signal(MOVES, signal.SIGKILL, slot)

    def ready() -> bool:
        world.supervisor.check()
        if len(back.restarts) > before and back.running:
            back.look()
        return back.ready

    until(f"{first[0]} to be back", ready, PATIENCE_S, 0.1)
    trial.flowing()
    again = Counter(worker for worker, _ in ends(world.heard)) - found
    if again != {first[0]: 1}:
        trial.problem(f"the row was found, and these died after it: {dict(again)}")


def event_of(trial: Trial, name: str, **changes: object) -> Message:
    """An event like the newest departure, under another name."""
    newest = next(e for e in reversed(trial.world.events) if e.topic == "raw" and (e.value or b"")[:1] == b"\0")
    breaker = Breaker(schema("event"), trial.lab.plan.event.id)
    return Message("raw", name.encode(), breaker.avro({**plain(trial, newest), "flight_id": name, **changes}), 0)


def judge(trial: Trial, guilty: dict[str, str]) -> None:
    """The dead letters are of the ``guilty``, each by the stage that it killed."""
    found = {}
    for message in trial.world.records("dead"):
        headers = {name: (value or b"").decode() for name, value in message.headers() or []}
        row = trial.world.schemas.decode(message.value())
        name = row.get("_event_id") or row["flight_id"]
        found[name] = headers["__connect.errors.stage"], headers["penstock.reason"]
    trial.result.dead_as_expected += sum(found.get(name) == (stage, KILLED) for name, stage in guilty.items())
    if found != {name: (stage, KILLED) for name, stage in guilty.items()}:
        trial.problem(f"dead letters of {found}, where {guilty} killed")


def deaths(trial: Trial, stage: str, when: str, how: str) -> None:
    """Notes how often a stage died of what it dies of."""
    code = 128 + (signal.SIGSEGV if how == "segfault" else signal.SIGKILL)
    n = sum(ended == (f"{stage}.0", code) for ended in ends(trial.world.heard))
    if not n:
        trial.problem(f"{stage} did not die {when} with exit code {code}: {trial.world.heard}")
    trial.result.notes.setdefault(f"deaths {when} ({how})", []).append(n)


def ends(heard: list[str]) -> list[tuple[str, int]]:
    """Workers that ended, and their exit codes."""
    found = (ENDED.match(line) for line in heard)
    return [(match[1], int(match[2])) for match in found if match]


def dead(trial: Trial) -> int:
    trial.world.supervisor.check()
    return trial.watcher.watch.distinct("dead")


def arrived(trial: Trial, suffix: str, column: str, name: str) -> bool:
    """Whether a topic has a row of an event."""
    trial.world.supervisor.check()
    return any(row[column] == name for row in trial.world.rows(suffix))


def said(trial: Trial, stage: str, what: str) -> int:
    """How many lines of a worker's log say so."""
    return sum(what in line["message"] for line in trial.world.said(stage))


def quarantined(trial: Trial) -> dict[str, list[int]]:
    """By partition, the offsets that are set aside."""
    files = trial.world.folder.rglob("quarantine.json")
    return {str(file.parent.relative_to(trial.world.folder)): json.loads(file.read_text())["rows"] for file in files}
