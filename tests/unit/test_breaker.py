"""A worker whose release is broken stops before it drains its topic into the dead letters, and goes on by itself."""

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from penstock.breaker import LONGEST_PAUSE_S, TRIED_ROWS, Breaker
from penstock.codec.decoded import BadRow, Decoded
from penstock.loop import Loop
from penstock.records import Batch, Output, Partition, Reason, Result
from penstock.transport.memory import MemoryBroker, MemoryTransport
from penstock.transport.protocol import Position, Refusal, TransactionAborted
from tests.small_loop import DEAD, DROPPED, SOURCE, TARGET, Passing, decode, small_loop

TOPICS = {name: name for name in (SOURCE, TARGET, DEAD, DROPPED)}
WINDOW, BATCH = 500, 200
HOUR_MS = 3_600_000


class Release(Passing):
    """Fails on the rows that ``breaks`` names by their event time."""

    def __init__(self, breaks: Callable[[int], bool] = lambda at: False) -> None:
        super().__init__(TARGET)
        self.breaks = breaks

    def process(self, batch: Batch) -> Result:
        rejects = {
            row: Reason("stage failed", "KeyError")
            for row, at in enumerate(batch.event_time.tolist())
            if self.breaks(at)
        }
        rows = np.array([row for row in range(len(batch)) if row not in rejects], np.int32)
        good = batch.take(rows)
        return Result([Output(TARGET, good.keys, good.rows, rows)], rejects)


class Deployed:
    """A release at work on ``rows`` rows in two partitions, on a clock of its own."""

    def __init__(self, stage: Release, rows: int, limit: float = 0.9, *, merges: bool = False) -> None:
        self.stage, self.now = stage, 1_000_000.0
        self.broker = MemoryBroker()
        for topic in TOPICS:
            self.broker.create(topic, 2)
        for at in range(rows):
            self.broker.append(SOURCE, None, b"%d" % at, partition=at % 2)
        self.loop = self.start(limit, merges=merges)

    def start(self, limit: float = 0.9, *, merges: bool = False) -> Loop:
        self.transport = MemoryTransport(self.broker, "g")
        breaker = Breaker(limit, WINDOW)
        loop = small_loop(
            self.transport,
            self.stage,
            TOPICS,
            merges=merges,
            max_rows=BATCH,
            lateness_ms=HOUR_MS,
            breaker=breaker,
            clock=lambda: self.now,
        )
        self.transport.subscribe([SOURCE], loop)
        return loop

    def run(self, seconds: float) -> None:
        for _ in range(round(seconds * 10)):
            self.now += 0.1
            self.loop.step()

    def run_until_stopped(self) -> str:
        """Why it stopped. A second later, so that what it does then shows."""
        for _ in range(100):
            self.run(0.1)
            if "dead letters" in self.waiting_for:
                self.run(1)
                return self.waiting_for["dead letters"]
        raise AssertionError("it does not stop")

    def count(self, topic: str) -> int:
        return len(self.broker.rows(topic))

    @property
    def waiting_for(self) -> dict[str, str]:
        return self.loop._observer._health.waiting_for

    def committed(self) -> int:
        at = self.transport.committed([Partition(SOURCE, n) for n in (0, 1)])
        return sum(position.offset for position in at.values() if position is not None)


@pytest.fixture(autouse=True)
def _no_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)


@pytest.mark.parametrize("merges", [False, True])
def test_a_broken_release_stops_and_says_so_and_nothing_is_lost_when_it_is_rolled_back(merges: bool) -> None:
    rows = 10_000
    world = Deployed(Release(lambda at: at >= 3000), rows, merges=merges)
    why = world.run_until_stopped()
    dead = world.count(DEAD)
    assert WINDOW <= dead + WINDOW // 10 <= WINDOW + BATCH + WINDOW // 10
    assert world.committed() == world.count(TARGET) + dead < rows
    assert why.startswith(("9", "100 %"))
    assert "rows became dead letters, most of them 'stage failed'" in why
    assert "PENSTOCK_DEAD_LETTER_LIMIT" in why
    assert world.loop.standstill.paused == world.transport._paused == {Partition(SOURCE, 0), Partition(SOURCE, 1)}

    world.transport.close()
    world.stage.breaks = lambda at: False
    world.loop = world.start(merges=merges)
    world.run(10)
    assert world.waiting_for == {}
    assert world.count(DEAD) == dead
    assert world.count(TARGET) == rows - dead


