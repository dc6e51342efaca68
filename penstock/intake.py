"""What lies between poll and process: decoding, watermarks, replay, and the merge by event time where a stage re-keys.

The one decision to know: a partition's position moves only over rows that left this module, and a bad row leaves
together with its neighbours, so that no dead letter is ever sent ahead of the offsets that cover it.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from penstock.codec.decoded import BadRow, Decoded
from penstock.envelope import HEADERS
from penstock.lanes import Lane, Segment, Work, merge, silent
from penstock.records import NO_TIME, Batch, Int64s, Partition, Records
from penstock.transport.protocol import Position


@dataclass(frozen=True, slots=True)
class TopicReader:
    """How one input topic is decoded. An event time further ahead of its row's arrival than ``future_ms`` does not move
    the watermark: the row is about to be rejected, and one of them must not close every window.
    """

    topic: str
    decode: Callable[["pa.BinaryArray"], Decoded]
    event_time: str
    future_ms: int = 0
    raw: bool = False
    """Foreign records: what they say in headers is not yet in columns."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Polled rows of one topic that are all live, or all replay."""

    records: Records
    replay: bool

    def cut(self, most: int) -> tuple["Piece", "Piece | None"]:
        """At most ``most`` live rows, and the rest if there is one."""
        n = len(self.records)
        if self.replay or n <= most:
            return self, None
        first, rest = (self.records.take(np.arange(*part, dtype=np.int64)) for part in ((0, most), (most, n)))
        return Piece(first, replay=False), Piece(rest, replay=False)


