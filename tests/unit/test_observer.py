"""What a loop tells of a replay, and of its lag."""

import numpy as np
import pyarrow as pa
from prometheus_client import REGISTRY

from penstock.health import Health
from penstock.intake import Intake
from penstock.observer import Observer
from penstock.outbox import Tally
from penstock.records import Batch, Partition
from penstock.transport.memory import MemoryBroker, MemoryTransport
from penstock.transport.protocol import Position

PLACE = Partition("in", 0)


class Unheard(MemoryTransport):
    """Knows no partition's end until it is told that it was ``heard`` of."""

    heard = False

    def high(self, partition: Partition) -> int | None:
        return super().high(partition) if self.heard else None


def test_a_worker_is_not_ready_before_it_has_partitions_and_knows_their_ends() -> None:
    broker = MemoryBroker()
    broker.create("in", 1)
    health, transport = Health(), Unheard(broker, "g")
    observer, intake = Observer("test", health), Intake([], False, 1, 1)

    observer.assignment([], {})
    assert health.waiting_for == {
        "lag": "the ends of the partitions are not known yet",
        "partitions": "no partition is assigned to this worker",
    }
    intake.open(PLACE, Position(0), Position(0))
    observer.assignment([PLACE], {PLACE: 0})
    assert health.waiting_for == {"lag": "the ends of the partitions are not known yet"}
    observer.every_second(intake, transport, {}, 100.0, {})
    assert health.waiting_for == {"lag": "the end of in/0 is not known yet"}
    assert not health.ready
    transport.heard = True
    observer.every_second(intake, transport, {}, 101.0, {})
    assert (health.waiting_for, health.ready) == ({}, True)
    observer.assignment([], {})
    assert not health.ready


def test_a_replay_says_how_much_and_how_long_is_left() -> None:
    broker = MemoryBroker()
    broker.create("in", 1)
    for _ in range(1000):
        broker.append("in", b"k", b"v")
    health = Health()
    observer = Observer("test", health)
    intake = Intake([], False, 1, 1)
    intake.open(PLACE, Position(0), Position(1000))
    observer.assignment([PLACE], {PLACE: 1000})

    def look(read: int, now: float) -> str:
        intake._lanes[PLACE].next_offset = read
        observer.every_second(intake, MemoryTransport(broker, "g"), {}, now, {})
        return health.waiting_for.get("replay", "")

    assert look(0, 100.0) == "in/0 has 1,000 rows left"
    assert look(250, 101.0) == "in/0 has 750 rows left, about 3 s"
    assert look(1000, 104.0) == ""


def test_the_age_of_the_lag_is_that_of_the_oldest_row_that_is_not_committed() -> None:
    broker = MemoryBroker()
    broker.create("in", 1)
    for _ in range(4):
        broker.append("in", b"k", b"v")
    observer = Observer("ages", Health())
    intake = Intake([], False, 1, 1)
    intake.open(PLACE, Position(0), Position(0))
    observer.assignment([PLACE], {PLACE: 0})

    def work(offset: int, *seconds: int) -> None:
        n, none = len(seconds), np.zeros(len(seconds), np.int64)
        rows = pa.RecordBatch.from_pydict({"x": [0] * n})
        stamps = np.array(seconds) * 1000
        observer.worked(
            Batch("in", rows, pa.nulls(n, pa.binary()), np.zeros(n, np.int32), none + offset, stamps, none, none)
        )

    def age(uncommitted: bool) -> float | None:
        tellable = {PLACE} if uncommitted else set()
        observer.every_second(intake, MemoryTransport(broker, "g"), tellable, 100.0, {})
        labels = {"stage": "ages", "topic": "in", "partition": "0"}
        return REGISTRY.get_sample_value("penstock_consumer_lag_seconds", labels)

    work(0, 10, 20)
    work(2, 90)
    assert age(uncommitted=True) == 90.0
    observer.committed(Tally(), {PLACE: Position(3)}, 100.0)
    assert age(uncommitted=False) == 10.0, "one is left, about as old as the last that was committed"
    work(3, 95)
    assert age(uncommitted=True) == 5.0
    intake._lanes[PLACE].next_offset = 4
    observer.committed(Tally(), {PLACE: Position(4)}, 100.0)
    assert age(uncommitted=False) == 0.0
