"""A broker in memory: partitions, transactions, groups and offsets, enough to run a pipeline or a test without Kafka.

It is not a fast fake but a small true one: readers see committed rows only, offsets move with the transaction, a second
member of a group takes over partitions, and an older member of a slot is fenced.
"""

import itertools
import time
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple
from uuid import uuid4

import numpy as np

from penstock.records import Header, Key, Partition, Records, Values, column
from penstock.transport.headers import Headers
from penstock.transport.protocol import Fenced, Placement, Polled, Position, Refusal, TransactionAborted


class Row(NamedTuple):
    """One stored record."""

    key: bytes | None
    value: bytes | None
    headers: list[Header]
    timestamp: int


@dataclass(slots=True)
class _Group:
    members: list["MemoryTransport"] = field(default_factory=list)
    owner: dict[Partition, "MemoryTransport"] = field(default_factory=dict)
    committed: dict[Partition, Position] = field(default_factory=dict)


class MemoryBroker:
    """Topics by name; ``now`` gives append times in ms. ``refuses(topic, row)`` says why a row is refused, or None."""

    def __init__(self, now: Callable[[], int] = lambda: int(time.time() * 1000)) -> None:
        self.logs: dict[str, list[list[Row | None]]] = {}  # None marks where a transaction ended, as Kafka's markers do
        self.groups: dict[str, _Group] = defaultdict(_Group)
        self.slots: dict[str, MemoryTransport] = {}
        self.ids: dict[str, str] = {}
        self.now = now
        self.refuses: Callable[[str, Row], str | None] = lambda topic, row: None
        self._round_robin = itertools.count()

    def create(self, topic: str, partitions: int) -> None:
        if topic not in self.logs:
            self.logs[topic] = [[] for _ in range(partitions)]
            self.ids[topic] = uuid4().hex

    def append(
        self,
        topic: str,
        key: Key,
        value: bytes | None,
        headers: list[Header] | None = None,
        partition: int | None = None,
    ) -> int:
        """Appends one committed row; returns its partition."""
        raw = key.encode() if isinstance(key, str) else key
        log = self.logs[topic]
        if partition is None:
            partition = next(self._round_robin) % len(log) if raw is None else zlib.crc32(raw) % len(log)
        log[partition].append(Row(raw, value, headers or [], self.now()))
        return partition

    def rows(self, topic: str) -> list[Row]:
        """Every committed row, partition by partition."""
        return [row for log in self.logs[topic] for row in log if row is not None]

    def join(self, group: str, topics: Sequence[str], member: "MemoryTransport") -> None:
        state = self.groups[group]
        state.members.append(member)
        self._rebalance(state, topics)

    def leave(self, group: str, topics: Sequence[str], member: "MemoryTransport") -> None:
        state = self.groups[group]
        if member in state.members:
            state.members.remove(member)
            self._rebalance(state, topics)

    def _rebalance(self, group: _Group, topics: Sequence[str]) -> None:
        every = [Partition(topic, number) for topic in topics for number in range(len(self.logs[topic]))]
        for position, partition in enumerate(every):
            new = group.members[position % len(group.members)] if group.members else None
            old = group.owner.get(partition)
            if old is new:
                continue
            if old is not None and partition in old.pending_assigned:  # it was never told
                old.pending_assigned.remove(partition)
            elif old is not None and old in group.members:
                old.pending_revoked.append(partition)
            if new is None:
                group.owner.pop(partition, None)
            else:
                group.owner[partition] = new
                new.pending_assigned.append(partition)


