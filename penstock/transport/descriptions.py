"""Asks the broker about topics and a group over a client's own connections. The answers are fetched later, so that
nobody waits for a broker that is slow or away, and it takes neither a thread nor a second client.
"""

from collections.abc import Iterable, Iterator, Mapping
from ctypes import byref, c_char_p, c_size_t
from dataclasses import dataclass
from typing import Any

from penstock.records import Partition
from penstock.transport.librdkafka import DESCRIBED_GROUPS, DESCRIBED_TOPICS, NO_ERROR, STABLE, named, rd


@dataclass(frozen=True, slots=True)
class Counts:
    """How many partitions the topics have; those that the broker does not tell of are left out."""

    of: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Members:
    """A group as its coordinator has it: ``assigned`` by instance id. ``stable``: no rebalance is under way."""

    stable: bool
    assigned: Mapping[str, frozenset[Partition]]


class Descriptions:
    """Of one client, and closed before it. Used by one thread."""

    def __init__(self, client: int) -> None:
        self._client = client
        self._queue = rd.queue_new(client)
        self.outstanding = 0

    def ask(self, topics: Iterable[str], group: str) -> None:
        """For ``Counts`` of the topics and ``Members`` of the group. What fails is not answered."""
        names = [topic.encode() for topic in topics]
        asked = (c_char_p * len(names))(*names)
        collection = rd.TopicCollection_of_topic_names(asked, len(names))
        rd.DescribeTopics(self._client, collection, None, self._queue)
        rd.TopicCollection_destroy(collection)
        rd.DescribeConsumerGroups(self._client, (c_char_p * 1)(group.encode()), 1, None, self._queue)
        self.outstanding += 2

    def answers(self, wait_s: float = 0.0) -> Iterator[Counts | Members]:
        """Those that are there; waits for the first one only."""
        while self.outstanding and (event := rd.queue_poll(self._queue, round(wait_s * 1000))):
            wait_s = 0.0
            try:
                kind = rd.event_type(event)
                self.outstanding -= kind in (DESCRIBED_TOPICS, DESCRIBED_GROUPS)
                if rd.event_error(event) != NO_ERROR:
                    continue
                if kind == DESCRIBED_TOPICS:
                    yield _counts(rd.event_DescribeTopics_result(event))
                elif kind == DESCRIBED_GROUPS:
                    yield from _members(rd.event_DescribeConsumerGroups_result(event))
            finally:
                rd.event_destroy(event)

    def close(self) -> None:
        rd.queue_destroy(self._queue)


def _listed(listing: Any, of: int) -> list[int]:
    size = c_size_t()
    found = listing(of, byref(size))
    return [int(found[i]) for i in range(size.value)]


def _counts(result: int) -> Counts:
    counts = {}
    for topic in _listed(rd.DescribeTopics_result_topics, result):
        if rd.error_code(rd.TopicDescription_error(topic)) == NO_ERROR:
            name: bytes = rd.TopicDescription_name(topic)
            counts[name.decode()] = len(_listed(rd.TopicDescription_partitions, topic))
    return Counts(counts)


def _members(result: int) -> Iterator[Members]:
    for group in _listed(rd.DescribeConsumerGroups_result_groups, result):
        if rd.error_code(rd.ConsumerGroupDescription_error(group)) != NO_ERROR:
            continue
        assigned: dict[str, frozenset[Partition]] = {}
        for number in range(rd.ConsumerGroupDescription_member_count(group)):
            member = rd.ConsumerGroupDescription_member(group, number)
            places = named(rd.MemberAssignment_partitions(rd.MemberDescription_assignment(member)))
            instance: bytes = rd.MemberDescription_group_instance_id(member) or b""
            assigned[instance.decode()] = frozenset(Partition(at.topic, at.partition) for at in places)
        yield Members(rd.ConsumerGroupDescription_state(group) == STABLE, assigned)
