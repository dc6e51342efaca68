"""What lies between poll and process: decoding, watermarks, replay, and the merge by event time where a stage re-keys.

The one decision to know: a partition's position moves only over rows that left this module, and a bad row leaves
together with its neighbours, so that no dead letter is ever sent ahead of the offsets that cover it.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from penstock.codec.avro import BadRow, Decoded
from penstock.records import NO_TIME, Batch, Int64s, Partition, Records
from penstock.transport.protocol import Position
from penstock.windows.merge import merge_order

Places = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class TopicReader:
    """How one input topic is decoded. An event time further ahead of its row's arrival than ``future_ms`` does not move
    the watermark: the row is about to be rejected, and one of them must not close every window.
    """

    topic: str
    decode: Callable[[Sequence[bytes | None]], Decoded]
    event_time: str
    future_ms: int = 0
    raw: bool = False
    """Foreign records: their trace context is in a header, not yet in a column."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Polled rows of one topic that are all live, or all replay."""

    records: Records
    replay: bool


@dataclass(frozen=True, slots=True)
class Work:
    """One batch for ``process`` and what it takes to finish it: the bad rows that go with it, the record behind each
    row of the batch, and the positions that hold once it is done.
    """

    batch: Batch
    bad: Sequence[tuple[Records, int, BadRow]]
    record: Callable[[int], tuple[Records, int]]
    positions: dict[Partition, Position]


@dataclass(slots=True)
class _Segment:
    """Rows of one partition out of one poll. ``rows``: places in ``batch``; ``order``: the time each is merged by;
    ``bad``: places in ``records``; ``end``: the position after all of them.
    """

    records: Records
    batch: Batch
    index: npt.NDArray[np.int32]
    rows: Places
    order: Int64s
    bad: list[tuple[int, BadRow]]
    end: Position


@dataclass(slots=True)
class _Lane:
    """One assigned partition. Rows below ``live_from`` only rebuild state; ``committed`` is the watermark to take up
    there.
    """

    live_from: int
    committed: int
    watermark: int
    at_end: bool = False
    paused: bool = False
    rows: int = 0
    next_offset: int = 0
    waited_since: float | None = None
    queue: deque[_Segment] = field(default_factory=deque)

    @property
    def replaying(self) -> bool:
        return self.next_offset < self.live_from


