"""Snapshots that are torn, altered, gone, ahead of the commit, of another topic, plan or kernel, each met by a worker
that starts anew; and a log of which the begin was deleted.

The workers stand still while their snapshots are harmed, and are killed then. The state in a foreign snapshot is that
of another partition: a worker that took it would count wrong, windows or, in the monitor, labels that met a prediction.
"""

import random
import re
import signal
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient
from penstock_monitor.join import JOIN_VERSION

from penstock.records import Partition, State
from penstock.recovery import MEND
from penstock.snapshots.files import KEPT, Facts, SnapshotFiles
from penstock.windows.layout import KERNEL_VERSION
from tests import hasty
from tests.chaos.harness import OUTPUT, PATIENCE_S, Lab, Result, Trial
from tests.chaos.records import Log, Record
from tests.chaos.scenarios.crash import COUNTS_S, counted_once
from tests.integration.pipeline_world import World, until
from tests.integration.test_kill import profiled

NAME = "snapshots"
HOLDS = (
    "equal windows, and profile counts equal to one pass, from an older snapshot or the log, and why; where neither is "
    "left, a refusal that says what to do"
)
MONITOR = "monitor"
READS = {"features.aircraft": "events", "features.airport": "by.airport", MONITOR: "outcomes"}
"""The stages with state: windows, or what waits in the label join; and of which topic that they read."""
INTERVAL_S = 0.3
TURNS = 3
AT_ONCE = {"features.aircraft": (3, 3, 1), "features.airport": (3, 3, 1), MONITOR: (4, 0, 3)}
"""Harms to a stage in each turn, each to another of its partitions; flights has three airports, and no more of them
with rows."""
WARM_ROWS = 500
AHEAD = 1000
"""Offsets by which a snapshot is newer than the commit, at most."""
BROKEN = "its checksum is wrong: it is torn or was altered", "it is no snapshot of this form"
FOREIGN = {
    "newer than the commit": "which is not committed",
    "of another topic": "it is of another topic of the name",
    "of another plan": "it is of another definition of the state",
    "of another kernel": "it is of another definition of the state",
}
VERSIONS = {f"kernel {KERNEL_VERSION}": f"kernel {KERNEL_VERSION + 1}"}
VERSIONS |= {f"label join {JOIN_VERSION}": f"label join {JOIN_VERSION + 1}"}
"""Of what computes a stage's state, and what the next one says."""
HARMS = ("torn", "altered", "missing", *FOREIGN)
BEGUN = re.compile(r"assigned (\S+) from (\d+), live from \d+")
WHOLE_LOG = 0


@dataclass(slots=True)
class Held:
    """The snapshots of one partition, newest first; ``start``: where a worker has to begin; ``told``: what it has to
    say, each the parts of one line, of a line for each harm."""

    partition: Partition
    paths: list[Path]
    facts: list[Facts]
    state: State
    start: int = WHOLE_LOG
    told: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)


def run(lab: Lab, rounds: int, result: Result) -> None:
    draw = lab.random(NAME)
    with lab.trial(result, stages=[*OUTPUT, MONITOR], command=hasty.command, snapshot_interval_s=INTERVAL_S) as trial:
        for stage in READS:
            until(f"{stage} to be at work", lambda: sum(trial.world.committed(stage).values()) > WARM_ROWS)  # noqa: B023
        for _ in range(rounds):
            orders = {stage: iter(draw.sample(HARMS, len(HARMS))) for stage in READS}
            for turn in zip(*AT_ONCE.values(), strict=True):
                harm(
                    trial, draw, {stage: list(islice(orders[stage], n)) for stage, n in zip(AT_ONCE, turn, strict=True)}
                )
        for _ in range(rounds):
            log_begins_at_the_newest(trial)
            for stage in READS:
                log_begins_too_late(trial, draw, stage)
        trial.settle()
        result.tell("counting what the monitor made of it")
        try:
            until("profiles", lambda: counted_once(trial.world, trial.log), COUNTS_S, pause=0.5)
        except AssertionError:
            trial.problem(f"the profiles of the monitor are not those of one pass: {profiled(trial.world)}")


def harm(trial: Trial, draw: random.Random, harms: dict[str, list[str]]) -> None:
    """Each of ``harms`` to another partition of its stage; what is left over begins at its newest."""
    harms = {stage: named for stage, named in harms.items() if named}
    trial.result.tell("harming " + "; ".join(f"{stage}: {', '.join(named)}" for stage, named in harms.items()))
    with standing(trial, harms) as held:
        for stage, partitions in held.items():
            committed = trial.world.committed(stage)
            others = next(of for name, of in held.items() if name != stage)
            for at, what in zip(draw.sample(partitions, len(harms[stage])), harms[stage], strict=True):
                all_of_it = what == "missing" or draw.random() < 0.5
                if what in FOREIGN:
                    neighbour = next(other for other in partitions if other is not at)
                    ahead = committed[at.partition] + draw.randint(1, AHEAD)
                    facts = foreign(what, at.facts[0], ahead, others[0].facts[0].topic)
                    replace(trial.world, stage, at, facts, neighbour.state, all_of_it=all_of_it)
                    at.told.append((f"{at.partition}: a snapshot is not used", (FOREIGN[what],)))
                else:
                    spoil(draw, what, at, at.paths if all_of_it else at.paths[:1])
                trial.result.notes[what] = trial.result.notes.get(what, 0) + 1
                trial.result.trials += 1


