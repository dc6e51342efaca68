"""The record of ``NAME.profiles`` as Arrow: one row per model, version, measure and window touched since the last
one, every number of which can be added to that of another row (see ``schemas/profile.avsc``). A monitor writes tens
to thousands of them a second, so here a row may be a Python object.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

SCORE = "_score"
CONFIDENCE = "_confidence"
CLASS = "_class"
OUTCOME = "_outcome"
SCORE_BINS = 1000
NAMES = 20
"""Unseen categories that are named in a partial; the others are only counted."""

Counts = npt.NDArray[np.int64]

_COUNTS = pa.list_(pa.int64())

SCHEMA = pa.schema(
    [
        ("model", pa.string()),
        ("version", pa.string()),
        ("feature", pa.string()),
        ("kind", pa.string()),
        ("reference", pa.string()),
        ("pane", pa.timestamp("ms")),
        ("pane_ms", pa.int64()),
        ("rows", pa.int64()),
        ("nulls", pa.int64()),
        ("unseen", pa.int64()),
        ("bins", _COUNTS),
        ("n", pa.int64()),
        ("mean", pa.float64()),
        ("m2", pa.float64()),
        ("min", pa.float64()),
        ("max", pa.float64()),
        ("names", pa.list_(pa.string())),
        ("name_counts", _COUNTS),
        ("correct", pa.int64()),
        ("positives", _COUNTS),
        ("negatives", _COUNTS),
        ("baseline_positives", _COUNTS),
        ("baseline_negatives", _COUNTS),
        ("expired_predictions", pa.int64()),
        ("expired_labels", pa.int64()),
    ]
)


def _none() -> Counts:
    return np.empty(0, np.int64)


@dataclass(slots=True)
class ProfileRow:
    """One row; fields as in ``schemas/profile.avsc``. ``pane``: ms since epoch; ``min`` and ``max``: None when n is
    0.
    """

    feature: str
    kind: str
    pane: int
    pane_ms: int
    model: str = ""
    version: str = ""
    reference: str = ""
    rows: int = 0
    nulls: int = 0
    unseen: int = 0
    bins: Counts = field(default_factory=_none)
    n: int = 0
    mean: float = 0.0
    m2: float = 0.0
    min: float | None = None
    max: float | None = None
    names: list[str] = field(default_factory=list)
    name_counts: list[int] = field(default_factory=list)
    correct: int = 0
    positives: Counts = field(default_factory=_none)
    negatives: Counts = field(default_factory=_none)
    baseline_positives: Counts = field(default_factory=_none)
    baseline_negatives: Counts = field(default_factory=_none)
    expired_predictions: int = 0
    expired_labels: int = 0

    @property
    def key(self) -> str:
        """Key on ``NAME.profiles``: all rows that are ever added up lie in one partition."""
        return f"{self.model}|{self.version}|{self.feature}"


_LISTS = {f.name for f in fields(ProfileRow) if f.name in SCHEMA.names and SCHEMA.field(f.name).type == _COUNTS}


def to_arrow(rows: Sequence[ProfileRow]) -> "pa.RecordBatch":
    """The rows under ``SCHEMA``."""
    return pa.record_batch([_column(rows, name, SCHEMA.field(name).type) for name in SCHEMA.names], schema=SCHEMA)


def from_arrow(batch: "pa.RecordBatch") -> list[ProfileRow]:
    """The rows of a decoded batch."""
    columns = {name: batch.column(name) for name in SCHEMA.names}
    columns["pane"] = columns["pane"].cast(pa.int64())
    lists = {name: column.to_pylist() for name, column in columns.items()}
    for name in _LISTS - {"name_counts"}:
        lists[name] = [np.asarray(counts, np.int64) for counts in lists[name]]
    return [ProfileRow(**dict(zip(lists, values, strict=True))) for values in zip(*lists.values(), strict=True)]


def top_names(counted: Iterable[tuple[str, int]]) -> dict[str, int]:
    """The most frequent names with their counts added up; of equal ones, the first by name."""
    total: dict[str, int] = {}
    for name, count in counted:
        total[name] = total.get(name, 0) + count
    return dict(sorted(total.items(), key=lambda item: (-item[1], item[0]))[:NAMES])


def _column(rows: Sequence[ProfileRow], name: str, kind: "pa.DataType") -> "pa.Array":
    values: list[Any] = [getattr(row, name) for row in rows]
    return pa.array(values, pa.int64()).cast(kind) if name == "pane" else pa.array(values, kind)