class Intake:
    """Turns polled records into work. ``merges``: a topic's partitions are merged by event time before they go on; a
    partition that has more in the log is waited for, ``patience_s`` at the most.
    """

    def __init__(
        self, readers: Iterable[TopicReader], merges: bool, buffer_rows: int, max_rows: int, patience_s: float = 5.0
    ) -> None:
        self._readers = {reader.topic: reader for reader in readers}
        self.merges, self._buffer_rows, self._max_rows, self._patience_s = merges, buffer_rows, max_rows, patience_s
        self._lanes: dict[Partition, _Lane] = {}
        self.hold_after: dict[str, int] = {}
        """Per topic: rows later than this event time wait, for another worker is that far behind."""

    @property
    def lanes(self) -> Iterable[Partition]:
        return self._lanes.keys()

    @property
    def buffered(self) -> int:
        """Rows that wait for the merge."""
        return sum(lane.rows for lane in self._lanes.values())

    def replay_left(self, partition: Partition) -> int:
        lane = self._lanes[partition]
        return max(0, lane.live_from - lane.next_offset)

    def watermark(self, partition: Partition) -> int:
        return self._lanes[partition].watermark

    def drained(self, partition: Partition) -> bool:
        """Nothing of the partition is left, in the log or here."""
        lane = self._lanes[partition]
        return lane.at_end and not lane.rows

    def open(self, partition: Partition, start: int, live: Position) -> None:
        """``partition`` is read from ``start``; rows below ``live.offset`` are replay."""
        watermark = live.watermark if start >= live.offset else NO_TIME
        self._lanes[partition] = _Lane(live.offset, live.watermark, watermark, next_offset=start)

    def close(self, partition: Partition) -> None:
        self._lanes.pop(partition, None)

    def ended(self, partition: Partition, end: int) -> None:
        """The log was read to its end: a transaction's marker may lie between the last row and ``end``."""
        lane = self._lanes.get(partition)
        if lane is not None:
            lane.at_end = True
            lane.next_offset = max(lane.next_offset, end)
            if not lane.replaying:
                lane.watermark = max(lane.watermark, lane.committed)

    def split(self, records: Records) -> list["Piece"]:
        """Parts a poll at each partition's ``live_from``."""
        present = np.flatnonzero(np.bincount(records.partition)).tolist()
        live_from = np.zeros(max(present) + 1, np.int64)
        for number in present:
            lane = self._lanes[Partition(records.topic, number)]
            live_from[number] = lane.live_from if lane.replaying else 0
        old = records.offset < live_from[records.partition]
        if not old.any():
            return [Piece(records, replay=False)]
        if old.all():
            return [Piece(records, replay=True)]
        return [
            Piece(records.take(np.flatnonzero(old)), replay=True),
            Piece(records.take(np.flatnonzero(~old)), replay=False),
        ]

    def add(self, piece: "Piece", now: float) -> Work | None:
        """Decodes; returns what may go on at once: everything, or in a merging stage only the replay. Raises
        ``TransientLookupError`` with nothing changed, so that the same piece can be added again."""
        segments = self._segments(piece.records, now, replay=piece.replay)
        if piece.replay or not self.merges:
            return self._whole(segments)
        for partition, segment in segments.items():
            lane = self._lanes[partition]
            lane.queue.append(segment)
            lane.rows += len(segment.rows)
        return None

    def _segments(self, records: Records, now: float, *, replay: bool) -> dict[Partition, _Segment]:
        reader = self._readers[records.topic]
        decoded = reader.decode(records.values)
        index = decoded.index
        good = len(index) == len(records)
        partition = records.partition if good else records.partition[index]
        timestamp = records.timestamp if good else records.timestamp[index]
        event_time = _milliseconds(decoded.rows.column(reader.event_time))
        capped = np.minimum(event_time, timestamp + reader.future_ms) if reader.future_ms else event_time
        watermark = np.empty(len(index), np.int64)
        batch = Batch(
            records.topic,
            decoded.rows,
            records.keys if good else [records.keys[i] for i in index.tolist()],
            partition,
            records.offset if good else records.offset[index],
            timestamp,
            event_time,
            watermark,
            replay,
            self._traceparent(records, index) if reader.raw else None,
        )
        segments = {}
        for number in np.flatnonzero(np.bincount(records.partition)).tolist():
            where = Partition(records.topic, number)
            lane = self._lanes[where]
            if not replay and lane.watermark < lane.committed:  # the replay ended below the committed watermark
                lane.watermark = lane.committed
            rows = np.flatnonzero(partition == number)
            order = np.maximum.accumulate(np.concatenate(([lane.watermark], capped[rows])))
            watermark[rows] = order[:-1]
            lane.watermark = int(order[-1])
            last = int(records.offset[np.flatnonzero(records.partition == number)[-1]])
            lane.next_offset, lane.at_end = last + 1, False
            bad = [(i, row) for i, row in decoded.bad.items() if records.partition[i] == number] if decoded.bad else []
            segments[where] = _Segment(records, batch, index, rows, order[1:], bad, Position(last + 1, lane.watermark))
        return segments

    def _traceparent(self, records: Records, index: npt.NDArray[np.int32]) -> "pa.Array | None":
        found = records.traceparents()
        return found if found is None or len(index) == len(records) else found.take(pa.array(index))

    def _whole(self, segments: dict[Partition, _Segment]) -> Work:
        """Everything of one decode as it is."""
        first = next(iter(segments.values()))
        bad = [(s.records, i, row) for s in segments.values() for i, row in s.bad]
        records, index = first.records, first.index
        return Work(first.batch, bad, lambda row: (records, int(index[row])), {p: s.end for p, s in segments.items()})

    def take(self, now: float) -> Iterator[Work]:
        """What the merge lets go: at most one batch of each topic."""
        if not self.merges:
            return
        for topic in self._readers:
            lanes = {p: lane for p, lane in self._lanes.items() if p.topic == topic}
            work = self._merge(topic, lanes, now)
            if work is not None:
                yield work

    def _merge(self, topic: str, lanes: dict[Partition, _Lane], now: float) -> Work | None:
        held_up = any(lane.queue for lane in lanes.values())
        for lane in lanes.values():
            # since others first wait for it, not since its last row: a long step or a slow start is no silence
            if lane.queue or not held_up:
                lane.waited_since = None
            elif lane.waited_since is None:
                lane.waited_since = now
        if not held_up:
            return None
        heads, waiting = [], []
        for lane in lanes.values():
            taken: list[Int64s] = []
            left = self._max_rows
            for segment in lane.queue:
                taken.append(segment.order[:left])
                left -= len(taken[-1])
                if left == 0:
                    break
            heads.append(np.concatenate(taken) if taken else np.empty(0, np.int64))
            silent = lane.waited_since is not None and now - lane.waited_since > self._patience_s
            more = left == 0 or not (lane.at_end or lane.replaying or silent)
            waiting.append(more)
        order = merge_order(heads, waiting)[: self._max_rows]
        limit = self.hold_after.get(topic)
        if limit is not None and len(order):
            order = order[np.concatenate(heads)[order] <= limit]
        starts = np.cumsum([0, *(len(head) for head in heads)])
        batches: list[Batch] = []
        sources: list[_Segment] = []
        bad: list[tuple[Records, int, BadRow]] = []
        positions: dict[Partition, Position] = {}
        gathered: list[Places] = []  # place of each emitted row in the concatenated batches, lane by lane
        offsets: dict[int, int] = {}  # several lanes share the batch of one poll
        total = 0
        for number, (partition, lane) in enumerate(lanes.items()):
            count = int(((order >= starts[number]) & (order < starts[number + 1])).sum())
            lane.rows -= count
            while lane.queue:
                segment = lane.queue[0]
                use = min(count, len(segment.rows))
                whole = use == len(segment.rows)
                if use == 0 and len(segment.rows):
                    break  # a segment of bad rows alone has no event time to wait by, and passes
                if use:
                    if id(segment.batch) not in offsets:
                        offsets[id(segment.batch)] = total
                        total += len(segment.batch)
                        batches.append(segment.batch)
                        sources.append(segment)
                    gathered.append(segment.rows[:use] + offsets[id(segment.batch)])
                    count -= use
                if whole:
                    bad += [(segment.records, i, row) for i, row in segment.bad]
                    positions[partition] = segment.end
                    lane.queue.popleft()
                    continue
                next_offset = int(segment.batch.offset[segment.rows[use]])
                bad += [(segment.records, i, row) for i, row in segment.bad if segment.records.offset[i] < next_offset]
                segment.bad = [(i, row) for i, row in segment.bad if segment.records.offset[i] >= next_offset]
                positions[partition] = Position(next_offset, int(segment.order[use - 1]))
                segment.rows, segment.order = segment.rows[use:], segment.order[use:]
                break
        if not positions:
            return None
        return self._gather(topic, order, gathered, batches, sources, bad, positions)

    def _gather(
        self,
        topic: str,
        order: Places,
        gathered: list[Places],
        batches: list[Batch],
        sources: list[_Segment],
        bad: list[tuple[Records, int, BadRow]],
        positions: dict[Partition, Position],
    ) -> Work:
        if not batches:
            return Work(_empty(self._readers[topic]), bad, _no_record, positions)
        rank = np.empty(len(order), np.int64)
        rank[np.argsort(order, kind="stable")] = np.concatenate(
            gathered
        )  # lane by lane is the order of the concatenation
        joined = batches[0] if len(batches) == 1 else _join(batches)
        in_order = len(rank) == len(joined) and bool((rank == np.arange(len(rank))).all())
        batch = joined if in_order else joined.take(rank)
        starts = np.cumsum([0, *(len(b) for b in batches)])

        def record(row: int) -> tuple[Records, int]:
            place = int(rank[row])
            piece = int(np.searchsorted(starts, place, side="right")) - 1
            segment = sources[piece]
            return segment.records, int(segment.index[place - starts[piece]])

        return Work(batch, bad, record, positions)

    def crowded(self) -> list[Partition]:
        """Partitions whose buffer is full: they are to be paused."""
        found = [p for p, lane in self._lanes.items() if lane.rows >= self._buffer_rows and not lane.paused]
        for partition in found:
            self._lanes[partition].paused = True
        return found

    def roomy(self) -> list[Partition]:
        """Paused partitions whose buffer has drained to half: they are to be resumed."""
        found = [p for p, lane in self._lanes.items() if lane.paused and lane.rows <= self._buffer_rows // 2]
        for partition in found:
            self._lanes[partition].paused = False
        return found


def _milliseconds(column: "pa.Array[pa.Scalar]") -> Int64s:
    """An event-time column as int64 ms; nulls are ``NO_TIME``."""
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.timestamp("ms"), safe=False).cast(pa.int64())
    if column.null_count:
        column = column.fill_null(NO_TIME)
    times: Int64s = column.to_numpy(zero_copy_only=False).astype(np.int64, copy=False)
    return times


def _join(batches: list[Batch]) -> Batch:
    return Batch(
        batches[0].topic,
        pa.Table.from_batches([b.rows for b in batches]).combine_chunks().to_batches()[0],
        [key for b in batches for key in b.keys],
        np.concatenate([b.partition for b in batches]),
        np.concatenate([b.offset for b in batches]),
        np.concatenate([b.timestamp for b in batches]),
        np.concatenate([b.event_time for b in batches]),
        np.concatenate([b.watermark for b in batches]),
        traceparent=_joined_traces(batches),
    )


def _joined_traces(batches: list[Batch]) -> "pa.Array | None":
    if all(b.traceparent is None for b in batches):
        return None
    return pa.concat_arrays(
        [pa.nulls(len(b), pa.string()) if b.traceparent is None else b.traceparent for b in batches]
    )


def _no_record(row: int) -> tuple[Records, int]:
    raise IndexError(f"an empty batch has no row {row}")


def _empty(reader: TopicReader) -> Batch:
    none = np.empty(0, np.int64)
    return Batch(reader.topic, reader.decode([]).rows, [], none.astype(np.int32), none, none, none, none)
