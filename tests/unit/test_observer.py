"""What a loop tells of a replay."""

from penstock.health import Health
from penstock.intake import Intake
from penstock.observer import Observer
from penstock.records import Partition
from penstock.transport.memory import MemoryBroker, MemoryTransport
from penstock.transport.protocol import Position

PLACE = Partition("in", 0)


def test_a_replay_says_how_much_and_how_long_is_left() -> None:
    broker = MemoryBroker()
    broker.create("in", 1)
    for _ in range(1000):
        broker.append("in", b"k", b"v")
    health = Health()
    observer = Observer("test", health, {"in": 1})
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
