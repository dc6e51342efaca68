"""The shapes a batch has on its way: what a transport polls, what a stage is given, and what it hands back.

Everything is a column: a poll's values and keys are one buffer each, from the client to the stage and back.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple, Union

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Key = bytes | str | None
Header = tuple[str, bytes | None]

NO_TIME = -(2**62)
"""The event time or watermark of nothing: smaller than every real one (ms since epoch), yet far enough from int64's end
to subtract a window from.
"""


def watermark_of(metadata: str | None) -> int:
    """The watermark (ms since epoch) that a worker committed in an offset's metadata; ``NO_TIME`` where there is none,
    or where another tool has written what is no number.
    """
    try:
        found = int(metadata or NO_TIME)
    except ValueError:
        return NO_TIME
    return found if abs(found) <= -NO_TIME else NO_TIME


Values = Union["pa.Array", Sequence[Key]]
"""A column of bytes or text, or a sequence that becomes one."""


def column(rows: Values) -> "pa.BinaryArray":
    """Keys or values as one binary column; text is UTF-8."""
    if not isinstance(rows, pa.Array):
        return pa.array(rows, pa.binary())
    if rows.type == pa.binary():
        return rows
    return rows.view(pa.binary()) if rows.type == pa.string() else rows.cast(pa.binary())


State = Mapping[str, "pa.Table"]
"""A partition's state while it is kept or moved: what a stage holds of it, by name."""


def string_buffers(values: "pa.StringArray") -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8]]:
    """Bounds, int32[n + 1], and bytes of a string array, without a copy: what kernels read."""
    _, bounds, data = values.buffers()
    if bounds is None or len(values) == 0:
        return np.zeros(1, np.int32), np.zeros(1, np.uint8)
    return (
        np.frombuffer(bounds, np.int32)[values.offset : values.offset + len(values) + 1],
        np.frombuffer(data, np.uint8) if data is not None and data.size else np.zeros(1, np.uint8),
    )


class Partition(NamedTuple):
    """One partition of one topic."""

    topic: str
    number: int

    def __str__(self) -> str:
        return f"{self.topic}/{self.number}"


@dataclass(frozen=True, slots=True)
class Records:
    """Rows as they came from one topic, before anything was decoded.

    Shapes: all of length n and in log order within a partition. ``values``, ``keys``: binary[n], null where there is
    none. ``timestamp``: int64[n], ms since epoch, the broker's append time. ``headers(i)``: the headers of row i.
    """

    topic: str
    values: "pa.BinaryArray"
    keys: "pa.BinaryArray"
    partition: Int32s
    offset: Int64s
    timestamp: Int64s
    headers: Callable[[int], list[Header]]
    texts: Callable[[str], "pa.Array | None"] = lambda name: None
    """The headers of a name, string[n], or None when no row has one."""

    def __len__(self) -> int:
        return len(self.values)

    def take(self, places: npt.NDArray[np.int64]) -> "Records":
        """The rows at ``places``, in that order."""
        index = pa.array(places, pa.int64())
        return Records(
            self.topic,
            self.values.take(index),
            self.keys.take(index),
            self.partition[places],
            self.offset[places],
            self.timestamp[places],
            lambda row: self.headers(int(places[row])),
            lambda name: _taken(self.texts(name), places),
        )

    def without(self, partitions: set[int]) -> "Records":
        """The rows of the other partitions."""
        gone = np.isin(self.partition, list(partitions))
        return self.take(np.flatnonzero(~gone)) if gone.any() else self


