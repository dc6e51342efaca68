"""How a column becomes bins: numeric ones are cut at quantiles of the reference, and bin i holds ``edges[i - 1] <= x
< edges[i]``.
"""

import math
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

CONFIDENCE_BINS = 50
HUGE = 1e140
"""Numbers beyond it are counted in the outer bins but left out of edges and moments, whose squares would overflow."""

Floats = npt.NDArray[np.float64]
Kind = Literal["numeric", "categorical", "boolean"]


def kind_of(type_: "pa.DataType") -> Kind | None:
    """How a column of this Arrow type is profiled; None when it is not."""
    if pa.types.is_boolean(type_):
        return "boolean"
    if pa.types.is_floating(type_) or pa.types.is_integer(type_) or pa.types.is_null(type_):
        return "numeric"
    if pa.types.is_string(type_) or pa.types.is_large_string(type_):
        return "categorical"
    if pa.types.is_dictionary(type_):
        return kind_of(type_.value_type)
    return None


def as_floats(values: "pa.Array | pa.ChunkedArray") -> Floats:
    """A numeric or boolean column as float64[n], nulls as NaN. Integers beyond 2**53 lose their last digits, which no
    bin notices.
    """
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    if pa.types.is_boolean(values.type):
        values = values.cast(pa.uint8())
    if not pa.types.is_float64(values.type):
        values = values.cast(pa.float64(), safe=False)
    if values.null_count:
        values = pc.fill_null(values, math.nan)
    floats: Floats = values.to_numpy(zero_copy_only=False)
    return floats


def quantile_edges(values: Floats, bins: int) -> Floats:
    """Cut points of ``values`` (no NaN): float64[at most bins + 1], strictly ascending, finite.

    Few distinct values (up to ``bins``) are kept apart, each in a bin of its own, with an empty one below and above
    them: a constant that changes is seen in either direction. Otherwise quantiles at i/bins; where many values tie,
    equal ones are merged. No finite values: no edges.
    """
    finite = values[np.abs(values) <= HUGE]
    if not len(finite):
        return np.empty(0)
    distinct = np.unique(finite)
    if len(distinct) <= bins:
        between = distinct[:-1] + (distinct[1:] - distinct[:-1]) / 2
        edges = np.concatenate([distinct[:1], between, np.nextafter(distinct[-1:], np.inf)])
    else:
        edges = np.quantile(finite, np.arange(1, bins) / bins, method="higher")
    return np.unique(edges)


def confidence_edges() -> Floats:
    """The cut points of the confidence: 50 equal bins of [0, 1], the same for every model. float64[49]."""
    return np.arange(1, CONFIDENCE_BINS) / CONFIDENCE_BINS


def counted(values: Floats, edges: Floats) -> npt.NDArray[np.int64]:
    """Counts of ``values`` (no NaN) per bin: int64[len(edges) + 1]."""
    return np.bincount(np.searchsorted(edges, values, side="right"), minlength=len(edges) + 1)
