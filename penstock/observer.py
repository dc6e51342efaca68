"""What a loop tells the world about itself: metrics and readiness. The loop calls it; nothing here changes what the
loop does.
"""

import gc
import resource
import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np

from penstock import telemetry
from penstock.health import Health
from penstock.intake import Intake
from penstock.outbox import Tally
from penstock.records import NO_TIME, Batch, Partition
from penstock.transport.protocol import Position, Transport

GROWTH_BYTES = 64 << 20
SAMPLES = 8


class Observer:
    """One per loop."""

    def __init__(self, stage: str, health: Health) -> None:
        self._stage, self._health = stage, health
        self._ingest_times: list[int] = []
        # append times of what was worked on: the newest, and the oldest since the last commit
        self._seen: dict[Partition, int] = {}
        self._oldest: dict[Partition, int] = {}
        self._committed: dict[Partition, int] = {}
        self._replays: dict[Partition, tuple[int, float]] = {}
        self._memory = _resident_bytes()
        self._batch_rows = telemetry.BATCH_ROWS.labels(stage)
        self._commit_seconds = telemetry.COMMIT_SECONDS.labels(stage)
        self._end_to_end = telemetry.END_TO_END_SECONDS.labels(stage)
        self._phases: dict[str, float] = {}

    @property
    def ready(self) -> bool:
        return self._health.ready

    def waiting(self, what: str, why: str | None) -> None:
        self._health.wait(what, why)

    def stopped(self, what: str, why: str | None) -> None:
        """Nothing is read because of ``why``; None: it is again."""
        self._health.wait(what, why)
        telemetry.STOPPED.labels(self._stage, what).set(why is not None)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            with self._health.during(name):
                yield
        finally:
            spent = time.perf_counter() - began
            self._phases[name] = self._phases.get(name, 0.0) + spent
            if name == "commit":
                self._commit_seconds.observe(spent)

    def worked(self, batch: Batch) -> None:
        self._batch_rows.observe(len(batch))
        if not len(batch):
            return
        rows = np.unique(np.linspace(0, len(batch) - 1, SAMPLES).astype(np.int64))
        for name in ("_ingest_time", "ingest_time"):
            if name in batch.rows.schema.names:
                column = batch.rows.column(name)
                self._ingest_times += [column[int(row)].value for row in rows]
                break
        else:
            self._ingest_times += batch.timestamp[rows].tolist()
        for number in np.flatnonzero(np.bincount(batch.partition)).tolist():
            places, partition = np.flatnonzero(batch.partition == number), Partition(batch.topic, number)
            self._seen[partition] = int(batch.timestamp[places[-1]])
            self._oldest.setdefault(partition, int(batch.timestamp[places[0]]))

    def replayed(self, rows: int) -> None:
        telemetry.REPLAYED.labels(self._stage).inc(rows)

    def aborted(self) -> None:
        telemetry.TRANSACTIONS.labels(self._stage, "aborted").inc()

    def committed(self, tally: Tally, positions: Mapping[Partition, Position], now: float) -> None:
        stage = self._stage
        telemetry.TRANSACTIONS.labels(stage, "committed").inc()
        for topic, n in tally.rows_in.items():
            telemetry.RECORDS_IN.labels(stage, topic).inc(n)
        for topic, n in tally.rows_out.items():
            telemetry.RECORDS_OUT.labels(stage, topic).inc(n)
        for reason, n in tally.dead.items():
            telemetry.DEAD_LETTERS.labels(stage, reason).inc(n)
        for reason, n in tally.dropped.items():
            telemetry.DROPPED.labels(stage, reason).inc(n)
        telemetry.LATE_ROWS.labels(stage).inc(tally.late)
        for stamp in self._ingest_times:
            self._end_to_end.observe(max(0.0, now - stamp / 1000))
        self._ingest_times.clear()
        for partition, at in positions.items():
            self._committed[partition] = at.offset
            self._oldest.pop(partition, None)
            if at.watermark != NO_TIME:
                telemetry.WATERMARK.labels(stage, partition.topic, str(partition.number)).set(at.watermark / 1000)
        for phase, spent in self._phases.items():
            telemetry.PHASE_SECONDS.labels(stage, phase).inc(spent)
        self._phases.clear()

    def assignment(self, lanes: Iterable[Partition], starts: Mapping[Partition, int]) -> None:
        """These are the worker's partitions; ``starts``: of the new ones, the offsets that the group has committed."""
        owned = set(lanes)
        self._committed.update(starts)
        self._replays.clear()
        telemetry.REBALANCES.labels(self._stage).inc()
        telemetry.ASSIGNED.labels(self._stage).set(len(owned))
        for partition in [p for p in self._committed if p not in owned]:
            del self._committed[partition]
            self._oldest.pop(partition, None)
            tell_lag(self._stage, partition, 0, 0.0)  # its new owner tells it from now on
        if "start" in self._health.waiting_for:
            self._health.wait("lag", "the ends of the partitions are not known yet")
            self._health.wait("start", None)
        self._health.wait("partitions", None if owned else "no partition is assigned to this worker")

    def every_second(
        self,
        intake: Intake,
        transport: Transport,
        uncommitted: Container[Partition],
        now: float,
        sizes: Mapping[str, tuple[int, int]],
    ) -> None:
        """Lag of every partition, replay left, and with them readiness; ``sizes``: bytes and entries of each part of
        the state. What is read but not committed is lag too."""
        for view, (held, keys) in sizes.items():
            telemetry.STATE_BYTES.labels(self._stage, view).set(held)
            telemetry.STATE_KEYS.labels(self._stage, view).set(keys)
        replaying, unheard = [], []
        for partition in intake.lanes:
            labels = (self._stage, partition.topic, str(partition.number))
            left = intake.replay_left(partition)
            telemetry.REPLAY_LEFT.labels(*labels).set(left)
            if left:
                replaying.append(f"{partition} has {left:,} rows left{self._time_left(partition, left, now)}")
            high = transport.high(partition)
            if high is None:
                unheard.append(str(partition))
                continue
            # what was committed last is about as old as the next row, if that has not been worked on
            stamp = self._oldest.get(partition, self._seen.get(partition, 0))
            done = intake.drained(partition) and partition not in uncommitted  # a marker at the end is no lag
            lag = 0 if done else max(0, high - self._committed[partition])
            tell_lag(self._stage, partition, lag, now - stamp / 1000 if stamp else 0.0)
        self._health.wait("replay", ", ".join(replaying) or None)
        self._health.wait("lag", f"the end of {', '.join(unheard)} is not known yet" if unheard else None)
        telemetry.READY.labels(self._stage).set(self._health.ready)

    def _time_left(self, partition: Partition, left: int, now: float) -> str:
        first, began = self._replays.setdefault(partition, (left, now))
        done, spent = first - left, now - began
        return f", about {left * spent / done:.0f} s" if done > 0 and spent > 0 else ""

    def collect_garbage(self, collect: Callable[[], object]) -> None:
        """The collector is off in workers, for a walk over all that lives costs more than it finds: it runs here,
        when memory grew.
        """
        if gc.isenabled():
            return
        memory = _resident_bytes()
        if memory - self._memory > GROWTH_BYTES:
            collect()
            self._memory = _resident_bytes()


def tell_lag(stage: str, partition: Partition, records: int, seconds: float) -> None:
    """``seconds``: age of the oldest row that is waited for, as far as it is known."""
    labels = stage, partition.topic, str(partition.number)
    telemetry.LAG_RECORDS.labels(*labels).set(records)
    telemetry.LAG_SECONDS.labels(*labels).set(max(0.0, seconds) if records else 0.0)


def _resident_bytes() -> int:
    """Peak resident memory: one cheap call, unlike reading /proc."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
