"""A row that kills its worker (a segfault, an OOM kill, ``os._exit``) costs itself alone.

Nothing is written per row or batch: a note at assignment says where the partition stands, and only the lack of progress
since makes a death a suspicion. Two deaths in a row at one committed offset (in a replay: within one stretch of 65,536
offsets) with rows to read, and from there on the partition's rows are decoded and processed one by one, each noted
before. A row whose own step did not end twice is quarantined: undecoded to the dead letters where it is live, left out
where it is replayed, for it had its fate then. So a row that kills does so four times, twice in a batch and twice
alone, and each further one among the stepped rows twice; whoever has the partition, because notes and quarantine lie at
the snapshots' URL.

Kills from outside are none of this unless they hit again and again. Two without a commit between them cause single
steps, up to the log's end as the worker found it and at most twice what it can have in hand (``in_hand``: 16,384 rows
of a batch, in a merging stage its buffer of 65,536 and another batch too; twice because of markers), in a replay a
stretch more; the first commit past them ends it. A worker killed while idle counts as one if rows came while it was
away. A step takes 0.3 ms on a local disk, in an object store far more (not measured), and lasts until the next begins
or the turn ends. A kill then counts against the row in hand, which must be hit again, by the very next kill in one of
its own steps before one of them ends, to be quarantined: with a restart a second and kills at random that is 0.3 ms of
a second, after three kills in a row of which none let a commit through. SIGTERM, a rebalance and an end that the worker
itself tells of (fenced, broker away, a stage's bug) take the note away; a commit makes it void.
"""

import logging
from collections.abc import Callable, Iterable, Mapping
from uuid import uuid4

import numpy as np

from penstock import telemetry
from penstock.codec.decoded import BadRow
from penstock.intake import Piece
from penstock.journal.notes import REPLAY_ROWS, Note, Notes, following
from penstock.records import Batch, Partition, Records
from penstock.transport.protocol import Position

log = logging.getLogger(__name__)

KILLED = "killed the worker"
DEATHS = 2
"""Steps of one row that did not end, after which it is quarantined. One may be a kill from outside."""
STEP_ROWS = 32
"""Rows of a poll while stepping: a note takes long in an object store, and a transaction lasts for seconds."""


