"""Assigned partitions between decode and process, and the merge of their rows by event time.

A partition's position moves only over rows that were given out, and a bad row goes together with its neighbours, so
that no dead letter is ever sent ahead of the offsets that cover it.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from penstock.codec.decoded import BadRow
from penstock.records import Batch, Int64s, Partition, Records
from penstock.transport.protocol import Position
from penstock.windows.merge import merge_order

Places = npt.NDArray[np.int64]


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
class Segment:
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
class Lane:
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
    given_out: int = 0
    aside: Mapping[int, BadRow] = field(default_factory=dict)
    """Offsets that are not to be decoded."""
    waited_since: float | None = None
    queue: deque[Segment] = field(default_factory=deque)

    @property
    def replaying(self) -> bool:
        return self.next_offset < self.live_from

    @property
    def reached(self) -> Position:
        """Where the partition stands once all that was given out is finished: at the end of a log that was read to its
        end, also past the markers there; before rows that wait, with the time by which the first of them is merged as
        its watermark, for nothing older will come of the partition."""
        if not self.queue:
            return Position(self.next_offset, self.watermark)
        first = next((int(segment.order[0]) for segment in self.queue if len(segment.order)), self.watermark)
        return Position(self.given_out, first)

    def give_out(
        self, count: int, parts: list[tuple[Segment, Places]], bad: list[tuple[Records, int, BadRow]]
    ) -> Position | None:
        """Moves the first ``count`` rows to ``parts`` and the bad ones among and right behind them to ``bad``. Returns
        the position after them, None when there is nothing to move."""
        at = None
        self.rows -= count
        while self.queue:
            segment = self.queue[0]
            use = min(count, len(segment.rows))
            if use == 0 and len(segment.rows):
                break  # a segment of bad rows alone has no event time to wait by, and passes
            if use:
                parts.append((segment, segment.rows[:use]))
                count -= use
            if use == len(segment.rows):
                bad += [(segment.records, i, row) for i, row in segment.bad]
                at = segment.end
                self.queue.popleft()
                continue
            at = Position(int(segment.batch.offset[segment.rows[use]]), int(segment.order[use - 1]))
            passed = segment.records.offset
            bad += [(segment.records, i, row) for i, row in segment.bad if passed[i] < at.offset]
            segment.bad = [(i, row) for i, row in segment.bad if passed[i] >= at.offset]
            segment.rows, segment.order = segment.rows[use:], segment.order[use:]
            break
        if at is not None:
            self.given_out = at.offset
        return at


def merge(
    lanes: Mapping[Partition, Lane], now: float, max_rows: int, patience_s: float, hold_after: int | None
) -> Work | None:
    """At most ``max_rows`` rows of one topic's lanes in the order of their event times, order within a lane kept; None
    where nothing may go.

    A lane that has more in the log is waited for, ``patience_s`` at the most; rows later than ``hold_after`` stay.
    """
    held_up = any(lane.queue for lane in lanes.values())
    for lane in lanes.values():
        # since others first wait for it, not since its last row: a long step or a slow start is no silence
        if lane.queue or not held_up:
            lane.waited_since = None
        elif lane.waited_since is None:
            lane.waited_since = now
    if not held_up:
        return None
    heads = [_head(lane, max_rows) for lane in lanes.values()]
    waiting = [
        len(head) == max_rows or not (lane.at_end or lane.replaying or silent(lane, now, patience_s))
        for head, lane in zip(heads, lanes.values(), strict=True)
    ]
    order = merge_order(heads, waiting)[:max_rows]
    if hold_after is not None and len(order):
        order = order[np.concatenate(heads)[order] <= hold_after]
    starts = np.cumsum([0, *(len(head) for head in heads)])
    counts = np.diff(np.searchsorted(np.sort(order), starts))
    parts: list[tuple[Segment, Places]] = []
    bad: list[tuple[Records, int, BadRow]] = []
    positions: dict[Partition, Position] = {}
    for (partition, lane), count in zip(lanes.items(), counts.tolist(), strict=True):
        at = lane.give_out(count, parts, bad)
        if at is not None:
            positions[partition] = at
    if not positions:
        return None
    return _in_order(parts, order, bad, positions)


def silent(lane: Lane, now: float, patience_s: float) -> bool:
    """The lane was waited for longer than ``patience_s``."""
    return lane.waited_since is not None and now - lane.waited_since > patience_s


def _head(lane: Lane, max_rows: int) -> Int64s:
    """The merge times of the lane's first rows: no more than one batch can take."""
    taken: list[Int64s] = [np.empty(0, np.int64)]
    left = max_rows
    for segment in lane.queue:
        taken.append(segment.order[:left])
        left -= len(taken[-1])
        if left == 0:
            break
    return np.concatenate(taken)


def _in_order(
    parts: list[tuple[Segment, Places]],
    order: Places,
    bad: list[tuple[Records, int, BadRow]],
    positions: dict[Partition, Position],
) -> Work:
    """``parts`` hold the rows lane by lane; ``order`` says which of them comes when."""
    if not parts:
        (records, _, _), *_ = bad
        return Work(Batch.empty(records.topic), bad, _no_record, positions)
    rank = np.empty(len(order), np.int64)
    rank[np.argsort(order, kind="stable")] = np.arange(len(order))
    batch = _gathered(parts, rank)
    ends = np.cumsum([len(rows) for _, rows in parts])

    def record(row: int) -> tuple[Records, int]:
        place = int(rank[row])
        number = int(np.searchsorted(ends, place, side="right"))
        segment, rows = parts[number]
        return segment.records, int(segment.index[rows[place - int(ends[number])]])

    return Work(batch, bad, record, positions)


def _gathered(parts: list[tuple[Segment, Places]], rank: Places) -> Batch:
    """The parts' rows, in the order of ``rank``; those of one poll are copied at most once."""
    first = parts[0][0].batch
    if all(segment.batch is first for segment, _ in parts):
        places = np.concatenate([rows for _, rows in parts])[rank]
        return _cut(first, places)
    joined = Batch.join([_cut(segment.batch, rows) for segment, rows in parts])
    return _cut(joined, rank)


def _cut(batch: Batch, rows: Places) -> Batch:
    """Neighbours are a slice, which copies nothing: a worker that catches up reads one partition at a time."""
    first, n = int(rows[0]), len(rows)
    if int(rows[-1]) - first != n - 1 or not bool((np.diff(rows) == 1).all()):
        return batch.take(rows)
    return batch if n == len(batch) else batch.slice(first, n)


def _no_record(row: int) -> tuple[Records, int]:
    raise IndexError(f"an empty batch has no row {row}")
