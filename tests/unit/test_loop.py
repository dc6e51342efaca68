"""The loop on the broker in memory: how far workers of a re-keying stage come apart, and what is paused when."""

import time
from collections.abc import Iterable
from itertools import pairwise

import pytest

from penstock.loop import Loop
from penstock.records import Partition
from penstock.transport.memory import MemoryBroker, MemoryTransport
from penstock.transport.protocol import Polled, Position, Unavailable
from tests.small_loop import DEAD, DROPPED, SOURCE, TARGET, Passing, small_loop

LATENESS_MS = 1000
TOPICS = {name: name for name in (SOURCE, TARGET, DEAD, DROPPED)}


class Clock:
    """Seconds that pass because a test says so."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


class Spied(MemoryTransport):
    """Remembers what it was asked: each poll, and what was paused and resumed between them."""

    def __init__(self, broker: MemoryBroker, slot: str) -> None:
        super().__init__(broker, "g", slot)
        self.asked: list[tuple[str, list[int]]] = []
        self.deaf = False
        self.open: dict[Partition, int] = {}
        """Rows that are in the log and not committed yet."""

    def ends(self, partitions: Iterable[Partition]) -> dict[Partition, int]:
        return {partition: end + self.open.get(partition, 0) for partition, end in super().ends(partitions).items()}

    def committed(self, partitions: Iterable[Partition]) -> dict[Partition, Position | None]:
        if self.deaf:
            raise Unavailable("Kafka was asked for what the group has committed: timed out")
        return super().committed(partitions)

    def poll(self, max_rows: int, wait_s: float) -> Polled:
        polled = super().poll(max_rows, wait_s)
        self.asked.append(("poll", sorted({n for records in polled.records for n in records.partition.tolist()})))
        return polled

    def pause(self, partitions: Iterable[Partition]) -> None:
        gone = list(partitions)
        self.asked.append(("pause", [p.number for p in gone]))
        super().pause(gone)

    def resume(self, partitions: Iterable[Partition]) -> None:
        back = list(partitions)
        self.asked.append(("resume", [p.number for p in back]))
        super().resume(back)


class Workers:
    """Workers of one merging stage on one topic, turn by turn on one clock."""

    def __init__(self, partitions: int, buffer_rows: int = 10_000, max_rows: int = 10) -> None:
        self.clock = Clock()
        self.broker = MemoryBroker()
        for topic in TOPICS:
            self.broker.create(topic, partitions)
        self._sizes = {"buffer_rows": buffer_rows, "max_rows": max_rows}
        self.loops: list[Loop] = []

    def join(self) -> tuple[Loop, Passing, Spied]:
        """One more worker, after the others have let go of its partitions."""
        transport, stage = Spied(self.broker, str(len(self.loops))), Passing(TARGET)
        loop = small_loop(
            transport, stage, TOPICS, merges=True, lateness_ms=LATENESS_MS, clock=self.clock, **self._sizes
        )
        transport.subscribe([SOURCE], loop)
        self.loops.append(loop)
        for other in self.loops:
            self.turn(other)
        return loop, stage, transport

    def append(self, partition: int, times: Iterable[int]) -> None:
        for at in times:
            self.broker.append(SOURCE, None, b"%d" % at, partition=partition)

    def turn(self, *loops: Loop, times: int = 1) -> None:
        """A third of a second and a step, ``times`` over."""
        for _ in range(times):
            self.clock.now += 0.35
            for loop in loops:
                loop.step()


def owned(loop: Loop) -> list[int]:
    return sorted(partition.number for partition in loop.intake.lanes)


@pytest.fixture(autouse=True)
def _no_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)


def apart() -> tuple[Workers, tuple[Loop, Passing, Spied], tuple[Loop, Passing, Spied]]:
    """Two workers with a partition each. The second stands still at 100 ms with more to read, and the first, who has
    had its look at the others this second, has ten seconds before it."""
    workers = Workers(2)
    ahead, behind = workers.join(), workers.join()
    assert (owned(ahead[0]), owned(behind[0])) == ([0], [1])
    for partition in (0, 1):
        workers.append(partition, [0])
    workers.turn(ahead[0], behind[0], times=4)
    workers.append(1, range(100, 5100, 100))
    behind[0].intake._max_rows = 1  # it is slow: a row a turn
    workers.turn(behind[0])
    behind[0]._commit()
    workers.turn(ahead[0], times=3)
    workers.append(0, range(100, 10_100, 100))
    return workers, ahead, behind


def test_a_worker_waits_half_the_lateness_past_the_slowest_partition_of_another_and_goes_on_with_it() -> None:
    workers, (first, quick, _), (second, slow, _) = apart()
    workers.turn(first, times=30)
    assert slow.times == [0, 100]
    assert quick.times[-1] == 200 + LATENESS_MS // 2  # 200 is what the second reads next

    for _ in range(15):
        workers.turn(second, first, times=3)
        assert slow.times[-1] < 5000
        assert quick.times[-1] <= slow.times[-1] + 100 + LATENESS_MS // 2
    workers.turn(first, second, times=80)
    assert slow.times[-1] == 5000
    assert quick.times == list(range(0, 10_001, 100))


def test_a_worker_that_was_behind_passes_the_other_by_no_more_than_that_either() -> None:
    workers, (first, quick, _), (second, slow, _) = apart()
    workers.turn(first, times=30)
    second.intake._max_rows = 10
    workers.turn(second, times=30)
    assert (quick.times[-1], slow.times[-1]) == (700, 800 + LATENESS_MS // 2)
    workers.turn(first, second, times=80)
    assert (quick.times[-1], slow.times[-1]) == (10_000, 5000)


def test_two_workers_with_a_gap_in_both_logs_do_not_wait_for_each_other_for_ever() -> None:
    workers = Workers(2)
    (first, quick, _), (second, slow, _) = workers.join(), workers.join()
    for partition in (0, 1):
        workers.append(partition, [0])
    workers.turn(first, second, times=8)
    for partition in (0, 1):
        workers.append(partition, range(100_000, 110_000, 100))
    workers.turn(first, second, times=80)
    assert quick.times[-1] == slow.times[-1] == 109_900


def test_nobody_runs_ahead_of_a_worker_that_has_not_seen_its_first_row() -> None:
    workers = Workers(2)
    (first, quick, _), (second, slow, _) = workers.join(), workers.join()
    workers.append(0, range(10_000, 20_000, 100))
    workers.append(1, range(10_000, 20_000, 100))
    workers.turn(first, times=20)
    assert quick.times == []
    second.intake._max_rows = 1
    workers.turn(second, first, times=8)
    assert 0 < len(slow.times) < 20
    assert quick.times[-1] <= slow.times[-1] + 100 + LATENESS_MS // 2
    workers.turn(first, second, times=100)
    assert quick.times == slow.times == list(range(10_000, 20_000, 100))


def test_aborted_rows_at_the_end_of_another_workers_log_hold_nobody() -> None:
    workers = Workers(2)
    (first, quick, _), (second, slow, _) = workers.join(), workers.join()
    workers.append(1, [0])
    workers.broker.logs[SOURCE][1] += [None] * 7  # what a reader of committed rows makes of them
    workers.append(0, range(0, 10_100, 100))
    workers.turn(first, second, times=60)
    assert slow.times == [0]
    assert quick.times[-1] == 10_000


def test_a_backlog_that_appears_everywhere_at_once_keeps_its_order_though_it_is_fetched_one_by_one() -> None:
    workers = Workers(3, max_rows=40)
    loop, stage, _ = workers.join()
    for partition in range(3):
        workers.append(partition, [0])
    workers.turn(loop, times=8)
    assert all(loop.intake.drained(Partition(SOURCE, partition)) for partition in range(3))
    for partition in range(3):
        workers.append(partition, range(partition, 20_000, 100))
    workers.turn(loop, times=200)
    assert len(stage.times) == 3 * 201
    newest = 0
    for time_ms in stage.times:
        assert time_ms >= newest - LATENESS_MS // 2
        newest = max(newest, time_ms)


def test_another_worker_that_has_nothing_to_read_holds_nobody() -> None:
    workers = Workers(2)
    (first, quick, _), (second, slow, _) = workers.join(), workers.join()
    workers.append(1, [0])
    workers.turn(second, times=4)
    assert slow.times == [0]
    workers.append(0, range(0, 10_100, 100))
    workers.turn(first, times=40)
    assert quick.times[-1] == 10_000


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("alone", [True, False])
def test_what_is_committed_in_one_partition_and_about_to_be_in_another_does_not_run_ahead_of_it(
    alone: bool, rows: int
) -> None:
    """A transaction becomes visible partition by partition, and the rows that are not yet are the older ones."""
    workers = Workers(2)
    first, quick, transport = workers.join()
    loops = [first] if alone else [first, workers.join()[0]]
    for partition in (0, 1):
        workers.append(partition, [0])
    workers.turn(*loops, times=6)
    transport.open = {Partition(SOURCE, 1): rows}
    workers.append(0, range(0, 10_100, 100))
    workers.turn(*loops, times=10)
    assert quick.times[-1] == LATENESS_MS // 2
    transport.open = {}
    workers.append(1, [5000])
    workers.turn(*loops, times=60)
    assert quick.times[-1] == 10_000


def test_a_transaction_of_another_worker_that_never_ends_is_not_waited_for_longer_than_is_worth_while() -> None:
    workers = Workers(2)
    (first, quick, transport), (second, *_) = workers.join(), workers.join()
    transport.open = {Partition(SOURCE, 1): 1}
    workers.append(0, range(0, 10_100, 100))
    workers.turn(first, second, times=10)  # 3.5 s; nothing is known of the partition but that it has something
    assert quick.times == []
    workers.turn(first, second, times=60)
    assert quick.times[-1] == 10_000


def test_a_worker_that_learns_nothing_of_the_other_partitions_goes_no_further_and_says_so() -> None:
    workers, (first, quick, client), _ = apart()
    client.deaf = True
    workers.turn(first, times=300)  # 105 s
    assert first._holdback.why == "Kafka was asked for what the group has committed: timed out"
    assert quick.times[-1] <= 200 + LATENESS_MS // 2
    client.deaf = False
    workers.turn(first, times=3)
    assert first._holdback.why is None


def test_a_full_buffer_pauses_its_own_partition_alone_and_polling_goes_on_until_half_of_it_is_gone() -> None:
    workers = Workers(3, buffer_rows=40)
    (first, quick, transport), (second, *_) = workers.join(), workers.join()
    assert (owned(first), owned(second)) == ([0, 2], [1])
    workers.append(1, [0])
    workers.turn(second, times=3)
    workers.append(1, range(1000, 1500, 10))  # the second has them to read, so the first waits at half a second
    workers.turn(first, times=3)
    workers.append(0, range(600, 1600, 5))
    transport.asked.clear()
    workers.turn(first, times=20)
    assert quick.times == []
    lane = first.intake._lanes[Partition(SOURCE, 0)]
    assert ("pause", [0]) in transport.asked
    assert 40 <= lane.rows < 50

    paused_at = transport.asked.index(("pause", [0]))
    workers.append(2, range(400))  # the neighbour's rows come although the first partition is paused
    workers.turn(first, times=50)
    assert quick.times == list(range(400))
    since = transport.asked[paused_at + 1 :]
    assert [what for what, _ in since] == ["poll"] * len(since)
    assert [2] in [found for _, found in since]
    assert not any(0 in found for _, found in since)

    workers.turn(second, times=10)
    before = len(transport.asked)
    while ("resume", [0]) not in transport.asked[before:]:
        rows = lane.rows
        workers.turn(first)
        assert len(transport.asked) < before + 50
    assert rows > 20 >= lane.rows
    workers.turn(first, second, times=60)
    assert quick.times[400:] == list(range(600, 1600, 5))


def test_a_drained_input_is_committed_at_once_but_not_more_often_than_each_interval() -> None:
    clock, broker, times = Clock(), MemoryBroker(), []
    for topic in TOPICS:
        broker.create(topic, 1)
    transport = MemoryTransport(broker, "g")
    commit = transport.commit
    transport.commit = lambda positions: (times.append(clock.now), commit(positions))[1]  # type: ignore[assignment, method-assign]
    loop = small_loop(transport, Passing(TARGET), TOPICS, clock=clock)
    transport.subscribe([SOURCE], loop)

    def pass_ms(count: int, row_each: int) -> None:
        for ms in range(count):
            if ms % row_each == 0:
                broker.append(SOURCE, None, b"1", partition=0)
            clock.now += 0.001
            loop.step()

    pass_ms(40, row_each=1000)  # one row, and silence
    assert len(times) == 1
    assert times[0] - 1_000_000.0 <= 0.003
    times.clear()
    pass_ms(400, row_each=3)
    gaps = [round(1000 * (later - earlier)) for earlier, later in pairwise(times)]
    assert len(gaps) > 10
    assert 20 <= min(gaps) <= max(gaps) <= 23
