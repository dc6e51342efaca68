"""Who joins anew, and when, where partitions of a group have no reader."""

from collections.abc import Iterable

import pytest

from penstock.records import Partition
from penstock.transport.descriptions import Counts, Members
from penstock.transport.protocol import Repartitioned
from penstock.transport.readers import LOOK_S, Readers


class Told:
    """Answers with the counts and members that a test sets."""

    def __init__(self, counts: dict[str, int], **assigned: set[int]) -> None:
        self.counts, self.stable, self.outstanding = counts, True, 0
        self.assigned = {name: frozenset(Partition("raw", n) for n in numbers) for name, numbers in assigned.items()}

    def ask(self, topics: Iterable[str], group: str) -> None:
        self.outstanding = 2

    def answers(self, wait_s: float = 0.0) -> Iterable[Counts | Members]:
        self.outstanding = 0
        return [Counts(self.counts), Members(self.stable, self.assigned)]


def readers(told: Told, instance: str = "g.0", **planned: int) -> Readers:
    made = Readers(told, "g", instance, planned)
    made.watch(["raw"], 1.0)
    return made


def looks(of: Readers, times: int) -> list[bool]:
    """What comes of the next looks."""
    found = []
    for _ in range(times):
        of.soon()
        assert of.turn(1000.0) is False  # asks
        found.append(of.turn(1000.0))
    return found


def test_nothing_is_done_where_every_partition_has_a_reader() -> None:
    found = readers(Told({"raw": 3}, **{"g.0": {0}, "g.1": {1, 2}}))
    assert not any(looks(found, 5))
    assert found.why is None


def test_members_take_turns_to_join_anew_after_the_third_look_at_a_partition_without_a_reader() -> None:
    told = Told({"raw": 4}, **{"g.0": {0}, "g.1": {1}, "g.2": {2}})
    first, second = readers(told, "g.0"), readers(told, "g.1")
    # watch was the first look
    assert looks(first, 6) == [False, True, False, False, True, False]
    assert looks(second, 6) == [False, False, True, False, False, True]
    assert first.why == "no worker of g reads raw/3: the group is asked to share its partitions anew"


def test_a_partition_that_is_nobodys_for_one_look_is_not_told_of() -> None:
    told = Told({"raw": 2}, **{"g.0": {0}})
    found = readers(told)
    told.assigned = {"g.0": frozenset({Partition("raw", 0), Partition("raw", 1)})}
    looks(found, 1)
    told.assigned = {"g.0": frozenset({Partition("raw", 0)})}
    looks(found, 1)
    assert found.why is None
    looks(found, 1)
    assert found.why is not None


def test_looks_during_a_rebalance_and_by_one_who_is_no_member_count_for_nothing() -> None:
    told = Told({"raw": 2}, **{"g.0": {0}})
    told.stable = False
    found = readers(told)
    assert not any(looks(found, 5))
    told.stable = True
    assert not any(looks(readers(told, "g.7"), 5))


def test_the_next_look_is_soon_where_something_is_missing_or_came_and_else_late() -> None:
    told = Told({"raw": 1}, **{"g.0": {0}})
    found = readers(told)
    looks(found, 1)
    found.turn(1000.0 + LOOK_S - 1)
    assert told.outstanding == 0
    found.soon()
    found.turn(1000.0 + LOOK_S - 1)
    assert told.outstanding == 2
    told.counts = {"raw": 2}
    found.turn(1010.0)
    found.turn(1011.5)
    assert told.outstanding == 2


def test_a_topic_that_has_not_the_planned_partitions_is_refused_and_one_that_is_not_told_of_is_not() -> None:
    told = Told({"raw": 1, "events": 4}, **{"g.0": {0}})
    found = readers(told, events=4)
    told.counts = {"raw": 2}
    looks(found, 1)
    told.counts = {"raw": 2, "events": 5}
    with pytest.raises(Repartitioned, match="topic 'events' has 5 partitions, the plan 4"):
        looks(found, 1)
