"""What becomes of the rows of a batch: a stage that raises loses only the guilty row, and every row has one fate."""

import logging

import numpy as np

from penstock.envelope import TRACEPARENT
from penstock.records import Batch, Output, Reason, Result
from penstock.stage import Stage

log = logging.getLogger(__name__)

STAGE_FAILED = "stage failed"


class FateError(Exception):
    """A stage gave a row no fate, or more than one: a bug in the stage, so the worker stops."""


def process(stage: Stage, batch: Batch) -> Result:
    """The stage's result; if the whole cannot be computed, halves are tried until the guilty row stands alone."""
    if not len(batch):
        return Result()
    try:
        return stage.process(batch)
    except Exception as error:  # noqa: BLE001  # whatever a stage raises, one row is to blame and the others go on
        if len(batch) == 1:
            return Result(rejects={0: Reason(STAGE_FAILED, f"{type(error).__name__}: {error}")})
        middle = len(batch) // 2
        first = process(stage, batch.take(np.arange(middle)))
        second = process(stage, batch.take(np.arange(middle, len(batch))))
        return _together(first, second, middle)


def tell_failures(stage: Stage, batch: Batch, result: Result) -> None:
    """One line a batch, with where to look: what was in the rows is in the dead letters alone."""
    failed = [row for row, reason in result.rejects.items() if reason.kind == STAGE_FAILED]
    if failed:
        row = failed[0]
        where = {"topic": batch.topic, "partition": int(batch.partition[row]), "offset": int(batch.offset[row])}
        trace = trace_id(batch, row)
        log.error(
            "%s raised %s on %d rows, first at the one named here; they are dead letters",
            type(stage).__name__,
            result.rejects[row].message.split(":", 1)[0],
            len(failed),
            extra=where if trace is None else {**where, "trace_id": trace},
        )


def check_fates(stage: Stage, batch: Batch, result: Result) -> None:
    """Raises ``FateError`` naming the first row that has no fate or several."""
    fates = np.zeros((3, len(batch)), np.bool_)
    for output in result.outputs:
        if output.fate:
            fates[0, output.source] = True
    fates[1, list(result.rejects)] = True
    fates[2, list(result.dropped)] = True
    fate = fates.sum(axis=0)
    wrong = fate != 1 if not stage.absorbs else fate > 1
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise FateError(
            f"{type(stage).__name__} gave row {batch.topic}/{batch.partition[row]}@{batch.offset[row]} "
            f"{fate[row]} fates; every row is in outputs, rejects or dropped, once"
        )


def trace_id(batch: Batch, row: int) -> str | None:
    """The trace that a row belongs to, where its producer sent a W3C trace context."""
    column = batch.headed.get(TRACEPARENT)
    if column is None and TRACEPARENT in batch.rows.schema.names:
        column = batch.rows.column(TRACEPARENT)
    context = None if column is None else column[row].as_py()
    parts = (context or "").split("-")
    return parts[1] if len(parts) == 4 else None


def _together(first: Result, second: Result, middle: int) -> Result:
    moved = [
        Output(o.topic, o.keys, o.rows, (o.source + np.int32(middle)).astype(np.int32), o.fate) for o in second.outputs
    ]
    return Result(
        [*first.outputs, *moved],
        {**first.rejects, **{row + middle: reason for row, reason in second.rejects.items()}},
        {**first.dropped, **{row + middle: reason for row, reason in second.dropped.items()}},
        first.late + second.late,
    )