@dataclass(frozen=True, slots=True)
class Batch:
    """The decoded rows of one topic, in processing order; what a stage's ``process`` is given.

    Shapes: every array has one entry per row. ``keys``: binary[n], null where there is none. ``event_time``: int64[n],
    ms since epoch. ``watermark``: int64[n], the largest event time of the row's partition *before* the row in the log
    (``NO_TIME`` before the first), so that lateness never depends on where batches were cut. ``replay``: the rows only
    rebuild state; nothing is sent.
    """

    topic: str
    rows: pa.RecordBatch
    keys: "pa.BinaryArray"
    partition: Int32s
    offset: Int64s
    timestamp: Int64s
    event_time: Int64s
    watermark: Int64s
    replay: bool = False
    headed: Mapping[str, "pa.Array"] = field(default_factory=dict)
    """What raw records have in headers, string[n] by the envelope's column; one that no row has is not there."""

    def __len__(self) -> int:
        return len(self.keys)

    @staticmethod
    def empty(topic: str) -> "Batch":
        """No row of ``topic``, and no column either."""
        none = np.empty(0, np.int64)
        rows = pa.RecordBatch.from_arrays([], names=[])
        return Batch(topic, rows, pa.nulls(0, pa.binary()), none.astype(np.int32), none, none, none, none)

    @staticmethod
    def join(batches: "Sequence[Batch]") -> "Batch":
        """The rows of several batches of one topic, one after the other."""
        if len(batches) == 1:
            return batches[0]
        headed = {name for b in batches for name in b.headed}
        return Batch(
            batches[0].topic,
            pa.concat_batches([b.rows for b in batches]),
            pa.concat_arrays([b.keys for b in batches]),
            np.concatenate([b.partition for b in batches]),
            np.concatenate([b.offset for b in batches]),
            np.concatenate([b.timestamp for b in batches]),
            np.concatenate([b.event_time for b in batches]),
            np.concatenate([b.watermark for b in batches]),
            batches[0].replay,
            {
                name: pa.concat_arrays([b.headed.get(name, pa.nulls(len(b), pa.string())) for b in batches])
                for name in headed
            },
        )

    def slice(self, start: int, n: int) -> "Batch":
        """``n`` rows from ``start``; nothing is copied."""
        stop = start + n
        return Batch(
            self.topic,
            self.rows.slice(start, n),
            self.keys.slice(start, n),
            self.partition[start:stop],
            self.offset[start:stop],
            self.timestamp[start:stop],
            self.event_time[start:stop],
            self.watermark[start:stop],
            self.replay,
            {name: texts.slice(start, n) for name, texts in self.headed.items()},
        )

    def take(self, index: npt.NDArray[np.intp] | Int32s) -> "Batch":
        """The rows at ``index``, in that order."""
        places = pa.array(index, pa.int64())
        return Batch(
            self.topic,
            self.rows.take(places),
            self.keys.take(places),
            self.partition[index],
            self.offset[index],
            self.timestamp[index],
            self.event_time[index],
            self.watermark[index],
            self.replay,
            {name: texts.take(places) for name, texts in self.headed.items()},
        )


def _taken(column: "pa.Array | None", places: Int64s) -> "pa.Array | None":
    return None if column is None else column.take(pa.array(places, pa.int64()))


class Reason(NamedTuple):
    """Why a row is a dead letter or was dropped. ``kind`` is a short stable phrase that can be counted
    (``bad magic``, ``no departure``); ``message`` is for people and names the field, the value's shape and the mend;
    ``details`` become headers ``penstock.NAME`` of a dead letter."""

    kind: str
    message: str
    details: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Output:
    """Rows for one topic.

    ``keys``: binary[m] or string[m], null for none. ``rows``: columns by name; the loop encodes them
    with the topic's schema of the plan. ``source``: int32[m], the row of the batch that each came from; -1 for rows
    that no input row caused (``tick``, ``flush``). ``fate``: False where rows are written beside their source's fate,
    as a view's row is for an event that feeds the windows and is then dropped.
    """

    topic: str
    keys: "pa.Array"
    rows: pa.RecordBatch
    source: Int32s
    fate: bool = True


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a batch: every input row has exactly one fate, and the loop checks it.

    A row is in ``outputs`` (once or more), or in ``rejects`` (to the dead letters), or in ``dropped`` (to
    ``NAME.dropped`` with its reason), or absorbed into state (only in a stage that declares ``absorbs``).
    ``late``: how many rows were older than their watermark less the lateness.
    """

    outputs: Sequence[Output] = ()
    rejects: Mapping[int, Reason] = field(default_factory=dict)
    dropped: Mapping[int, Reason] = field(default_factory=dict)
    late: int = 0
