"""A worker that holds more memory than it may reads nothing more, gives back what it can, and ends when that is not
enough.
"""

import os
import time
from pathlib import Path

import pytest
from penstock_monitor.merge import look_at_memory

from penstock import memory
from penstock.health import Health
from penstock.memory import MIB, Memory, OutgrownError, cgroup_limit, memory_limit, memory_within
from penstock.records import Partition
from penstock.transport.memory import MemoryBroker, MemoryTransport
from tests.small_loop import DEAD, DROPPED, SOURCE, TARGET, Passing, small_loop

TOPICS = {name: name for name in (SOURCE, TARGET, DEAD, DROPPED)}


@pytest.fixture
def resident(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """MiB that the process holds, as far as anybody looks."""
    held = [100]
    monkeypatch.setattr(memory, "resident_bytes", lambda pid: held[0] * MIB)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    return held


class Half(Passing):
    """A stage whose state is told."""

    def sizes(self) -> dict[str, tuple[int, int]]:
        return {"delays": (180 * MIB, 1234)}


def test_above_its_limit_a_worker_reads_nothing_and_goes_on_below_it(resident: list[int]) -> None:
    broker = MemoryBroker()
    for topic in TOPICS:
        broker.create(topic, 1)
    transport, now = MemoryTransport(broker, "g"), [0.0]
    loop = small_loop(transport, Passing(TARGET), TOPICS, clock=lambda: now[0])
    loop.memory = Memory(200 * MIB)
    transport.subscribe([SOURCE], loop)

    def run(seconds: int) -> None:
        for _ in range(10 * seconds):
            now[0] += 0.1
            loop.step()

    run(2)
    resident[0] = 300
    run(2)
    broker.append(SOURCE, None, b"1")
    run(10)
    assert loop.standstill.paused == {Partition(SOURCE, 0)}
    why = loop._observer._health.waiting_for["memory"]
    assert why.startswith("300 MiB are resident, and the limit is 200 MiB (PENSTOCK_MEMORY_LIMIT_MB)")
    assert broker.rows(TARGET) == []
    resident[0] = 150
    run(2)
    assert loop._observer._health.waiting_for == {}
    assert len(broker.rows(TARGET)) == 1


def test_a_worker_that_stays_above_it_commits_and_ends_and_says_what_it_holds(resident: list[int]) -> None:
    broker = MemoryBroker()
    for topic in TOPICS:
        broker.create(topic, 1)
    for at in range(50):
        broker.append(SOURCE, None, b"%d" % at)
    now = [0.0]

    def clock() -> float:
        now[0] += 0.05
        resident[0] = 100 if now[0] < 1 else 300
        return now[0]

    loop = small_loop(MemoryTransport(broker, "g"), Half(TARGET), TOPICS, clock=clock)
    loop.memory = Memory(200 * MIB)
    with pytest.raises(OutgrownError) as ended:
        loop.run()
    assert str(ended.value) == (
        "300 MiB are resident, and the limit is 200 MiB, for 30 s; delays: 180 MiB in 1,234 keys;"
        " 0 rows wait for the merge, 0 to be decoded"
    )
    assert len(broker.rows(TARGET)) == 50
    assert not loop.outbox


def test_a_limit_below_what_a_worker_holds_before_it_reads_is_refused(resident: list[int]) -> None:
    assert memory_within(101) is not None
    with pytest.raises(OutgrownError, match="100 MiB are resident before anything is read, and the limit is 99 MiB"):
        memory_within(99)


def test_a_merge_that_stays_above_it_ends(
    resident: list[int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now, codes = [0.0], list[int]()
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(os, "_exit", codes.append)
    health, held = Health(), memory_within(200)
    resident[0] = 300
    for now[0] in range(30):
        look_at_memory(held, health)
    assert not codes
    assert "the limit is 200 MiB" in health.waiting_for["memory"]
    now[0] = 40.0
    look_at_memory(held, health)
    assert codes == [1]
    assert "300 MiB are resident, and the limit is 200 MiB, for 30 s. Raise PENSTOCK_MEMORY_LIMIT_MB" in caplog.text


def test_what_is_freed_is_given_back_to_the_system_before_a_worker_stops() -> None:
    before = memory.resident_bytes(os.getpid())
    small = [bytes(100_000) for _ in range(2000)]  # below malloc's threshold for pages of their own
    last = bytes(50_000)
    grown = memory.resident_bytes(os.getpid())
    del small
    assert grown - before > 100 * MIB
    assert Memory(before + 60 * MIB).look(0.0) is None
    assert len(last) == 50_000


def test_the_limit_is_the_set_one_else_most_of_the_containers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new, old = tmp_path / "memory.max", tmp_path / "memory.limit_in_bytes"
    monkeypatch.setattr(memory, "CGROUP_FILES", (new, old))
    assert (cgroup_limit(), memory_limit(0), memory_limit(64)) == (None, None, 64 * MIB)
    old.write_text("9223372036854771712\n")
    assert cgroup_limit() is None
    new.write_text("max\n")
    old.write_text(f"{1000 * MIB}\n")
    assert cgroup_limit() == 1000 * MIB
    new.write_text(f"{500 * MIB}\n")
    assert (cgroup_limit(), memory_limit(0), memory_limit(64)) == (500 * MIB, 450 * MIB, 64 * MIB)
