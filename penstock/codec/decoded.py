"""What decoding a batch gives: the good rows as columns, where they stood, and what was wrong with the others."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa


@dataclass(frozen=True, slots=True)
class BadRow:
    """``reason``: a short stable phrase that can be counted; ``message``: for people; ``schema_id`` where the frame
    names one.
    """

    reason: str
    message: str
    schema_id: int | None = None


MAX_VALUE_BYTES = 16 << 20
"""What is decoded at most where nobody says less."""


def too_large(length: int, limit: int, schema_id: int | None = None) -> BadRow:
    """Why a value of ``length`` bytes is not looked into."""
    return BadRow(
        "too large", f"{length} bytes, and the limit is {limit}. Send less, or raise max_event_bytes.", schema_id
    )


@dataclass(frozen=True, slots=True)
class Decoded:
    """``rows``: the good rows in original order; ``index``: int32[rows], their positions in the input; ``bad``:
    position → why.

    Every input position is in exactly one of ``index`` and ``bad``.
    """

    rows: pa.RecordBatch
    index: npt.NDArray[np.int32]
    bad: dict[int, BadRow]


def in_order(
    parts: list[tuple[pa.RecordBatch, npt.NDArray[np.intp]]], schema: pa.Schema, bad: dict[int, BadRow]
) -> Decoded:
    """The parts as one batch, its rows in the order of their positions."""
    parts = [part for part in parts if len(part[1])]
    if not parts:
        return Decoded(_empty(schema), np.empty(0, np.int32), bad)
    if len(parts) == 1:
        rows, index = parts[0]
        return Decoded(rows, index.astype(np.int32), bad)
    rows = pa.concat_batches([part[0] for part in parts])
    index = np.concatenate([part[1] for part in parts])
    order = np.argsort(index, kind="stable")
    return Decoded(rows.take(pa.array(order)), index[order].astype(np.int32), bad)


def _empty(schema: pa.Schema) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.nulls(0, f.type) for f in schema], schema=schema)
