"""What every stage promises, held against a pipeline's own plan and samples: a batch of one gives what a batch of many
gives, the input is left alone, order is kept, every row has a fate, and what comes out fits its topic's schema.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from penstock.checks.result import CheckResult
from penstock.checks.samples import schema_of
from penstock.codec.avro import AvroDecoder, AvroEncoder
from penstock.plan import Plan, PlanError, StagePlan
from penstock.records import Batch, Int64s, Partition, Result, column
from penstock.stage import Stage, StageKind
from penstock.windows.watermark import running_watermark

FindKind = Callable[[str], StageKind]
PARTITIONS = 2
LATENCY_MS = 1_000


@dataclass(slots=True)
class Ran:
    """What became of a batch: per topic keys, encoded values and input rows; fates by input row."""

    keys: dict[str, list[bytes | None]] = field(default_factory=dict)
    values: dict[str, list[bytes]] = field(default_factory=dict)
    sources: dict[str, list[int]] = field(default_factory=dict)
    fated: set[int] = field(default_factory=set)
    refused: dict[int, str] = field(default_factory=dict)
    late: int = 0

    def same_rows(self, other: "Ran") -> bool:
        return (self.keys, self.values, self.sources, self.refused, self.late) == (
            other.keys,
            other.values,
            other.sources,
            other.refused,
            other.late,
        )


def check_stages(plan: Plan, events: pa.RecordBatch, find_kind: FindKind) -> Iterator[CheckResult]:
    """Runs the samples through ingest and the chain of features stages, each fed with what the stage before wrote."""
    rows: pa.RecordBatch | None = events
    for stage in plan.stages:
        if not _is_run(stage):
            continue
        try:
            kind = find_kind(stage.name)
        except PlanError as error:
            yield CheckResult("stage runs", stage.name, False, str(error))
            return
        if rows is None or not rows.num_rows:
            yield CheckResult("stage runs", stage.name, False, "the stage before wrote no row to feed it with")
            return
        batch = to_batch(stage, rows)
        try:
            yield from _check_stage(plan, stage, kind, batch)
            rows = _onward(plan, stage, kind, batch)
        except Exception as error:  # noqa: BLE001  # the pipeline's own code may raise anything: the finding
            yield CheckResult("stage runs", stage.name, False, f"{type(error).__name__}: {error}")
            return


def _is_run(stage: StagePlan) -> bool:
    return stage.kind == "ingest" or stage.entity is not None


def _check_stage(plan: Plan, stage: StagePlan, kind: StageKind, batch: Batch) -> Iterator[CheckResult]:
    before = _content(batch)
    whole = _run(plan, stage, kind, [batch])
    yield _verdict("input not mutated", stage, _content(batch) == before, "process changed its input batch")
    single = _run(plan, stage, kind, [batch.take(np.array([row])) for row in range(len(batch))])
    yield _verdict("batch of 1 equals batch of N", stage, single.same_rows(whole), _difference(single, whole))
    unordered = [topic for topic, rows in whole.sources.items() if rows != sorted(rows)]
    yield _verdict("order kept", stage, not unordered, f"rows to {', '.join(unordered)} are not in the input's order")
    forgotten = sorted(set(range(len(batch))) - whole.fated)
    absorbs = kind.build(plan, stage.name).absorbs
    why = f"{len(forgotten)} rows are in no output, reject or drop, the first is {forgotten[:1]}"
    yield _verdict("every row has a fate", stage, absorbs or not forgotten, why)
    wrong = [topic for topic, values in whole.values.items() if not _reads_back(plan, topic, values)]
    yield _verdict("output fits the schema", stage, not wrong, f"rows to {', '.join(wrong)} do not decode again")
    passed = len(whole.fated) - len(whole.refused)
    why = "; ".join(sorted(set(whole.refused.values()))[:3])
    why = f"all {len(batch)} samples were refused: {why}. Put better ones into samples.jsonl"
    yield _verdict("samples pass", stage, passed > 0, why)


def _run(plan: Plan, stage: StagePlan, kind: StageKind, batches: Sequence[Batch]) -> Ran:
    """A fresh stage fed with ``batches``, which follow each other in one log."""
    processor = _fresh(plan, stage, kind)
    encoders = {topic: AvroEncoder(v.avro, v.id) for topic in stage.outputs if (v := plan.named(topic).value)}
    ran, at = Ran(), 0
    for batch in batches:
        _add(ran, processor.process(batch), encoders, at)
        at += len(batch)
    _add(ran, processor.flush(), encoders, 0)
    return ran


def _fresh(plan: Plan, stage: StagePlan, kind: StageKind) -> Stage:
    processor = kind.build(plan, stage.name)
    for number in range(PARTITIONS):
        processor.restore(Partition(stage.inputs[0].topic, number), None)
    return processor


def _add(ran: Ran, result: Result, encoders: dict[str, AvroEncoder], at: int) -> None:
    for output in result.outputs:
        rows = (output.source + np.where(output.source >= 0, at, 0)).tolist()
        ran.keys.setdefault(output.topic, []).extend(column(output.keys).to_pylist())
        ran.values.setdefault(output.topic, []).extend(encoders[output.topic].encode(output.rows).to_pylist())
        ran.sources.setdefault(output.topic, []).extend(rows)
        if output.fate:
            ran.fated.update(row for row in rows if row >= 0)
    for row, reason in [*result.rejects.items(), *result.dropped.items()]:
        ran.fated.add(row + at)
        ran.refused[row + at] = reason.message
    ran.late += result.late


def _onward(plan: Plan, stage: StagePlan, kind: StageKind, batch: Batch) -> pa.RecordBatch | None:
    """What the next stage of the chain reads."""
    names = {source.topic for later in plan.stages if _is_run(later) for source in later.inputs}
    outputs = [o for o in _fresh(plan, stage, kind).process(batch).outputs if o.topic in names]
    if not outputs:
        return None
    # through the codec, as the next stage would have it
    schema = schema_of(outputs[0].topic, plan)
    return AvroDecoder(schema, lambda _: schema).decode(AvroEncoder(schema, 1).encode(outputs[0].rows)).rows


def to_batch(stage: StagePlan, rows: pa.RecordBatch) -> Batch:
    """The rows as two partitions that arrived alternately, a second after their event time."""
    n = rows.num_rows
    source = stage.inputs[0]
    times = event_times(rows, source.event_time)
    partition = (np.arange(n) % PARTITIONS).astype(np.int32)
    watermark = np.empty(n, np.int64)
    for number in range(PARTITIONS):
        watermark[partition == number] = running_watermark(times[partition == number])
    return Batch(
        topic=source.topic,
        rows=rows,
        keys=pa.nulls(n, pa.binary()),
        partition=partition,
        offset=np.arange(n, dtype=np.int64) // PARTITIONS,
        timestamp=times + LATENCY_MS,
        event_time=times,
        watermark=watermark,
    )


def event_times(rows: pa.RecordBatch, column: str) -> Int64s:
    """int64[n], ms since epoch."""
    array = rows.column(column)
    if pa.types.is_timestamp(array.type):
        array = array.cast(pa.timestamp("ms")).cast(pa.int64())
    times: Int64s = array.to_numpy(zero_copy_only=False).astype(np.int64)
    return times


def _content(batch: Batch) -> tuple[bytes, ...]:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.rows.schema) as writer:
        writer.write_batch(batch.rows)
    arrays = (batch.partition, batch.offset, batch.timestamp, batch.event_time, batch.watermark)
    return (sink.getvalue().to_pybytes(), repr(batch.keys.to_pylist()).encode(), *(array.tobytes() for array in arrays))


def _reads_back(plan: Plan, topic: str, values: list[bytes]) -> bool:
    schema = schema_of(topic, plan)
    decoded = AvroDecoder(schema, lambda _: schema).decode(values)
    return not decoded.bad and decoded.rows.num_rows == len(values)


def _difference(single: Ran, whole: Ran) -> str:
    for topic, values in whole.values.items():
        others = single.values.get(topic, [])
        if values != others:
            pairs = zip(values, others, strict=False)
            first = next((row for row, (a, b) in enumerate(pairs) if a != b), min(len(values), len(others)))
            return f"rows to {topic} differ, the first is number {first}: a result depends on where the batch was cut"
    return "keys, sources, reasons or late rows differ: a result depends on where the batch was cut"


def _verdict(check: str, stage: StagePlan, holds: bool, otherwise: str) -> CheckResult:
    return CheckResult(check, stage.name, bool(holds), "" if holds else otherwise)