class MemoryTransport:
    """A member of ``group`` in ``slot`` of a ``MemoryBroker``. A second member of the same slot fences the first."""

    def __init__(self, broker: MemoryBroker, group: str, slot: str = "0") -> None:
        self.broker, self.group = broker, group
        self.pending_revoked: list[Partition] = []
        self.pending_assigned: list[Partition] = []
        self._topics: Sequence[str] = ()
        self._placement: Placement | None = None
        self._at: dict[Partition, int] = {}
        self._paused: set[Partition] = set()
        self._sends: list[tuple[str, list[bytes | None], list[bytes | None], Sequence[list[Header]] | None]] = []
        self._slot = f"{group}.{slot}"
        before = broker.slots.get(self._slot)
        if before is not None:
            broker.leave(group, before._topics, before)
        broker.slots[self._slot] = self
        self.fail_next_commit: str | None = None

    def subscribe(self, topics: Sequence[str], placement: Placement) -> None:
        self._topics, self._placement = topics, placement
        self.broker.join(self.group, topics, self)

    def _place(self) -> None:
        assert self._placement is not None, "subscribe before poll"
        if self.pending_revoked:
            self._placement.revoked(self.pending_revoked)
            gone, self.pending_revoked = self.pending_revoked, []
            for partition in gone:
                self._at.pop(partition, None)
                self._paused.discard(partition)
        # a partition is given out only when its old owner has let go of it
        others = [m for m in self.broker.groups[self.group].members if m is not self]
        free = [p for p in self.pending_assigned if not any(p in m.pending_revoked for m in others)]
        if free:
            self.pending_assigned = [p for p in self.pending_assigned if p not in free]
            self._at.update(self._placement.assigned(self.committed(free)))

    def poll(self, max_rows: int, wait_s: float) -> Polled:
        self._place()
        taken: dict[str, list[tuple[int, int, Row]]] = defaultdict(list)
        ends: dict[Partition, int] = {}
        left = max_rows
        for partition, start in list(self._at.items()):
            if partition in self._paused:
                continue
            log = self.broker.logs[partition.topic][partition.number]
            stop = start
            while left > 0 and stop < len(log):
                row = log[stop]
                if row is not None:
                    taken[partition.topic].append((partition.number, stop, row))
                    left -= 1
                stop += 1
            self._at[partition] = stop
            if stop == len(log):
                ends[partition] = stop
        return Polled([_records(topic, rows) for topic, rows in taken.items()], ends)

    def send(
        self,
        topic: str,
        keys: Values,
        values: Values,
        headers: Sequence[list[Header]] | None = None,
        *,
        alone: bool = False,
    ) -> None:
        self._sends.append((topic, column(keys).to_pylist(), column(values).to_pylist(), headers))

    def commit(self, positions: Mapping[Partition, Position]) -> None:
        if self.broker.slots.get(self._slot) is not self:
            raise Fenced(f"slot {self._slot} is held by a newer worker")
        if self.fail_next_commit is not None:
            message, self.fail_next_commit = self.fail_next_commit, None
            raise TransactionAborted(message)
        group = self.broker.groups[self.group]
        if any(group.owner.get(p) is not self and p not in self.pending_revoked for p in positions):
            raise TransactionAborted("a partition of this transaction belongs to another member")
        refused = []
        for number, (topic, keys, values, headers) in enumerate(self._sends):
            for row, (key, value) in enumerate(zip(keys, values, strict=True)):
                why = self.broker.refuses(topic, Row(key, value, headers[row] if headers else [], 0))
                if why is not None:
                    refused.append(Refusal(number, row, why, sure=True))
        if refused:
            raise TransactionAborted("rows were refused", refused)
        touched = set()
        for topic, keys, values, headers in self._sends:
            for row, (key, value) in enumerate(zip(keys, values, strict=True)):
                touched.add((topic, self.broker.append(topic, key, value, headers[row] if headers else None)))
        for topic, number in touched:
            self.broker.logs[topic][number].append(None)
        group.committed.update(positions)
        self._sends = []

    def abort(self) -> None:
        self._sends = []

    def pause(self, partitions: Iterable[Partition]) -> None:
        self._paused.update(partitions)

    def resume(self, partitions: Iterable[Partition]) -> None:
        self._paused.difference_update(partitions)

    def committed(self, partitions: Iterable[Partition]) -> dict[Partition, Position | None]:
        group = self.broker.groups[self.group]
        return {partition: group.committed.get(partition) for partition in partitions}

    def bounds(self, partition: Partition) -> tuple[int, int]:
        return 0, len(self.broker.logs[partition.topic][partition.number])

    def ends(self, partitions: Iterable[Partition]) -> dict[Partition, int]:
        return {partition: self.bounds(partition)[1] for partition in partitions}

    def high(self, partition: Partition) -> int | None:
        return self.bounds(partition)[1]

    def offset_at(self, partition: Partition, timestamp: int) -> int:
        log = self.broker.logs[partition.topic][partition.number]
        for offset, row in enumerate(log):
            if row is not None and row.timestamp >= timestamp:
                return offset
        return len(log)

    def partitions(self, topic: str) -> int:
        return len(self.broker.logs[topic])

    def identity(self, topic: str) -> str:
        return self.broker.ids[topic]

    def trouble(self) -> str | None:
        return None

    def unread(self) -> str | None:
        return None

    def close(self) -> None:
        self.broker.leave(self.group, self._topics, self)

    def kill(self) -> None:
        """As kill -9 does: the open transaction is gone, and the group notices."""
        self._sends = []
        self.close()


def _records(topic: str, rows: list[tuple[int, int, Row]]) -> Records:
    headers = Headers.listed([row.headers for _, _, row in rows])
    return Records(
        topic,
        column([row.value for _, _, row in rows]),
        column([row.key for _, _, row in rows]),
        np.array([number for number, _, _ in rows], np.int32),
        np.array([offset for _, offset, _ in rows], np.int64),
        np.array([row.timestamp for _, _, row in rows], np.int64),
        headers.of,
        headers.texts,
    )
