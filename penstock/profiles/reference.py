"""What a model's training data looked like: the yardstick that drift is measured against, kept as ``profile.json``
beside the model.

Numeric columns are cut at the reference's own quantiles, because that makes the law of the statistics under "no
drift" the same for every feature, whatever its distribution. Bin i holds ``edges[i - 1] <= x < edges[i]``; the first
and last are open.
"""

from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, ValidationError

from penstock.plan import fingerprint
from penstock.profiles.binning import HUGE, Floats, Kind, as_floats, confidence_edges, counted, kind_of, quantile_edges
from penstock.profiles.ranking import auc

FORMAT = 1
FILE = "profile.json"
BINS = 16
BASELINE_BINS = 256
CATEGORIES = 100
KNOWN_CATEGORIES = 4096


class ProfileError(Exception):
    """A profile that cannot be read or columns that cannot be profiled; the message names the mend."""


class Profiled(BaseModel):
    """A part of a profile: immutable, and an unknown field means another version wrote it."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Moments(Profiled):
    """Of the finite values (up to 1e140 either way); ``std`` is the population's."""

    n: int
    mean: float
    std: float
    min: float
    max: float


class ColumnProfile(Profiled):
    """One column of the reference.

    ``counts``: numeric and boolean, one per bin (``len(edges) + 1``); categorical, one per entry of ``categories``
    (the most frequent ones) and last the rest. ``rest`` names categories that were seen but are not among
    ``categories``; anything in neither is unseen, unless there were too many to list (``complete`` is false), when
    nothing is. A boolean is a number, 0 or 1, cut at 0.5.
    """

    kind: Kind
    n: int
    nulls: int
    edges: tuple[float, ...] = ()
    categories: tuple[str, ...] = ()
    rest: tuple[str, ...] = ()
    complete: bool = True
    counts: tuple[int, ...]
    moments: Moments | None = None

    @property
    def null_rate(self) -> float:
        return self.nulls / self.n if self.n else 0.0

    @property
    def shares(self) -> Floats:
        """float64[bins], summing to 1; zeros where every value was null."""
        counts = np.asarray(self.counts, np.float64)
        shares: Floats = counts / max(float(counts.sum()), 1.0)
        return shares


class BaselineProfile(Profiled):
    """The column whose own ranking the model has to beat; ``edges`` are its quantiles, fine enough for an AUC."""

    column: str
    edges: tuple[float, ...]
    auc: float | None


class ReferenceProfile(Profiled):
    """The reference of one model version, over the columns of the feature service in their order.

    ``score``: the scores cut at their quantiles. ``confidence``: counts of max(p, 1 - p) in 50 bins of [0, 1]; empty
    in a regression. ``classes``: predicted labels at the threshold, "0" and "1". ``label_rate``: share of positives
    among the true labels.
    """

    format: int = FORMAT
    model: str = ""
    version: str = ""
    service_hash: str = ""
    rows: int
    columns: dict[str, ColumnProfile]
    score: ColumnProfile | None = None
    confidence: tuple[int, ...] = ()
    classes: dict[str, int] = {}
    label_rate: float | None = None
    auc: float | None = None
    baseline: BaselineProfile | None = None

    @cached_property
    def id(self) -> str:
        """Names the bins: partial counts may only be added, or compared with shares, under the same id."""
        return fingerprint(self.model_dump(mode="json", exclude={"model", "version"}))

    @staticmethod
    def build(
        columns: "pa.RecordBatch | pa.Table",
        scores: npt.ArrayLike | None = None,
        labels: npt.ArrayLike | None = None,
        *,
        task: Literal["binary", "regression"] = "binary",
        threshold: float = 0.5,
        baseline: str | None = None,
        model: str = "",
        version: str = "",
        service_hash: str = "",
        bins: int = BINS,
    ) -> "ReferenceProfile":
        """Profile the training (or validation) set.

        ``columns``: the service's columns, as features reach the model; null or NaN is a null. ``scores``,
        ``labels``: float[n], labels 0 or 1 in a binary task, NaN where unknown. ``baseline``: one of the columns.
        Raises ``ProfileError`` for columns of other types and for lengths that differ.
        """
        table = pa.table(columns) if isinstance(columns, pa.RecordBatch) else columns
        score = _floats("scores", scores, table.num_rows)
        label = _floats("labels", labels, table.num_rows)
        binary = task == "binary"
        classes: dict[str, int] = {}
        confidence: tuple[int, ...] = ()
        if score is not None and binary:
            known = score[~np.isnan(score)]
            positive = int((known >= threshold).sum())
            classes = {"0": len(known) - positive, "1": positive}
            confidence = tuple(counted(np.maximum(known, 1.0 - known), confidence_edges()).tolist())
        rate = None
        if label is not None and binary and not np.isnan(label).all():
            rate = float((label[~np.isnan(label)] >= 0.5).mean())
        return ReferenceProfile(
            model=model,
            version=version,
            service_hash=service_hash,
            rows=table.num_rows,
            columns={name: profile_column(table.column(name), bins, name) for name in table.column_names},
            # a row without a score was not scored, and is no null that serving could drift from
            score=None if score is None else profile_column(pa.array(score[~np.isnan(score)]), bins, "scores"),
            confidence=confidence,
            classes=classes,
            label_rate=rate,
            auc=auc(score, label) if binary and score is not None and label is not None else None,
            baseline=None if baseline is None else _baseline(table, baseline, label if binary else None),
        )

    def save(self) -> bytes:
        """The content of ``profile.json``."""
        return self.model_dump_json(indent=1).encode()

    @staticmethod
    def load(content: bytes) -> "ReferenceProfile":
        """Raises ``ProfileError`` when the bytes are no profile of this version."""
        try:
            return ReferenceProfile.model_validate_json(content)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise ProfileError(
                f"reference profile: {where or 'content'}: {first['msg']}. Train again to write the profile anew"
            ) from None


