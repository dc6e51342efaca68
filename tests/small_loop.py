"""A small stage in the real loop, on any transport: a row's value is its event time in ms, and goes out as it came.

For tests of what the loop does with partitions and positions, where the contents of rows do not matter.
"""

import time
from collections.abc import Callable

import numpy as np
import pyarrow as pa

from penstock.breaker import Breaker
from penstock.codec.decoded import Decoded
from penstock.health import Health
from penstock.intake import Intake, TopicReader
from penstock.loop import Loop
from penstock.observer import Observer
from penstock.outbox import Outbox
from penstock.pace import Pace
from penstock.records import Batch, Output, Result
from penstock.stage import Stage
from penstock.transport.protocol import Transport

SOURCE, TARGET, DEAD, DROPPED = "in", "out", "dead", "dropped"


class Passing(Stage):
    """Gives every row out and remembers their times, replays apart. ``reach_ms``: how far its state reaches back."""

    def __init__(self, target: str, reach_ms: int | None = None) -> None:
        self._target, self._reach_ms = target, reach_ms
        self.times: list[int] = []
        self.replayed: list[int] = []

    def reach(self, topic: str) -> int | None:
        return self._reach_ms

    def process(self, batch: Batch) -> Result:
        (self.replayed if batch.replay else self.times).extend(batch.event_time.tolist())
        rows = np.arange(len(batch), dtype=np.int32)
        return Result([Output(self._target, batch.keys, batch.rows, rows)])


def decode(values: pa.BinaryArray) -> Decoded:
    times = [int(value) for value in values.to_pylist()]
    rows = pa.RecordBatch.from_pydict({"value": values, "time": pa.array(times, pa.int64())})
    return Decoded(rows, np.arange(len(values), dtype=np.int32), {})


def small_loop(
    transport: Transport,
    stage: Stage,
    topics: dict[str, str],
    *,
    merges: bool = False,
    buffer_rows: int = 10_000,
    max_rows: int = 1000,
    lateness_ms: int = 0,
    allow_incomplete_windows: bool = False,
    breaker: Breaker | None = None,
    clock: Callable[[], float] = time.time,
    decode: Callable[[pa.BinaryArray], Decoded] = decode,
) -> Loop:
    """``topics``: the names of the four in this world."""
    source = topics[SOURCE]
    encoders: dict[str, Callable[[pa.RecordBatch], pa.BinaryArray]] = {
        topics[TARGET]: lambda rows: rows.column("value"),
    }
    return Loop(
        stage,
        transport,
        Intake([TopicReader(source, decode, "time")], merges, buffer_rows, max_rows),
        Outbox(transport, "small", encoders, topics[DEAD], topics[DROPPED], source, [source], stage.absorbs),
        Observer("small", Health()),
        Pace(0.02, max_rows, 0.05, lateness_ms, 0, allow_incomplete_windows),
        [source],
        breaker=breaker,
        clock=clock,
    )