@pytest.mark.parametrize("merges", [False, True])
def test_a_reader_that_can_decode_nothing_stops_and_tries_no_more_than_a_few_rows(merges: bool) -> None:
    world = Deployed(Release(), 10_000, merges=merges)
    good = world.loop.intake._readers[SOURCE]
    nothing = Decoded(decode(pa.array([], pa.binary())).rows, np.empty(0, np.int32), {})

    def blind(values: pa.BinaryArray) -> Decoded:
        return replace(nothing, bad=dict.fromkeys(range(len(values)), BadRow("unresolvable schema", "no such field")))

    world.loop.intake._readers[SOURCE] = replace(good, decode=blind)
    assert "'unresolvable schema'" in world.run_until_stopped()
    first = world.count(DEAD)
    assert WINDOW <= first <= WINDOW + BATCH
    world.run(60)
    assert world.count(DEAD) - first == 3 * TRIED_ROWS  # after 5, 15 and 35 s
    assert world.committed() == world.count(DEAD)

    world.loop.intake._readers[SOURCE] = good
    world.run(90)
    assert world.waiting_for == {}
    assert world.count(TARGET) == 10_000 - first - 3 * TRIED_ROWS


def test_it_tries_a_few_rows_at_pauses_that_double_and_goes_on_by_itself() -> None:
    rows = 20_000
    world = Deployed(Release(lambda at: True), rows)
    world.run_until_stopped()
    first = world.count(DEAD)
    world.run(3600)
    tries = (world.count(DEAD) - first) / TRIED_ROWS
    assert tries == int(tries)
    assert 6 + 3600 // LONGEST_PAUSE_S - 2 <= tries <= 6 + 3600 // LONGEST_PAUSE_S
    assert "dead letters" in world.waiting_for

    dead = world.count(DEAD)
    world.stage.breaks = lambda at: False
    world.run(LONGEST_PAUSE_S + 30)
    assert world.waiting_for == {}
    assert (world.count(DEAD), world.count(TARGET)) == (dead, rows - dead)
    assert world.transport._paused == set()


def test_half_of_the_input_bad_or_a_limit_of_none_lets_everything_through() -> None:
    flood = Deployed(Release(lambda at: at // 50 % 2 == 0), 10_000)
    flood.run(20)
    assert (flood.count(DEAD), flood.count(TARGET)) == (5000, 5000)
    for limit in (0.0, 1.0):
        drained = Deployed(Release(lambda at: True), 10_000, limit)
        drained.run(20)
        assert drained.count(DEAD) == 10_000
        assert drained.waiting_for == {}


def test_rows_that_the_broker_refuses_count_too() -> None:
    world = Deployed(Release(), 10_000)
    commit = world.transport.commit
    sent = world.broker.rows

    def refusing(positions: dict[Partition, Position]) -> None:
        refused = [
            Refusal(number, row, "too large", sure=True)
            for number, (topic, rows) in enumerate((send[0], len(send[2])) for send in world.transport._sends)
            for row in range(rows)
            if topic == TARGET
        ]
        if refused:
            raise TransactionAborted("refused", refused)
        commit(positions)

    world.transport.commit = refusing  # type: ignore[method-assign,assignment]
    assert "'refused by the broker'" in world.run_until_stopped()
    assert WINDOW <= len(sent(DEAD)) <= WINDOW + 2 * BATCH


def test_a_try_whose_partition_went_to_another_is_forgotten_and_made_again() -> None:
    breaker = Breaker(0.9, 10)
    breaker.count(10, {"stage failed": 10}, 0.0)
    assert breaker.most_rows(1.0) == 0
    breaker.settled(1.0)
    assert breaker.most_rows(5.0) == TRIED_ROWS
    breaker.count(50, {"stage failed": 1}, 5.0)
    assert breaker.most_rows(5.0) == 0
    assert breaker.why is not None
    breaker.settled(5.1)
    assert breaker.why is None
    assert breaker.most_rows(5.1) > 10**9


def test_what_failed_long_ago_is_not_held_against_the_newest_rows() -> None:
    breaker = Breaker(0.9, 100)
    breaker.count(99, {"out of range": 99}, 0.0)
    breaker.count(16_384, {}, 0.0)
    assert breaker.why is None
    breaker.count(50, {"out of range": 50}, 0.0)
    assert breaker.why is None
    breaker.count(60, {"out of range": 40, "stage failed": 20}, 0.0)
    assert breaker.why is not None
    assert breaker.why.startswith("100 % of the last 110 rows became dead letters, most of them 'out of range'")
