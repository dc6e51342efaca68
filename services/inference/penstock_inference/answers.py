"""Scores as the rows of ``NAME.predictions`` and ``NAME.outcomes``. What is the same for all rows of a model is made
once and sliced.
"""

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from penstock import envelope
from penstock.models.manifest import Manifest
from penstock.records import Batch

CHAMPION, FALLBACK = "champion", "fallback"
_DIGITS = np.frombuffer(b"01", np.uint8)


class Answers:
    """The answers of one model version. ``threshold``: from which score on the label is 1; None in a regression."""

    def __init__(self, manifest: Manifest, digest: str, control_offset: int, threshold: float | None) -> None:
        self.model, self.version = manifest.name, manifest.version
        self._threshold = threshold
        self._scalars: dict[str, tuple[object, pa.DataType]] = {
            "model": (manifest.name, pa.string()),
            "version": (manifest.version, pa.string()),
            "digest": (digest, pa.string()),
            "control_offset": (control_offset, pa.int64()),
            "served_by": (CHAMPION, pa.string()),
            "kind": ("prediction", pa.string()),
        }
        self._constants: dict[str, pa.Array] = {}

    def predictions(
        self, batch: Batch, scores: npt.NDArray[np.float64], fallback: npt.NDArray[np.bool_] | None
    ) -> pa.RecordBatch:
        """One row per row of ``batch``, in its order; ``fallback`` marks those that the fallback answered."""
        n, rows = len(batch), batch.rows
        label, confidence = self._verdict(scores)
        columns = {
            "prediction_id": rows.column(envelope.EVENT_ID),
            "key": batch.keys.cast(pa.string()),
            "event_time": rows.column(envelope.EVENT_TIME),
            "ingest_time": rows.column(envelope.INGEST_TIME),
            "origin_partition": rows.column(envelope.ORIGIN_PARTITION),
            "origin_offset": rows.column(envelope.ORIGIN_OFFSET),
            "traceparent": rows.column(envelope.TRACEPARENT),
            "model": self._constant("model", n),
            "version": self._constant("version", n),
            "digest": self._constant("digest", n),
            "control_offset": self._constant("control_offset", n),
            "served_by": self._served_by(n, fallback),
            "score": pa.array(scores),
            "label": label,
            "confidence": confidence,
        }
        return pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))

    def outcomes(
        self, batch: Batch, predictions: pa.RecordBatch, baseline: str | None
    ) -> tuple[pa.Array, pa.RecordBatch, npt.NDArray[np.intp]]:
        """The facts that meet their label, the label keys, and which rows they are: those that have a label key."""
        n, rows = len(batch), batch.rows
        keys = rows.column(envelope.LABEL_KEY)
        ranking = pa.nulls(n, pa.float64()) if baseline is None else rows.column(baseline).cast(pa.float64())
        columns = {
            "kind": self._constant("kind", n),
            "label_key": keys,
            "event_id": predictions.column("prediction_id"),
            **{name: predictions.column(name) for name in _SHARED},
            "baseline": ranking,
            "value": pa.nulls(n, pa.float64()),
        }
        facts = pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))
        at = np.arange(n)
        if keys.null_count:
            at = np.flatnonzero(keys.is_valid().to_numpy(zero_copy_only=False))
            facts = facts.take(pa.array(at))
        return facts.column("label_key"), facts, at

    def _verdict(self, scores: npt.NDArray[np.float64]) -> tuple[pa.Array, pa.Array]:
        n = len(scores)
        if self._threshold is None:
            return pa.nulls(n, pa.string()), pa.nulls(n, pa.float64())
        positive = (scores >= self._threshold).view(np.uint8)
        ends = pa.py_buffer(np.arange(n + 1, dtype=np.int32))
        label = pa.StringArray.from_buffers(n, ends, pa.py_buffer(_DIGITS[positive]))
        return label, pa.array(np.maximum(scores, 1.0 - scores))

    def _served_by(self, n: int, fallback: npt.NDArray[np.bool_] | None) -> pa.Array:
        if fallback is None:
            return self._constant("served_by", n)
        return pa.array([CHAMPION, FALLBACK]).take(pa.array(fallback.astype(np.int8)))

    def _constant(self, name: str, n: int) -> pa.Array:
        held = self._constants.get(name)
        if held is None or len(held) < n:
            value, kind = self._scalars[name]
            held = self._constants[name] = pa.repeat(pa.scalar(value, kind), n)
        return held.slice(0, n)


_SHARED = (
    "event_time",
    "ingest_time",
    "origin_partition",
    "origin_offset",
    "model",
    "version",
    "served_by",
    "score",
    "label",
    "confidence",
)