def foreign(what: str, facts: Facts, ahead: int, topic: str) -> Facts:
    changed: dict[str, object] = {
        "newer than the commit": {"offset": ahead},
        "of another topic": {"topic": topic},
        "of another plan": {"state": facts.state[:-8] + "0" * 8},
        "of another kernel": {"state": of_next_version(facts.state)},
    }[what]
    found = facts.model_copy(update=changed)
    assert found != facts
    return found


def of_next_version(state: str) -> str:
    for version, after in VERSIONS.items():
        state = state.replace(version, after)
    return state


def replace(world: World, stage: str, at: Held, facts: Facts, state: State, *, all_of_it: bool) -> None:
    """The foreign one is the newest; before it there is the newest of the partition's own, or nothing."""
    at.start = WHOLE_LOG if all_of_it else at.facts[0].offset
    for path in at.paths if all_of_it else ():
        path.unlink()
    files(world, stage).write(at.partition, facts, state)


def spoil(draw: random.Random, what: str, at: Held, paths: list[Path]) -> None:
    for path in paths:
        content = bytearray(path.read_bytes())
        if what == "missing":
            path.unlink()
            continue
        if what == "torn":
            del content[draw.randrange(len(content)) :]
        else:
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        path.write_bytes(content)
        at.told.append((f"snapshot {path} is not used", BROKEN))
    at.start = at.facts[1].offset if len(paths) < len(at.paths) else WHOLE_LOG


def log_begins_at_the_newest(trial: Trial) -> None:
    """It reaches back to the newest snapshots and no further: that is enough."""
    trial.result.tell("the log begins at the newest snapshots")
    with standing(trial, READS) as held:
        delete(trial, {at.partition: at.facts[0].offset for of in held.values() for at in of})
        trial.result.trials += len(held)


def log_begins_too_late(trial: Trial, draw: random.Random, stage: str) -> None:
    """One partition's log begins between its newest snapshot, which is torn, and the older one: the worker says what to
    do, and goes on once the snapshot is back."""
    trial.result.tell(f"the log begins too late for {stage}")
    world = trial.world
    with standing(trial, [stage]) as held:
        at = draw.choice([at for at in held[stage] if at.facts[0].offset > at.facts[1].offset + 1])
        low, whole = at.facts[1].offset + 1, at.paths[0].read_bytes()
        delete(trial, {at.partition: low})
        spoil(draw, "torn", at, at.paths[:1])
        at.told.append((f"{at.partition}: a snapshot is not used", (f"the log begins at {low}",)))
        at.told.append((f"{at.partition}: the log begins at offset {low}", (MEND,)))
        refused, said = f"{stage}.0 ended with exit code 1;", len(world.heard)
        world.signal(stage, signal.SIGKILL)
        until(f"{stage} to refuse", lambda: any(line.startswith(refused) for line in world.heard[said:]), PATIENCE_S)
        aside = at.paths[0].with_name(".put-back")
        aside.write_bytes(whole)
        aside.rename(at.paths[0])
        at.start = at.facts[0].offset
        trial.result.trials += 1


@contextmanager
def standing(trial: Trial, stages: Collection[str]) -> Iterator[dict[str, list[Held]]]:
    """Inside the block the workers stand still, with whole snapshots of every partition that has rows. At its end they
    are killed, if they were not in it, and what their next selves do and say is judged."""
    world = trial.world
    for stage in stages:
        whole(world, stage)
    held: dict[str, list[Held]] = {}
    lines: dict[str, int] = {}
    for stage in stages:
        held[stage] = stand(world, stage)
        lines[stage] = len(world.said(stage))
        world.worker(stage).restarts.clear()  # it is not the supervisor's to give up a worker that we kill
    pids = {stage: world.worker(stage).pid for stage in stages}
    yield held
    for stage in stages:
        if world.worker(stage).pid == pids[stage]:
            world.signal(stage, signal.SIGKILL)
    for stage in stages:
        world.wait_restarted(stage, 1)
        judge(trial, stage, held[stage], lines[stage])
        at_work_again(trial, stage)


def at_work_again(trial: Trial, stage: str) -> None:
    if stage in OUTPUT:
        trial.new_output(OUTPUT[stage], time.time())
        return
    before = trial.world.committed(stage)
    until(f"{stage} to be at work", lambda: trial.world.committed(stage) != before, PATIENCE_S, 0.1)


