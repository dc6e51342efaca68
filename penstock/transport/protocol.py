"""What the loop needs of a log with consumer groups and transactions. Kafka and an in-memory broker implement it and
pass one conformance suite.

Assignments are announced inside ``poll``, on the caller's thread, through the ``Placement`` given to ``subscribe``.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from penstock.records import NO_TIME, Header, Partition, Records, Values


class Position(NamedTuple):
    """How far a partition is finished: ``offset`` of the next row, ``watermark`` the largest event time before it."""

    offset: int
    watermark: int = NO_TIME


class Refusal(NamedTuple):
    """A row that the client or the broker would not take: ``row`` of the ``send`` numbered ``send`` in this
    transaction. ``sure``: it is this very row; else one of its request, all of whose rows fail together.
    """

    send: int
    row: int
    message: str
    sure: bool = False


class TransactionAborted(Exception):
    """The open transaction cannot be committed: call ``abort`` and send its content again. ``refused`` names guilty
    rows.
    """

    def __init__(self, message: str, refused: Sequence[Refusal] = ()) -> None:
        super().__init__(message)
        self.refused = tuple(refused)


class Fenced(Exception):
    """Another worker holds this slot, or the client is beyond repair: exit and let the supervisor start afresh."""


class Repartitioned(Exception):
    """A topic has not as many partitions as the plan: keys are found in other partitions than their state."""

    def __init__(self, topic: str, found: int, planned: int) -> None:
        super().__init__(
            f"topic {topic!r} has {found} partitions, the plan {planned}: rows with one key are no longer in one "
            "partition, and the state of a key is not where its next row is. Make the topic anew with as many as the "
            "plan, or give the pipeline a new name and set partitions in its Pipeline"
        )


class Unavailable(ConnectionError):
    """The broker did not answer in time, or not what was asked."""


@dataclass(frozen=True, slots=True)
class Polled:
    """Rows by topic, in log order within a partition. ``ends``: partitions that were read to their end, with the end
    offset; a transaction's marker may lie between the last row and it."""

    records: Sequence[Records] = ()
    ends: Mapping[Partition, int] = field(default_factory=dict)


class Placement(Protocol):
    """How the loop is told which partitions are its own."""

    def assigned(self, committed: Mapping[Partition, Position | None]) -> Mapping[Partition, int]:
        """These partitions are ours from now on. Returns the offset to read each from."""

    def revoked(self, partitions: Iterable[Partition]) -> None:
        """These are ours until this call returns: finish and commit, or leave it to the next owner."""

    def lost(self, partitions: Iterable[Partition]) -> None:
        """These are another's already: nothing of them may be committed."""


class Transport(Protocol):
    """One consumer and one producer that commit together. Used by one thread. What asks the broker raises
    ``Unavailable`` where that does not answer."""

    def subscribe(self, topics: Sequence[str], placement: Placement) -> None: ...

    def poll(self, max_rows: int, wait_s: float) -> Polled:
        """At most ``max_rows`` rows; waits up to ``wait_s`` for the first one only. Rows of partitions that were
        revoked since they were fetched, even if given back, are not among them.
        """

    def send(
        self,
        topic: str,
        keys: Values,
        values: Values,
        headers: Sequence[list[Header]] | None = None,
        *,
        alone: bool = False,
    ) -> None:
        """Adds rows to the transaction, opening one if none is. ``keys``, ``values``: binary[n] or string[n], null for
        none. Sends are numbered from 0 in each transaction. ``alone``: in requests of their own, so that a refusal
        brings down no row of another send.
        """

    def commit(self, positions: Mapping[Partition, Position]) -> None:
        """Makes sends and positions visible together. Raises ``TransactionAborted`` or ``Fenced``."""

    def abort(self) -> None:
        """Forgets the open transaction's sends, if one is open."""

    def pause(self, partitions: Iterable[Partition]) -> None: ...

    def resume(self, partitions: Iterable[Partition]) -> None: ...

    def committed(self, partitions: Iterable[Partition]) -> dict[Partition, Position | None]:
        """What the group has committed, by any member."""

    def bounds(self, partition: Partition) -> tuple[int, int]:
        """First offset still in the log, and the end offset of what is committed."""

    def ends(self, partitions: Iterable[Partition]) -> Mapping[Partition, int]:
        """The end offsets, behind what is not committed yet too: a transaction becomes visible in one partition after
        the other."""

    def high(self, partition: Partition) -> int | None:
        """The end offset as last heard, without asking; None when nothing was heard yet."""

    def offset_at(self, partition: Partition, timestamp: int) -> int:
        """First offset appended at or after ``timestamp`` (ms since epoch); the end offset when there is none."""

    def partitions(self, topic: str) -> int:
        """How many partitions the topic has; once it is subscribed to, as last heard, without asking."""

    def identity(self, topic: str) -> str:
        """Another for a topic that was made anew under the same name, or is another cluster's."""

    def trouble(self) -> str | None:
        """Why nothing can be read or written just now, as far as it is known without asking; called by any thread, the
        more often the sooner it is told."""

    def unread(self) -> str | None:
        """Which partitions of what is subscribed to nobody in the group reads, as last heard; called by any thread."""

    def close(self) -> None: ...