class Intake:
    """Turns polled records into work. ``merges``: a topic's partitions are merged by event time before they go on; a
    partition that has more in the log is waited for, ``patience_s`` at the most.
    """

    def __init__(
        self, readers: Iterable[TopicReader], merges: bool, buffer_rows: int, max_rows: int, patience_s: float = 5.0
    ) -> None:
        self._readers = {reader.topic: reader for reader in readers}
        self.merges, self._buffer_rows, self._max_rows, self.patience_s = merges, buffer_rows, max_rows, patience_s
        self._lanes: dict[Partition, Lane] = {}
        self.hold_after: dict[str, int] = {}
        """Per topic: rows later than this event time wait, for another worker is that far behind."""

    @property
    def lanes(self) -> Iterable[Partition]:
        return self._lanes.keys()

    @property
    def buffered(self) -> int:
        """Rows that wait for the merge."""
        return sum(lane.rows for lane in self._lanes.values())

    @property
    def most_in_hand(self) -> int:
        """Rows of a partition that may have been read and not yet finished."""
        return self._max_rows + (self._buffer_rows + self._max_rows if self.merges else 0)

    def replay_left(self, partition: Partition) -> int:
        lane = self._lanes[partition]
        return max(0, lane.live_from - lane.next_offset)

    @property
    def held(self) -> bool:
        """Whether a topic has rows, and all of them are later than it may go."""
        for topic, limit in self.hold_after.items():
            waiting = [lane.reached.watermark for p, lane in self._lanes.items() if p.topic == topic and lane.rows]
            if waiting and min(waiting) > limit:
                return True
        return False

    def reached(self) -> dict[Partition, Position]:
        """Where every live partition stands once all that was given out is finished."""
        return {partition: lane.reached for partition, lane in self._lanes.items() if not lane.replaying}

    def waiting(self) -> set[Partition]:
        """Partitions with rows that wait for the merge."""
        return {partition for partition, lane in self._lanes.items() if lane.queue}

    def silent(self, partition: Partition, now: float) -> bool:
        """Others have waited for the partition's rows for longer than is worth while."""
        return silent(self._lanes[partition], now, self.patience_s)

    def watermark(self, partition: Partition) -> int:
        return self._lanes[partition].watermark

    def drained(self, partition: Partition) -> bool:
        """Nothing of the partition is left, in the log or here."""
        lane = self._lanes[partition]
        return lane.at_end and not lane.rows

    def open(
        self, partition: Partition, start: Position, live: Position, aside: Mapping[int, BadRow] | None = None
    ) -> None:
        """``partition`` is read from ``start``; rows below ``live.offset`` are replay; ``aside``: offsets that are bad
        before they are decoded."""
        self._lanes[partition] = Lane(
            live.offset,
            live.watermark,
            start.watermark,
            next_offset=start.offset,
            given_out=live.offset,
            aside=aside or {},
        )

    def close(self, partition: Partition) -> None:
        self._lanes.pop(partition, None)

    def ended(self, partition: Partition, end: int) -> None:
        """The log was read to its end: a transaction's marker may lie between the last row and ``end``."""
        lane = self._lanes.get(partition)
        if lane is not None and end >= lane.next_offset:
            lane.at_end = True
            lane.next_offset = max(lane.next_offset, end)
            if not lane.replaying:
                lane.watermark = max(lane.watermark, lane.committed)

    def past_replay(self, partitions: Iterable[Partition]) -> dict[Partition, Position]:
        """Where those of ``partitions`` became live that have nothing left to replay."""
        lanes = ((partition, self._lanes.get(partition)) for partition in partitions)
        return {p: Position(lane.live_from) for p, lane in lanes if lane is not None and not lane.replaying}

    def split(self, records: Records) -> list["Piece"]:
        """Parts a poll at each partition's ``live_from``."""
        present = np.flatnonzero(np.bincount(records.partition)).tolist()
        live_from = np.zeros(max(present) + 1, np.int64)
        for number in present:
            lane = self._lanes[Partition(records.topic, number)]
            lane.at_end = False
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

    def _segments(self, records: Records, now: float, *, replay: bool) -> dict[Partition, Segment]:
        reader = self._readers[records.topic]
        decoded = self._decoded(reader, records)
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
            records.keys if good else records.keys.take(pa.array(index)),
            partition,
            records.offset if good else records.offset[index],
            timestamp,
            event_time,
            watermark,
            replay,
            _headed(records, index) if reader.raw else {},
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
            segments[where] = Segment(records, batch, index, rows, order[1:], bad, Position(last + 1, lane.watermark))
        return segments

    def _decoded(self, reader: TopicReader, records: Records) -> Decoded:
        aside = {p.number: lane.aside for p, lane in self._lanes.items() if lane.aside and p.topic == records.topic}
        if not aside:
            return reader.decode(records.values)
        places = zip(records.partition.tolist(), records.offset.tolist(), strict=True)
        bad = {i: aside[n][at] for i, (n, at) in enumerate(places) if n in aside and at in aside[n]}
        rest = np.setdiff1d(np.arange(len(records), dtype=np.int32), list(bad))
        decoded = reader.decode(records.values.take(pa.array(rest)))
        bad.update({int(rest[i]): why for i, why in decoded.bad.items()})
        return Decoded(decoded.rows, rest[decoded.index], bad)

    def _whole(self, segments: dict[Partition, Segment]) -> Work:
        """Everything of one decode as it is."""
        first = next(iter(segments.values()))
        bad = [(s.records, i, row) for s in segments.values() for i, row in s.bad]
        records, index = first.records, first.index
        return Work(first.batch, bad, lambda row: (records, int(index[row])), {p: s.end for p, s in segments.items()})

    def take(self, now: float, most: int = sys.maxsize, *, singles: int = 0) -> Iterator[Work]:
        """What the merge lets go: at most one batch of each topic, of ``most`` rows, or ``singles`` batches of one."""
        if not self.merges or not most:
            return
        for topic in self._readers:
            lanes = {p: lane for p, lane in self._lanes.items() if p.topic == topic}
            for _ in range(min(most, singles or 1)):
                rows = 1 if singles else min(most, self._max_rows)
                work = merge(lanes, now, rows, self.patience_s, self.hold_after.get(topic))
                if work is None:
                    break
                yield work

    def crowded(self) -> list[Partition]:
        """Partitions whose buffer is full: they are to be paused."""
        found = [p for p, lane in self._lanes.items() if lane.rows >= self._buffer_rows and not lane.paused]
        for partition in found:
            self._lanes[partition].paused = True
        return found

    @property
    def paused(self) -> set[Partition]:
        """Partitions whose buffer was full and has not drained yet."""
        return {partition for partition, lane in self._lanes.items() if lane.paused}

    def roomy(self) -> list[Partition]:
        """Paused partitions whose buffer has drained to half: they are to be resumed."""
        found = [p for p, lane in self._lanes.items() if lane.paused and lane.rows <= self._buffer_rows // 2]
        for partition in found:
            self._lanes[partition].paused = False
        return found


def _headed(records: Records, index: npt.NDArray[np.int32]) -> dict[str, "pa.Array"]:
    """What the records at ``index`` have in headers that ingest reads, by the envelope's column."""
    found = {column: texts for column, name in HEADERS.items() if (texts := records.texts(name)) is not None}
    return found if len(index) == len(records) else {name: texts.take(pa.array(index)) for name, texts in found.items()}


def _milliseconds(column: "pa.Array[pa.Scalar]") -> Int64s:
    """An event-time column as int64 ms; nulls are ``NO_TIME``."""
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.timestamp("ms"), safe=False).cast(pa.int64())
    if column.null_count:
        column = column.fill_null(NO_TIME)
    times: Int64s = column.to_numpy(zero_copy_only=False).astype(np.int64, copy=False)
    return times