class Journal:
    """Of one stage. ``notes``: None where nothing is to be kept. ``identify(topic)``: the broker's identities of
    cluster and topic. ``in_hand``: most rows of a partition that are read and not yet committed."""

    def __init__(self, notes: Notes | None, identify: Callable[[str], str], stage: str, in_hand: int) -> None:
        self._notes, self._identify, self._stage, self._in_hand = notes, identify, stage, in_hand
        self._worker = uuid4().hex
        self._of: dict[Partition, Note] = {}
        self._aside: dict[Partition, frozenset[int]] = {}
        self._stepping: dict[Partition, int] = {}  # since where
        self._step: tuple[Partition, int] | None = None
        self._processing = False

    @property
    def stepping(self) -> bool:
        """Rows of some partition are taken one by one."""
        return bool(self._stepping)

    def says(self) -> str | None:
        """For people, while stepping."""
        return ", ".join(map(self._said, self._stepping)) or None

    def _said(self, partition: Partition) -> str:
        note = self._of[partition]
        return (
            f"single-stepping {note.since}..{note.until} of {partition} after {note.unclean} unclean starts"
            f" at {note.died}"
        )

    def begin(self, partition: Partition, start: int, live: int, high: int) -> None:
        """The partition is ours, read from ``start`` and live from ``live``; ``high``: its log's end."""
        if self._notes is None:
            return
        topic = self._identify(partition.topic)
        fresh = Note(topic=topic, worker=self._worker, committed=live, at=start)
        found = self._notes.read(partition)
        if found is not None and found.topic == topic:
            telemetry.UNCLEAN_STARTS.labels(self._stage).inc()
        note = following(found, fresh, high, self._in_hand)
        aside = self._notes.quarantined(partition, topic)
        guilty = {row for row, times in note.deaths.items() if times >= DEATHS} - aside
        for row in guilty:
            again = "lift it with `penstock quarantine lift`" if row < live else "send it with `penstock dead replay`"
            log.error(
                "%s@%d killed the worker each time it was worked on alone: it is quarantined. Mend what it breaks, then"
                " %s", partition, row, again,
            )  # fmt: skip
        if guilty:
            aside |= guilty
            self._notes.quarantine(partition, topic, aside)
            note = note.model_copy(update={"deaths": {r: n for r, n in note.deaths.items() if r not in aside}})
        if aside:
            self._aside[partition] = aside
        self._put(partition, note)
        if partition in self._stepping:
            log.warning("%s", self._said(partition))

    def aside(self, partition: Partition) -> dict[int, BadRow]:
        """Offsets of the partition that are not to be decoded."""
        why = "the worker died each time this row was worked on, twice alone. It was not decoded since"
        return dict.fromkeys(self._aside.get(partition, ()), BadRow(KILLED, why))

    def most_rows(self, usual: int) -> int:
        """Of the next poll."""
        return min(usual, STEP_ROWS) if self._stepping else usual

    def parts(self, piece: Piece) -> list[Piece]:
        """The piece as it is, or with every row alone that is to be stepped."""
        since = {p.number: at for p, at in self._stepping.items() if p.topic == piece.records.topic}
        if not since:
            return [piece]
        records = piece.records
        rows = zip(records.partition.tolist(), records.offset.tolist(), strict=True)
        alone = np.array([number in since and offset >= since[number] for number, offset in rows], np.bool_)
        others = np.flatnonzero(~alone)
        first = [Piece(records.take(others), piece.replay)] if len(others) else []
        return first + [Piece(records.take(np.array([row])), piece.replay) for row in np.flatnonzero(alone).tolist()]

    def decoding(self, records: Records) -> None:
        """Rows are decoded next."""
        if self._stepping and len(records) == 1:
            self._begin_step(Partition(records.topic, int(records.partition[0])), int(records.offset[0]))

    def processing(self, batch: Batch) -> None:
        """Rows are processed and sent next."""
        if self._stepping and len(batch) == 1:
            self._begin_step(Partition(batch.topic, int(batch.partition[0])), int(batch.offset[0]))
            self._processing = self._step is not None

    def over(self) -> None:
        """No row is worked on."""
        if self._step is not None:
            partition, _ = self._step
            self._end_step()
            self._put(partition, self._of[partition])

    def replayed(self, positions: Mapping[Partition, Position]) -> None:
        """Rows before these are finished and were replay."""
        for partition in positions.keys() & self._of.keys():
            offset, note = positions[partition].offset, self._of[partition]
            if note.until is not None and offset >= note.until:
                self._put(partition, Note(topic=note.topic, worker=note.worker, committed=note.committed, at=offset))
                continue
            # the same places whatever the batches: a death at the same place must be seen to be one
            at = note.committed if offset >= note.committed else offset - offset % REPLAY_ROWS
            if at > note.at:
                self._put(partition, note.model_copy(update={"at": at}))

    def committed(self, positions: Mapping[Partition, Position]) -> None:
        """What a commit moved."""
        for partition in positions.keys() & self._stepping.keys():
            offset, note = positions[partition].offset, self._of[partition]
            if note.until is not None and offset >= note.until:
                self._put(partition, Note(topic=note.topic, worker=note.worker, committed=offset, at=offset))

    def release(self, partitions: Iterable[Partition]) -> None:
        """These are another's, and nobody died of them."""
        if self._notes is None:
            return
        for partition in set(partitions) & self._of.keys():
            if self._step is not None and self._step[0] == partition:
                self._end_step()
            del self._of[partition]
            self._aside.pop(partition, None)
            self._stepping.pop(partition, None)
            self._notes.clear(partition, self._worker)
        self._tell()

    def close(self) -> None:
        """The worker ends, and no row has killed it."""
        self.release(list(self._of))

    def _begin_step(self, partition: Partition, offset: int) -> None:
        if self._step == (partition, offset):
            return
        since = self._stepping.get(partition)
        if since is None or offset < since or (self._step is not None and self._step[0] != partition):
            self.over()
        else:
            self._end_step()
        if since is not None and offset >= since:
            self._step = partition, offset
            self._put(partition, self._of[partition].model_copy(update={"step": offset}))

    def _end_step(self) -> None:
        """In memory; the next step of the partition says it in its note."""
        if self._step is None:
            return
        partition, offset = self._step
        note = self._of[partition]
        deaths = note.deaths
        if self._processing and offset in deaths:
            deaths = {row: times for row, times in deaths.items() if row != offset}
        self._of[partition] = note.model_copy(update={"step": None, "deaths": deaths})
        self._step, self._processing = None, False

    def _put(self, partition: Partition, note: Note) -> None:
        assert self._notes is not None
        self._of[partition] = note
        self._notes.write(partition, note)
        if note.since is not None:
            self._stepping[partition] = note.since
        else:
            self._stepping.pop(partition, None)
        self._tell()

    def _tell(self) -> None:
        telemetry.SINGLE_STEPPING.labels(self._stage).set(len(self._stepping))
        telemetry.QUARANTINED.labels(self._stage).set(sum(map(len, self._aside.values())))
