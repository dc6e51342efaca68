"""A pipeline's own functions, called on whole batches. They are pure, so when one raises, the rows to blame are
found by halving the call alone: the windows were updated once and stay as they are, and the stage itself never raises.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from penstock.codec.arrow import arrow_schema
from penstock.plan import OnDemandPlan, WhenPlan, load_function
from penstock.records import Reason
from penstock_features.columns import Columns, Places, Values, to_arrow

Arrays = list["pa.Array[Any]"]
FAILED = "feature function failed"


@dataclass(frozen=True, slots=True)
class Answer:
    """``arrays``: one per output, of the rows that worked; ``rows``: int64[m], their places; ``failed``: row → why."""

    arrays: Arrays
    rows: Places
    failed: dict[int, Reason]


class VectorFunction:
    """A function from columns to columns: an on-demand view, or ``predict_when``."""

    def __init__(self, name: str, path: str, inputs: tuple[str, ...] | None, outputs: "pa.Schema") -> None:
        self.name, self.inputs, self.outputs = name, inputs, outputs
        self._function = load_function(path)
        self._path = path

    def __call__(self, columns: Mapping[str, Values], n: int) -> Answer:
        """The outputs for n rows; ``columns``: at least the inputs, each of length n."""
        given = columns if self.inputs is None else {name: columns[name] for name in self.inputs}
        try:
            with np.errstate(all="ignore"):
                return Answer(self._arrays(given, n), np.arange(n), {})
        except Exception as error:  # noqa: BLE001  # a pipeline's code may raise anything, and one row may be to blame
            if n == 1:
                return Answer([pa.nulls(0, field.type) for field in self.outputs], np.arange(0), {0: self._why(error)})
        middle = n // 2
        first = self(_part(given, 0, middle), middle)
        second = self(_part(given, middle, n), n - middle)
        return Answer(
            [pa.concat_arrays(pair) for pair in zip(first.arrays, second.arrays, strict=True)],
            np.concatenate([first.rows, second.rows + middle]),
            first.failed | {row + middle: why for row, why in second.failed.items()},
        )

    def _arrays(self, given: Mapping[str, Values], n: int) -> Arrays:
        found = self._function(given)
        arrays = []
        for field in self.outputs:
            values = found if isinstance(found, np.ndarray) else found[field.name]
            if np.shape(values) != (n,):
                raise ValueError(f"{field.name!r} has shape {np.shape(values)}, expected ({n},)")
            arrays.append(to_arrow(values, field.type))
        return arrays

    def _why(self, error: Exception) -> Reason:
        # the text of a pipeline's exception may quote a value of the row, and reasons are logged and counted
        return Reason(
            FAILED, f"{self._path} ({self.name}) raised {type(error).__name__}. Run it on this row to see why"
        )


def _part(columns: Mapping[str, Values], low: int, high: int) -> Mapping[str, Values]:
    if isinstance(columns, Columns):
        return columns.part(low, high)
    return {name: values[low:high] for name, values in columns.items()}


def on_demand(plan: OnDemandPlan) -> VectorFunction:
    """The function of an on-demand view."""
    return VectorFunction(plan.name, plan.function, plan.inputs, columns_schema(plan.outputs))


def condition(plan: WhenPlan) -> Callable[[Mapping[str, Values], int], tuple[NDArray[np.bool_], dict[int, Reason]]]:
    """``predict_when``: (columns, n) → bool[n], and the rows for which it could not be said."""
    function = VectorFunction("predict_when", plan.function, None, pa.schema([pa.field("holds", pa.bool_())]))

    def holds(columns: Mapping[str, Values], n: int) -> tuple[NDArray[np.bool_], dict[int, Reason]]:
        answer = function(columns, n)
        found = np.zeros(n, np.bool_)
        found[answer.rows] = answer.arrays[0].fill_null(False).to_numpy(zero_copy_only=False)
        return found, answer.failed

    return holds


def columns_schema(columns: Any) -> "pa.Schema":
    """Arrow fields of planned columns."""
    fields = [{"name": column.name, "type": column.type} for column in columns]
    return arrow_schema({"type": "record", "name": "columns", "fields": fields})
