"""Raw records to valid events keyed by their first entity, and labels to outcomes keyed by their label key. What does
not pass is a reject with a reason that a person understands.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from penstock import envelope
from penstock.plan import LabelPlan, Plan
from penstock.records import NO_TIME, Batch, Output, Reason, Result
from penstock.stage import Stage, StageKind
from penstock_ingest.checks import declared_checks, first_failures

MILLISECONDS = pa.timestamp("ms")
EARLIEST_MS = -62_135_596_800_000
"""The year 1: what is earlier is no date to Python, Feast and most of those who read on."""
PROBE = Reason("probe", "a probe of `penstock doctor`, which ends here")


class IngestStage(Stage):
    """Stateless."""

    def __init__(self, plan: Plan) -> None:
        self._event, self._label = plan.event, plan.label
        self._raw, self._events = plan.topic("raw").name, plan.topic("events").name
        self._outcomes = plan.topic("outcomes").name if plan.label is not None else ""
        self._event_checks = declared_checks(plan.event.avro)
        self._label_checks = declared_checks(plan.label.avro) if plan.label is not None else []

    def process(self, batch: Batch) -> Result:
        is_event = batch.topic == self._raw
        mistimed = self._mistimed(batch)
        rejects = first_failures(batch.rows, self._event_checks if is_event else self._label_checks) | mistimed
        # a probe has an impossible event time, so that the keys of other rows need not be looked at
        probes = {row: PROBE for row in mistimed if _is_probe(batch, row)}
        if rejects:
            good = np.setdiff1d(np.arange(len(batch), dtype=np.int32), list(rejects))
            rejects = {row: reason for row, reason in rejects.items() if row not in probes}
            passed = batch.take(good)
        else:
            good, passed = np.arange(len(batch), dtype=np.int32), batch
        if is_event:
            output = self._to_event(passed, good)
        else:
            assert self._label is not None, "only a pipeline with a label has a label topic"
            output = self._to_outcome(passed, good, self._label)
        return Result([output], rejects, probes)

    def _mistimed(self, batch: Batch) -> dict[int, Reason]:
        times = np.maximum(batch.event_time, EARLIEST_MS)  # a difference to less may not fit in 64 bits
        ahead = times - (batch.timestamp + self._event.future_ms)
        found = {
            row: Reason(
                "event time in the future",
                f"the event time is {ahead[row] + self._event.future_ms} ms after the record's arrival; "
                f"at most {self._event.future_ms} ms are allowed",
            )
            for row in np.flatnonzero(ahead > 0).tolist()
        }
        for row in np.flatnonzero(batch.event_time < EARLIEST_MS).tolist():
            found[row] = Reason(
                "event time out of range",
                f"the event time is {batch.event_time[row]} ms since 1970, before the year 1; is it in another unit?",
            )
        for row in np.flatnonzero(batch.event_time == NO_TIME).tolist():
            found[row] = Reason("no event time", "the event time is null; without it no window can hold the event")
        return found

    def _to_event(self, batch: Batch, source: np.ndarray) -> Output:
        rows, ids, none = batch.rows, self._event_id(batch), pa.nulls(len(batch), pa.string())
        columns = [
            ids,
            pa.array(batch.partition),
            pa.array(batch.offset),
            pa.array(batch.event_time).cast(MILLISECONDS),
            pa.array(batch.timestamp).cast(MILLISECONDS),
            *(batch.headed.get(name, none) for name in envelope.HEADERS),
            *rows.columns,
        ]
        keys = _text(rows.column(self._event.key))
        if self._event.deduplicate_ms is not None:
            keys = pc.coalesce(keys, ids)  # an event without an entity meets its copies under its id
        names = [*envelope.COLUMNS, *rows.schema.names]
        return Output(self._events, keys, pa.RecordBatch.from_arrays(columns, names=names), source)

    def _event_id(self, batch: Batch) -> pa.Array:
        if self._event.event_id is not None:
            return _text(batch.rows.column(self._event.event_id))
        partition, offset = pa.array(batch.partition).cast(pa.string()), pa.array(batch.offset).cast(pa.string())
        return pc.binary_join_element_wise(batch.topic, partition, offset, "-")

    def _to_outcome(self, batch: Batch, source: np.ndarray, label: LabelPlan) -> Output:
        n = len(batch)
        keys = _text(batch.rows.column(label.key))
        none, text = pa.nulls(n, pa.float64()), pa.nulls(n, pa.string())
        columns = {
            "kind": pa.repeat("label", n),
            "label_key": keys,
            "event_id": keys,
            "event_time": pa.array(batch.event_time).cast(MILLISECONDS),
            "ingest_time": pa.array(batch.timestamp).cast(MILLISECONDS),
            "origin_partition": pa.array(batch.partition),
            "origin_offset": pa.array(batch.offset),
            "model": text,
            "version": text,
            "served_by": text,
            "score": none,
            "label": text,
            "confidence": none,
            "baseline": none,
            "value": batch.rows.column(label.value).cast(pa.float64()),
        }
        return Output(self._outcomes, keys, pa.RecordBatch.from_pydict(columns), source)


def _is_probe(batch: Batch, row: int) -> bool:
    key = batch.keys[row].as_py()
    return key is not None and key.startswith(envelope.PROBE_KEY) and batch.event_time[row] < EARLIEST_MS


def _text(column: pa.Array) -> pa.Array:
    return column if pa.types.is_string(column.type) else column.cast(pa.string())


def build(plan: Plan, name: str) -> IngestStage:
    """The ingest stage of ``plan``; there is one, called ``ingest``."""
    return IngestStage(plan)


kind = StageKind(build=build)