def profile_column(values: "pa.Array | pa.ChunkedArray", bins: int = BINS, name: str = "column") -> ColumnProfile:
    """Profile one column. Raises ``ProfileError`` when it is neither numeric, boolean nor string."""
    kind = kind_of(values.type)
    if kind is None:
        raise ProfileError(f"column {name!r} is {values.type}: only double, long, string and boolean can be profiled")
    if kind == "categorical":
        return _categorical(values)
    numbers = as_floats(values)
    known = numbers[~np.isnan(numbers)]
    edges = np.array([0.5]) if kind == "boolean" else quantile_edges(known, bins)
    counts = counted(known, edges)
    return ColumnProfile(
        kind=kind,
        n=len(numbers),
        nulls=len(numbers) - len(known),
        edges=tuple(edges.tolist()),
        counts=tuple(counts.tolist()),
        moments=_moments(known[np.abs(known) <= HUGE]),
    )


def _categorical(values: "pa.Array | pa.ChunkedArray") -> ColumnProfile:
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    counted = pc.value_counts(values.drop_null())
    names, counts = counted.field("values").to_pylist(), counted.field("counts").to_pylist()
    ranked = sorted(zip(names, counts, strict=True), key=lambda pair: (-pair[1], pair[0]))
    top, tail = ranked[:CATEGORIES], ranked[CATEGORIES:]
    complete = len(ranked) <= KNOWN_CATEGORIES
    return ColumnProfile(
        kind="categorical",
        n=len(values),
        nulls=values.null_count,
        categories=tuple(name for name, _ in top),
        rest=tuple(sorted(name for name, _ in tail)) if complete else (),
        complete=complete,
        counts=(*(count for _, count in top), sum(count for _, count in tail)),
    )


def _baseline(table: "pa.Table", column: str, labels: Floats | None) -> BaselineProfile:
    if column not in table.column_names or kind_of(table.schema.field(column).type) == "categorical":
        raise ProfileError(
            f"baseline {column!r} is not a numeric column of the service ({', '.join(table.column_names)})"
        )
    values = as_floats(table.column(column))
    edges = quantile_edges(values[~np.isnan(values)], BASELINE_BINS)
    return BaselineProfile(
        column=column,
        edges=tuple(edges.tolist()),
        auc=None if labels is None else auc(values, labels),
    )


def _moments(finite: Floats) -> Moments | None:
    if not len(finite):
        return None
    return Moments(
        n=len(finite),
        mean=float(finite.mean()),
        std=float(finite.std()),
        min=float(finite.min()),
        max=float(finite.max()),
    )


def _floats(name: str, values: Any, rows: int) -> Floats | None:
    if values is None:
        return None
    floats = np.asarray(values, np.float64)
    if floats.shape != (rows,):
        raise ProfileError(f"{name} have shape {floats.shape}, but there are {rows} rows: give one value per row")
    return floats