def judge(trial: Trial, stage: str, held: Iterable[Held], lines: int) -> None:
    said = [line["message"] for line in trial.world.said(stage)[lines:]]
    begun = {found[1]: int(found[2]) for found in map(BEGUN.match, said) if found}
    for at in held:
        start = begun.get(str(at.partition))
        if start != at.start:
            trial.problem(f"{stage} began {at.partition} at {start} and not at {at.start}; it had to say {at.told}")
        for what, whys in at.told:
            if not any(line.startswith(what) and any(why in line for why in whys) for line in said):
                trial.problem(f"{stage} did not say that {what}: {' or '.join(whys)}")


def files(world: World, stage: str) -> SnapshotFiles:
    return SnapshotFiles(str(world.settings.state_dir / "snapshots"), world.plan.group(stage))


def paths(world: World, stage: str, number: int) -> list[Path]:
    """Newest first."""
    folder = world.settings.state_dir / "snapshots" / world.plan.group(stage) / world.topic(READS[stage]) / str(number)
    return sorted(folder.glob("*.snapshot"), reverse=True)


def moving(world: World, stage: str) -> list[int]:
    """The partitions that have rows."""
    topic = world.topic(READS[stage])
    return [number for (name, number), offset in world.committed(stage).items() if name == topic and offset]


def whole(world: World, stage: str) -> None:
    """Returns when each of them has as many snapshots as are kept, all of them written from now on."""
    began, numbers = time.time(), moving(world, stage)

    def written() -> bool:
        world.supervisor.check()
        with suppress(FileNotFoundError):  # a newer one took its place just now
            times = [[p.stat().st_mtime for p in paths(world, stage, n)] for n in numbers]
            return all(len(of) == KEPT and min(of) > began for of in times)
        return False

    until(f"snapshots of {stage}", written, PATIENCE_S)


def look(world: World, stage: str, number: int) -> Held:
    partition, found = Partition(world.topic(READS[stage]), number), paths(world, stage, number)
    read = list(files(world, stage).read(partition))
    assert len(read) == len(found) == KEPT, f"{stage} has {len(read)} whole snapshots of {partition} in {found}"
    facts = [each for each, _ in read]
    return Held(partition, found, facts, read[0][1], start=facts[0].offset)


def stand(world: World, stage: str) -> list[Held]:
    """Freezes it where all of its snapshots are committed: one may be a moment ahead, and would not be used."""
    while True:
        freeze(world, stage)
        committed = world.committed(stage)
        held = [look(world, stage, number) for number in moving(world, stage)]
        if all(at.facts[0].offset <= committed[at.partition] for at in held):
            return held
        world.signal(stage, signal.SIGCONT)
        time.sleep(INTERVAL_S)


def freeze(world: World, stage: str) -> None:
    """A signal is heeded by one thread after the other, and what was sent before is still done by the broker."""
    world.signal(stage, signal.SIGSTOP)
    tasks = Path(f"/proc/{world.worker(stage).pid}/task")

    def stopped() -> bool:
        return all(path.read_text().rpartition(")")[2].split()[0] == "T" for path in tasks.glob("*/stat"))

    until(f"{stage} to stand still", stopped)
    time.sleep(0.1)


class Kept:
    """A log with what was deleted from it since some of its topics were read."""

    def __init__(self, log: Log, topics: Iterable[str]) -> None:
        self._log = log
        self._before: dict[str, list[Record]] = {topic: list(log.read(topic)) for topic in topics}

    def read(self, topic: str) -> Iterator[Record]:
        """In the order of each partition."""
        ends: dict[int, int] = {}
        for record in self._before.get(topic, ()):
            ends[record.partition] = record.offset
            yield record
        for record in self._log.read(topic):
            if record.offset > ends.get(record.partition, -1):
                yield record

    def unstable(self, topics: Collection[str]) -> list[str]:
        return self._log.unstable(topics)

    def count(self, topic: str) -> int:
        return len(self._before[topic])


def delete(trial: Trial, upto: dict[Partition, int]) -> None:
    """The verifiers are left what they will want; the one that reads along is let pass before."""
    trial.log = kept = Kept(trial.log, [trial.world.topic(suffix) for suffix in READS.values()])
    for suffix in READS.values():
        count = kept.count(trial.world.topic(suffix))
        until(f"the watcher to read {suffix}", lambda: trial.watcher.watch.distinct(suffix) >= count, PATIENCE_S)  # noqa: B023
    admin = AdminClient({"bootstrap.servers": trial.world.bootstrap})
    asked = [TopicPartition(partition.topic, partition.number, offset) for partition, offset in upto.items()]
    for answer in admin.delete_records(asked).values():
        answer.result(30)
