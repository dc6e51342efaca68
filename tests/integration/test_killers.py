"""Rows that kill their worker, on real Kafka with real processes that die of them: each costs itself alone, wherever it
is met and whoever has its partition; and kills from outside cost nothing.
"""

import json
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from confluent_kafka import Message, Producer

from penstock.journal.stepping import DEATHS, KILLED
from penstock.local.forks import Child, Forks
from penstock.local.resolve import BrokerHandle
from penstock.local.supervisor import OWN
from penstock.plan import Plan
from tests.conftest import CommittedReader, TopicFactory
from tests.integration.conftest import VERSION, Feed
from tests.integration.pipeline_world import ROOT, World, until
from tests.small_loop import DEAD, DROPPED, SOURCE, TARGET

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(600)]

SEGFAULT = 128 + signal.SIGSEGV
PARTITIONS = 2
COST = 2 + DEATHS
"""Deaths by which a row is found: two in a batch, two alone."""


@pytest.fixture(scope="module")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    """Fifty workers die here: each is a fork, as under a supervisor, and not another start of Python."""
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    found = Forks(tmp_path_factory.mktemp("forks") / "server.log", environ, lambda: None)
    yield found
    found.close()


class Slot:
    """One slot of a worker, started again whenever it has died, and how often it has, by the code that shells give."""

    def __init__(self, forks: Forks, log: Path, command: list[str], **environ: str) -> None:
        self.log, self._forks, self._command = log, forks, command
        self.environ, self.deaths = environ, Counter[int]()
        self._process: Child | None = None

    def tend(self) -> None:
        if self._process is not None and (code := self._process.poll()) is not None:
            self.deaths[code] += 1
            self._process = None
        if self._process is None:
            keep = {k: v for k, v in os.environ.items() if k not in OWN and not k.startswith("PENSTOCK_")}
            command = [sys.executable, "-m", "tests.dying", *self._command]
            self._process = self._forks.start(command, self.log, {**keep, **self.environ})

    def kill(self) -> None:
        if self._process is not None and self._process.poll() is None:
            os.kill(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def stop(self) -> None:
        """SIGTERM, and no start after it."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGTERM)
        assert self._process.wait(30) == 0, self.log.read_text()[-3000:]
        self._process = None

    def said(self, what: str) -> list[str]:
        if not self.log.exists():
            return []
        lines = [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]
        return [line["message"] for line in lines if what in line["message"]]


class Small:
    """The small loop on topics of its own: every row that is sent goes out as it came, or is a dead letter."""

    def __init__(
        self, broker: BrokerHandle, make: TopicFactory, read: CommittedReader, folder: Path, forks: Forks
    ) -> None:
        self.topics = {name: make(name, PARTITIONS) for name in (SOURCE, TARGET, DEAD, DROPPED)}
        self.folder, self._bootstrap, self._read, self._forks = folder, broker.bootstrap, read, forks
        self._producer = Producer({"bootstrap.servers": broker.bootstrap, "linger.ms": 0})
        self.sent: list[int] = []
        self.slots: list[Slot] = []

    def slot(self, **of: object) -> Slot:
        """One more, not yet started. ``of``: what it dies of, as ``DYING`` says it."""
        number = len(self.slots)
        found = Slot(
            self._forks,
            self.folder / f"{number}.log",
            ["small", str(self.folder), json.dumps(self.topics)],
            KAFKA_BOOTSTRAP_SERVERS=self._bootstrap,
            PENSTOCK_SLOT=str(number),
            PENSTOCK_SESSION_TIMEOUT_MS="4000",
            DYING=json.dumps(of),
        )
        self.slots.append(found)
        return found

    def send(self, values: range, partition: int = 0) -> None:
        for value in values:
            self._producer.produce(self.topics[SOURCE], b"%d" % value, partition=partition)
        assert self._producer.flush(30) == 0
        self.sent += values

    def rows(self, name: str) -> list[Message]:
        return self._read(self.topics[name], settled=False)

    def finish(self, *slots: Slot) -> None:
        """Tends ``slots`` until every row has its fate, and holds that it has one only."""

        def done() -> bool:
            for slot in slots:
                slot.tend()
            return len(self.rows(TARGET)) + len(self.rows(DEAD)) >= len(self.sent)

        until(f"{len(self.sent)} fates (see the logs in {self.folder})", done, 120, pause=0.2)
        fates = Counter(int(m.value() or b"") for name in (TARGET, DEAD) for m in self.rows(name))
        assert fates == Counter(self.sent)
        for message in self.rows(DEAD):
            assert dict(message.headers() or [])["penstock.reason"] == b"killed the worker"

    def dead(self) -> list[int]:
        return sorted(int(m.value() or b"") for m in self.rows(DEAD))

    def quarantined(self) -> list[int]:
        """Offsets, of all partitions."""
        found = self.folder.rglob("quarantine.json")
        return sorted(row for path in found for row in json.loads(path.read_text())["rows"])

    def written(self) -> dict[str, str]:
        """Which process wrote each note."""
        return {path.parent.name: json.loads(path.read_text())["worker"] for path in self.notes()}

    def idle_since(self, before: dict[str, str]) -> bool:
        """Another process than those has every partition, and stands where the group does."""
        notes = {path.parent.name: json.loads(path.read_text()) for path in self.notes()}
        return len(notes) == PARTITIONS and all(
            note["worker"] != before[number] and note["at"] == note["committed"] for number, note in notes.items()
        )

    def notes(self) -> list[Path]:
        return list(self.folder.rglob("journal.json"))


@pytest.fixture
def small(
    broker: BrokerHandle, topic_factory: TopicFactory, read_committed: CommittedReader, tmp_path: Path, forks: Forks
) -> Iterator[Small]:
    found = Small(broker, topic_factory, read_committed, tmp_path, forks)
    try:
        yield found
    finally:
        for slot in found.slots:
            slot.kill()


@pytest.mark.parametrize(("where", "how", "code"), [("decoding", "segfault", SEGFAULT), ("processing", "exit", 70)])
def test_a_live_row_that_kills_is_a_dead_letter_and_all_others_go_through(
    small: Small, where: str, how: str, code: int
) -> None:
    slot = small.slot(how=how, **{where: ["1013"]})
    small.send(range(1000, 1040))
    small.send(range(2000, 2040), partition=1)
    small.finish(slot)
    assert small.dead() == [1013]
    assert slot.deaths == {code: COST}
    small.send(range(3000, 3040))
    small.finish(slot)
    assert slot.deaths == {code: COST}
    slot.stop()
    assert small.notes() == []


def test_two_that_kill_in_one_batch_and_one_of_them_the_first_behind_the_committed_offset(small: Small) -> None:
    slot = small.slot(processing=["1040", "1044"])
    small.send(range(1000, 1040))
    small.finish(slot)
    assert slot.deaths == {}
    small.send(range(1040, 1080))
    small.finish(slot)
    assert small.dead() == [1040, 1044]
    assert slot.deaths == {SEGFAULT: COST + DEATHS}


def test_a_row_that_kills_in_a_replay_is_left_out_of_it(small: Small) -> None:
    former = small.slot()
    small.send(range(1000, 1040))
    small.finish(former)
    former.stop()
    slot = small.slot(processing=["1013"])
    slot.environ["PENSTOCK_SLOT"] = "0"
    small.send(range(1040, 1080))
    small.finish(slot)
    assert slot.deaths == {SEGFAULT: COST}
    assert small.dead() == []
    assert small.quarantined() == [13]
    assert slot.said("single-stepping 0..40") or slot.said("single-stepping 0..80")


def test_another_worker_that_takes_the_partition_over_knows_of_it(small: Small) -> None:
    """The first dies for good in the middle of the search; the second goes on with it; a third need not search."""
    first, second, third = (small.slot(processing=["1013"]) for _ in range(3))
    small.send(range(1000, 1040))
    small.send(range(2000, 2040), partition=1)

    def dead_twice() -> bool:
        first.tend()
        return first.deaths.total() >= 2

    until("two deaths", dead_twice, pause=0.1)
    first.kill()
    small.finish(second)
    assert small.dead() == [1013]
    assert 0 < second.deaths.total() <= COST
    second.stop()
    small.send(range(3000, 3040))
    small.finish(third)
    assert third.deaths == {}


def test_kills_while_idle_quarantine_nothing_and_the_next_rows_go_in_one_batch(small: Small) -> None:
    slot = small.slot()
    small.send(range(1000, 1040))
    small.finish(slot)
    for _ in range(4):
        before = small.written()
        slot.kill()
        slot.tend()
        until("it to have replayed all", lambda before=before: small.idle_since(before), pause=0.1)
    small.send(range(1040, 1080))
    small.finish(slot)
    assert slot.said("single-stepping") == []
    assert small.quarantined() == []


def test_kills_at_random_quarantine_nothing(small: Small) -> None:
    chance = random.Random(7)
    slot = small.slot()
    slot.tend()
    at, deadline = 1000, time.monotonic() + 12
    while time.monotonic() < deadline:
        for partition in range(PARTITIONS):
            small.send(range(at, at + 50), partition)
            at += 50
        time.sleep(chance.choice((0.05, 0.3, 1.0, 1.5)))
        slot.kill()
        slot.tend()
    small.finish(slot)
    assert slot.deaths[128 + signal.SIGKILL] >= 5
    assert small.dead() == []
    assert small.quarantined() == []


def test_a_stage_of_a_pipeline_that_dies_of_events_loses_them_alone(
    broker: BrokerHandle,
    flights_plan: Plan,
    flights_models: Path,
    feed: Feed,
    forks: Forks,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Merging and with windows, as ``penstock run`` starts it; by the verifier. Chaos' ``killers`` has others."""
    stage = "features.aircraft"
    monkeypatch.chdir(ROOT)  # workers import pipelines.flights from where they run
    others = [other.name for other in flights_plan.stages if other.name != stage]
    name = f"killers_{uuid4().hex[:8]}"
    with World(flights_plan, name, broker.bootstrap, tmp_path, flights_models, VERSION, stages=others) as world:
        events = feed.take(600)
        raw = [event for event in events if event.topic == "raw" and not event.broken]
        killers = [(raw[n].key or b"").decode() for n in (40, 200)]
        slot = Slot(
            forks,
            tmp_path / "killers.log",
            [stage, str(world.folder / "plan.json")],
            KAFKA_BOOTSTRAP_SERVERS=world.bootstrap,
            PENSTOCK_MODELS_URL=world.settings.models_url,
            PENSTOCK_STATE_DIR=str(world.settings.state_dir),
            DYING=json.dumps({"processing": killers}),
        )
        try:
            world.send(events)

            def finished() -> bool:
                slot.tend()
                return world._finished()

            until(f"{len(world.events)} fates", finished, 240, pause=0.1)
            world.check()
            letters = [dict(m.headers() or []) for m in world.records("dead")]
            assert Counter(h["penstock.reason"] for h in letters)[KILLED.encode()] == len(killers)
            assert set(slot.deaths) == {SEGFAULT}
            slot.stop()
        finally:
            slot.kill()
