"""Counts what became of every raw message, from the topics alone: a read_committed consumer of its own that knows
messages by the partition and offset of their raw record, and asks no worker.

Every raw message has one fate: a prediction, a dead letter, or a row of ``NAME.dropped``. None of them is lost, two of
them is duplicated, and a fate of a message that was never sent counts as duplicated too.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from confluent_kafka import Message

from penstock import envelope
from penstock.local.topic_reader import TopicReader, coordinates
from penstock.plan import Plan
from penstock.profiles.ranking import auc
from penstock.settings import Settings

Int64s = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Joined:
    """Predictions that met their label, ordered by event time. ``times``: ms since epoch."""

    times: Int64s
    scores: Floats
    baseline: Floats
    truth: Floats
    correct: npt.NDArray[np.bool_]

    def auc(self) -> float | None:
        return auc(self.scores, self.truth)

    def baseline_auc(self) -> float | None:
        return auc(self.baseline, self.truth)


@dataclass(frozen=True, slots=True)
class Counts:
    """What the topics hold. ``first`` and ``last``: append times (ms since epoch) of the first raw message and of the
    last fate; ``appended``: append times of all predictions; ``broken``: by the kind that the replay marked, the
    reason that each became a dead letter for."""

    events: int
    predictions: int
    dead: int
    dropped: int
    lost: int
    duplicated: int
    late_rows: int
    alerts: int
    dead_reasons: Counter[str]
    dropped_reasons: Counter[str]
    dead_elsewhere: Counter[str]
    broken: dict[str, Counter[str]]
    alerted: list[dict[str, Any]]
    first: int
    last: int
    appended: Int64s
    joined: Joined

    @property
    def events_per_second(self) -> float:
        return self.events / max(0.001, (self.last - self.first) / 1000)


@dataclass(slots=True)
class _Fates:
    """Times each raw message was seen, by partition; offsets beyond the log are strangers."""

    ends: dict[int, int]
    counts: dict[int, Int64s] = field(default_factory=dict)
    strangers: int = 0

    def add(self, partitions: Int64s, offsets: Int64s) -> None:
        for number in np.unique(partitions).tolist():
            here = offsets[partitions == number]
            end = self.ends.get(number, 0)
            inside = here[(here >= 0) & (here < end)]
            self.strangers += len(here) - len(inside)
            counted = np.bincount(inside, minlength=end)
            self.counts[number] = self.counts[number] + counted if number in self.counts else counted

    def judge(self, offsets: dict[int, Int64s]) -> tuple[int, int]:
        """Lost and duplicated among the raw messages at ``offsets``."""
        lost = duplicated = 0
        for number, end in self.ends.items():
            counts = self.counts.get(number, np.zeros(end, np.int64))
            there = np.zeros(end, np.bool_)
            there[offsets[number]] = True
            lost += int((counts[there] == 0).sum())
            duplicated += int((counts[there] - 1).clip(0).sum()) + int(counts[~there].sum())
        return lost, duplicated + self.strangers


def count(plan: Plan, settings: Settings, progress: Callable[[str], None], before_alerts: Callable[[], None]) -> Counts:
    """Reads the topics of ``plan`` to their ends, the alerts last. Raises ``Unsettled``."""
    reader = TopicReader(plan, settings)
    progress("counting: raw messages")
    offsets: dict[int, list[Int64s]] = {n: [] for n in range(plan.topic("raw").partitions)}
    first, last = 2**62, 0
    for messages in reader.chunks("raw"):
        partitions, places, stamps = coordinates(messages)
        first = min(first, int(stamps.min()))
        for number in np.unique(partitions).tolist():
            offsets[number].append(places[partitions == number])
    raw = {n: np.concatenate(found) if found else np.empty(0, np.int64) for n, found in offsets.items()}
    fates = _Fates({n: int(found[-1]) + 1 if len(found) else 0 for n, found in raw.items()})

    progress("counting: predictions")
    predictions, appended = 0, [np.empty(0, np.int64)]
    if plan.model is not None:
        for messages, rows in reader.rows("predictions", ("origin_partition", "origin_offset")):
            fates.add(*_origins(rows))
            predictions += len(messages)
            appended.append(coordinates(messages)[2])
    last = max(last, *(int(stamps.max()) for stamps in appended if len(stamps)), 0)

    progress("counting: dead letters and dropped events")
    dropped_reasons: Counter[str] = Counter()
    for messages, rows in reader.rows("dropped", ("reason", "origin_partition", "origin_offset")):
        fates.add(*_origins(rows))
        dropped_reasons.update(rows.column("reason").to_pylist())
        last = max(last, int(coordinates(messages)[2].max()))
    dead = _Dead(plan.topic("raw").name)
    for messages in reader.chunks("dead"):
        for message in messages:
            dead.add(message)
        last = max(last, int(coordinates(messages)[2].max()))
    fates.add(np.array(dead.partitions, np.int64), np.array(dead.offsets, np.int64))
    lost, duplicated = fates.judge(raw)

    progress("counting: late rows, labels, alerts")
    late = sum(_late(plan, reader, stage.inputs[0].topic) for stage in plan.stages if stage.views)
    joined = joined_outcomes(reader) if plan.label is not None and plan.model is not None else join([])
    before_alerts()
    alerted = {
        row["alert_id"]: row
        for _, rows in reader.rows("alerts", tuple(f["name"] for f in _fields(plan, "alerts")))
        for row in rows.to_pylist()
    }
    return Counts(
        events=sum(map(len, raw.values())),
        predictions=predictions,
        dead=len(dead.offsets),
        dropped=dropped_reasons.total(),
        lost=lost,
        duplicated=duplicated,
        late_rows=late,
        alerts=len(alerted),
        dead_reasons=dead.reasons,
        dropped_reasons=dropped_reasons,
        dead_elsewhere=dead.elsewhere,
        broken=dead.broken,
        alerted=sorted(alerted.values(), key=lambda row: (row["window_start"], row["feature"])),
        first=first if last else 0,
        last=last,
        appended=np.concatenate(appended),
        joined=joined,
    )


class _Dead:
    """Dead letters by reason; those of ``raw_topic`` with their coordinates."""

    def __init__(self, raw_topic: str) -> None:
        self._raw = raw_topic.encode()
        self.partitions: list[int] = []
        self.offsets: list[int] = []
        self.reasons: Counter[str] = Counter()
        self.elsewhere: Counter[str] = Counter()
        self.broken: dict[str, Counter[str]] = {}

    def add(self, message: Message) -> None:
        headers: dict[str, bytes] = dict(message.headers() or [])
        reason = headers["penstock.reason"].decode()
        if headers.get("penstock.origin.topic") != self._raw:
            self.elsewhere[reason] += 1
            return
        self.partitions.append(int(headers["penstock.origin.partition"]))
        self.offsets.append(int(headers["penstock.origin.offset"]))
        self.reasons[reason] += 1
        if (kind := headers.get("penstock.demo.broken")) is not None:
            self.broken.setdefault(kind.decode(), Counter())[reason] += 1


def joined_outcomes(reader: TopicReader) -> Joined:
    """Predictions and labels of ``NAME.outcomes`` by label key."""
    columns = ("kind", "label_key", "event_time", "score", "label", "baseline", "value")
    return join([rows for _, rows in reader.rows("outcomes", columns)])


def join(batches: list[pa.RecordBatch]) -> Joined:
    """``batches``: rows with the columns of ``schemas/outcome.avsc``."""
    if not batches:
        none = np.empty(0, np.float64)
        return Joined(none.astype(np.int64), none, none, none, none.astype(np.bool_))
    table = pa.Table.from_batches(batches)
    kind = table["kind"].cast(pa.string())
    predicted = table.filter(pc.equal(kind, "prediction")).select(
        ["label_key", "event_time", "score", "label", "baseline"]
    )
    labels = table.filter(pc.equal(kind, "label")).select(["label_key", "value"])
    both = predicted.join(labels, "label_key", join_type="inner").sort_by("event_time").combine_chunks()
    truth = _floats(both["value"])
    guess = pc.equal(both["label"], "1").fill_null(False).to_numpy()
    return Joined(
        both["event_time"].cast(pa.int64()).to_numpy(),
        _floats(both["score"]),
        _floats(both["baseline"]),
        truth,
        guess == (truth >= 0.5),
    )


def _late(plan: Plan, reader: TopicReader, topic: str) -> int:
    """Rows of a features stage's input that are older than their partition's watermark less the lateness."""
    times: dict[int, list[Int64s]] = {}
    for messages, rows in reader.rows(topic.removeprefix(f"{plan.pipeline}."), (envelope.EVENT_TIME,)):
        partitions, _, _ = coordinates(messages)
        stamps = rows.column(0).cast(pa.int64()).to_numpy()
        for number in np.unique(partitions).tolist():
            times.setdefault(number, []).append(stamps[partitions == number])
    return sum(late_rows(np.concatenate(found), plan.lateness_ms) for found in times.values())


def late_rows(times: Int64s, lateness_ms: int) -> int:
    """How many of ``times`` (ms, one partition in log order) are older than the largest before, less the lateness."""
    return int((times[1:] < np.maximum.accumulate(times)[:-1] - lateness_ms).sum())


def _origins(rows: pa.RecordBatch) -> tuple[Int64s, Int64s]:
    return (
        rows.column("origin_partition").to_numpy().astype(np.int64),
        rows.column("origin_offset").to_numpy().astype(np.int64),
    )


def _floats(column: pa.ChunkedArray) -> Floats:
    values: Floats = column.cast(pa.float64()).fill_null(float("nan")).to_numpy()
    return values


def _fields(plan: Plan, suffix: str) -> list[dict[str, Any]]:
    value = plan.topic(suffix).value
    return [] if value is None else value.avro["fields"]
