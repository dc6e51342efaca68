"""What is written down about a partition so that the next worker knows how the one before it ended, and which rows are
set aside for good: ``GROUP/TOPIC/PARTITION/{journal,quarantine}.json`` beside the snapshots.

A note is there while a partition is worked on. Whoever leaves a partition in order takes it away, so one that is found
at assignment says that a worker died, and where.
"""

import logging
from collections.abc import Callable
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, Field

from penstock.records import Partition
from penstock.snapshots.files import Store

log = logging.getLogger(__name__)

UNCLEAN_STARTS = 2
"""Deaths at one place before rows are taken one by one. One is every kill from outside."""
REPLAY_ROWS = 1 << 16
"""How far a replay goes between two notes of where it is."""
QUARANTINE = "quarantine.json"
_NOTE = "journal.json"

Found = TypeVar("Found", bound=BaseModel)


class Note(BaseModel):
    """Of one partition. ``topic``: the broker's identities of cluster and topic. ``worker``: the process that wrote it.

    ``committed``: the group's offset at assignment. ``at``: what lies before it was worked on and did no harm: the
    start, in a replay also every ``REPLAY_ROWS``-th offset and the end. ``unclean``: how many workers in a row died
    with ``at`` at ``died``. ``since``, ``until``: rows from ``since`` on are taken one by one until all before
    ``until`` are finished. ``step``: the row that is worked on. ``deaths``: how often each row's own step did not end.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    topic: str
    worker: str
    committed: int
    at: int
    died: int | None = None
    unclean: int = 0
    since: int | None = None
    until: int | None = None
    step: int | None = None
    deaths: dict[int, int] = Field(default_factory=dict)


class Quarantine(BaseModel):
    """``rows``: offsets that are never decoded again."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    topic: str
    rows: frozenset[int] = frozenset()


def following(found: Note | None, fresh: Note, high: int, in_hand: int) -> Note:
    """The note of a worker that takes up a partition where ``found`` was left behind. ``fresh``: as if none had been.
    ``high``: the log's end. ``in_hand``: most rows of a partition that are read and not yet committed."""
    if found is None or found.topic != fresh.topic:
        return fresh
    live, start = fresh.committed, fresh.at
    same = found.committed == live
    stepping = found.until is not None and (same or live < found.until)
    reached = max(found.at, start) if same or stepping else live
    if stepping:
        unclean, died = found.unclean, found.died
    elif reached >= high:  # it had no row to die of
        return fresh.model_copy(update={"unclean": found.unclean, "died": found.died} if same else {})
    else:
        unclean, died = (found.unclean + 1 if same and found.died == reached else 1), reached
    taken = {"unclean": unclean, "died": died}
    if unclean < UNCLEAN_STARTS:
        return fresh.model_copy(update=taken)
    since = reached if found.since is None else min(found.since, reached)
    # a log holds at most one marker a row; what arrived after the deaths did not cause them
    end = min(since + REPLAY_ROWS, max(since, live)) + 2 * in_hand
    deaths = {row: times for row, times in found.deaths.items() if row >= start}
    if found.step is not None:
        deaths[found.step] = deaths.get(found.step, 0) + 1
    return fresh.model_copy(
        update={**taken, "since": since, "until": max(min(high, end), found.until or 0), "deaths": deaths}
    )


class Notes:
    """Of one group. What a store refuses is told in the log and stops nobody: rows that kill are then not found."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._failing = False

    def read(self, partition: Partition) -> Note | None:
        return self._get(partition, _NOTE, Note)

    def write(self, partition: Partition, note: Note) -> None:
        """Not made to outlive a power cut: that was no row's doing."""
        content = note.model_dump_json().encode()
        self._tried(partition, lambda: self._store.put(partition, _NOTE, content, durable=False))

    def clear(self, partition: Partition, worker: str) -> None:
        """Unless another worker has written its own since."""
        found = self.read(partition)
        if found is not None and found.worker == worker:
            self._tried(partition, lambda: self._store.remove(partition, _NOTE))

    def quarantined(self, partition: Partition, topic: str) -> frozenset[int]:
        found = self._get(partition, QUARANTINE, Quarantine)
        return found.rows if found is not None and found.topic == topic else frozenset()

    def quarantine(self, partition: Partition, topic: str, rows: frozenset[int]) -> None:
        """``rows`` are all that are quarantined of the partition."""
        content = Quarantine(topic=topic, rows=rows).model_dump_json().encode()
        self._tried(partition, lambda: self._store.put(partition, QUARANTINE, content))

    def _get(self, partition: Partition, name: str, kind: type[Found]) -> Found | None:
        found: list[Found] = []

        def get() -> None:
            try:
                content = self._store.get(partition, name)
            except FileNotFoundError:
                return
            found.append(kind.model_validate_json(content))

        self._tried(partition, get)
        return found[0] if found else None

    def _tried(self, partition: Partition, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:  # noqa: BLE001  # whatever a store raises, the stream is worth more than the journal
            if not self._failing:  # a step writes for each row
                log.warning("%s: the crash journal fails, a row that kills would not be found: %s", partition, error)
            self._failing = True
        else:
            self._failing = False
