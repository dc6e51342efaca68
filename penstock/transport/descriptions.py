"""Asks the broker about topics and a group over a client's own connections.

Topics are asked for now and answered later. The group is asked for when that answer has come, so that the broker is
there, and waited for: the call that would not wait, ``DescribeConsumerGroups``, loses its answer or its process where
the connection to the group's coordinator ends meanwhile (librdkafka's issue 4605, pull request 5397).
"""

import struct
from collections.abc import Iterable, Iterator, Mapping
from ctypes import POINTER, byref, c_char_p, string_at
from dataclasses import dataclass

from penstock.records import Partition
from penstock.transport.librdkafka import DESCRIBED_TOPICS, NO_ERROR, Groups, elements, rd

GROUP_MS = 500
"""How long the group is waited for; a cluster with a broker that is down takes all of it."""


@dataclass(frozen=True, slots=True)
class Counts:
    """How many partitions the topics have; those that the broker does not tell of are left out."""

    of: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Members:
    """A group as its coordinator has it: ``assigned`` by client id, which is the slot. ``stable``: no rebalance is
    under way."""

    stable: bool
    assigned: Mapping[str, frozenset[Partition]]


class Descriptions:
    """Of one client, and closed before it. Used by one thread."""

    def __init__(self, client: int) -> None:
        self._client = client
        self._queue = rd.queue_new(client)
        self._group = ""
        self.outstanding = 0

    def ask(self, topics: Iterable[str], group: str) -> None:
        """For ``Counts`` of the topics and ``Members`` of the group. What fails is not answered."""
        names = [topic.encode() for topic in topics]
        asked = (c_char_p * len(names))(*names)
        collection = rd.TopicCollection_of_topic_names(asked, len(names))
        rd.DescribeTopics(self._client, collection, None, self._queue)
        rd.TopicCollection_destroy(collection)
        self._group = group
        self.outstanding += 1

    def answers(self, wait_s: float = 0.0) -> Iterator[Counts | Members]:
        """Those that are there; waits for the first one only."""
        while self.outstanding and (event := rd.queue_poll(self._queue, round(wait_s * 1000))):
            wait_s = 0.0
            try:
                described = rd.event_type(event) == DESCRIBED_TOPICS
                self.outstanding -= described
                if described and rd.event_error(event) == NO_ERROR:
                    yield _counts(rd.event_DescribeTopics_result(event))
                    yield from self._members()
            finally:
                rd.event_destroy(event)

    def _members(self) -> Iterator[Members]:
        found = POINTER(Groups)()
        if rd.list_groups(self._client, self._group.encode(), byref(found), GROUP_MS) != NO_ERROR:
            return
        try:
            for group in found.contents.groups[: found.contents.group_cnt]:
                if group.err == NO_ERROR and group.group.decode() == self._group:
                    members = group.members[: group.member_cnt]
                    given = {m.client_id.decode(): string_at(m.assignment, m.assignment_size) for m in members}
                    yield Members(group.state == b"Stable", {name: _assigned(what) for name, what in given.items()})
        finally:
            rd.group_list_destroy(found)

    def close(self) -> None:
        rd.queue_destroy(self._queue)


def _assigned(content: bytes) -> frozenset[Partition]:
    """What Kafka's consumer protocol says is assigned: a version, then each topic with its partitions."""
    found: list[Partition] = []
    at = 2
    (topics,) = struct.unpack_from(">i", content, at) if len(content) > at else (0,)
    at += 4
    for _ in range(topics):
        (length,) = struct.unpack_from(">h", content, at)
        topic = content[at + 2 : at + 2 + length].decode()
        (count,) = struct.unpack_from(">i", content, at + 2 + length)
        numbers = struct.unpack_from(f">{count}i", content, at + 6 + length)
        found += [Partition(topic, number) for number in numbers]
        at += 6 + length + 4 * count
    return frozenset(found)


def _counts(result: int) -> Counts:
    counts = {}
    for topic in elements(rd.DescribeTopics_result_topics, result):
        if rd.error_code(rd.TopicDescription_error(topic)) == NO_ERROR:
            name: bytes = rd.TopicDescription_name(topic)
            counts[name.decode()] = len(elements(rd.TopicDescription_partitions, topic))
    return Counts(counts)
