"""A pipeline's own functions, on-demand views and ``predict_when``: whole columns in and out, inputs left alone, rows
independent of each other, and the same answer when stock Feast calls the view.
"""

import math
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from penstock.checks.result import CheckResult
from penstock.plan import ColumnPlan, OnDemandPlan, Plan, load_function

Columns = dict[str, npt.NDArray[Any]]
Values = npt.NDArray[Any]


def check_functions(
    plan: Plan, events: pa.RecordBatch, feast_udfs: Mapping[str, Callable[..., Any]], seed: int = 0
) -> Iterator[CheckResult]:
    """``feast_udfs``: on-demand view → the function that stock Feast runs."""
    columns = sample_columns(plan, events, seed)
    for view in plan.on_demand:
        inputs = {name: columns[name] for name in view.inputs}
        yield from _check(f"on-demand {view.name}", view.function, inputs, view.outputs)
        if view.name in feast_udfs:
            yield _check_feast(view, inputs, feast_udfs[view.name])
    if plan.when is not None:
        event = {name: columns[name] for name in events.schema.names}
        yield from _check("predict_when", plan.when.function, event, None)
    modules = sorted({path.partition(":")[0] for path in _paths(plan)})
    if modules:
        yield _check_imports(modules)


def sample_columns(plan: Plan, events: pa.RecordBatch, seed: int) -> Columns:
    """The event's columns as workers hand them over, and made-up windowed features with nulls among them."""
    rng = np.random.default_rng(seed)
    # copies, because memory of Arrow's cannot be written to and a change would only be an exception
    columns = {name: as_numpy(events.column(name)).copy() for name in events.schema.names}
    for view in plan.views:
        for aggregation in view.aggregations:
            if aggregation.function == "count":
                columns[aggregation.name] = rng.integers(0, 20, events.num_rows)
            else:
                values = rng.normal(10.0, 5.0, events.num_rows)
                values[rng.random(events.num_rows) < 0.2] = np.nan
                columns[aggregation.name] = values
    return columns


def as_numpy(array: pa.Array) -> Values:
    """Nulls are NaN in numbers (integers become float64), None among texts; times are datetime64[ms]."""
    kind = array.type
    if pa.types.is_timestamp(kind):
        times: Values = array.to_numpy(zero_copy_only=False).astype("datetime64[ms]")
        return times
    if array.null_count and (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        array = array.cast(pa.float64()).fill_null(np.nan)
    values: Values = array.to_numpy(zero_copy_only=False)
    return values


def _paths(plan: Plan) -> list[str]:
    return [view.function for view in plan.on_demand] + ([plan.when.function] if plan.when is not None else [])


def _check(what: str, path: str, inputs: Columns, outputs: tuple[ColumnPlan, ...] | None) -> Iterator[CheckResult]:
    """``outputs`` None: the function gives bool[n] itself."""
    n = len(next(iter(inputs.values())))
    before = {name: values.copy() for name, values in inputs.items()}
    try:
        whole = _call(path, inputs, outputs, n)
        single = [_call(path, {k: v[i : i + 1] for k, v in inputs.items()}, outputs, 1) for i in range(n)]
        empty = {name: values[:0] for name, values in inputs.items()}
        _call(path, empty, outputs, 0)
    except _Unfit as error:
        yield CheckResult("vectorised", what, False, f"{path} {error}")
        return
    except Exception as error:  # noqa: BLE001  # a pipeline's function may raise anything; that is the finding
        yield CheckResult("vectorised", what, False, f"{path} raised {type(error).__name__}: {error}")
        return
    yield CheckResult("vectorised", what, True)
    changed = [name for name in inputs if not _equal(before[name], inputs[name])]
    yield CheckResult(
        "input not mutated",
        what,
        not changed,
        f"{path} changed its input {changed[0]!r}. Work on a copy" if changed else "",
    )
    joined = {name: np.concatenate([row[name] for row in single]) for name in whole}
    unlike = [name for name in whole if not _equal(whole[name], joined[name])]
    yield CheckResult(
        "batch of 1 equals batch of N",
        what,
        not unlike,
        f"{path}: {unlike[0]!r} of a row depends on the other rows of its batch" if unlike else "",
    )


class _Unfit(Exception):
    """What a function gave is not what was declared."""


def _call(path: str, inputs: Columns, outputs: tuple[ColumnPlan, ...] | None, n: int) -> Columns:
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy warns of an empty mean; workers are not stopped by it either
        found = load_function(path)(dict(inputs))
    given: Mapping[str, Any] = {"the answer": found} if outputs is None else found
    if not isinstance(given, Mapping):
        raise _Unfit(f"gives a {type(found).__name__}, not a dict of columns")
    names = [column.name for column in outputs] if outputs is not None else ["the answer"]
    for name in names:
        if name not in given:
            raise _Unfit(f"does not give {name!r}, which its view declares. It gives {', '.join(given)}")
        if not isinstance(given[name], np.ndarray) or given[name].shape != (n,):
            raise _Unfit(f"gives {name!r} as {_kind(given[name])} for {n} rows. Give a numpy array of shape ({n},)")
    if outputs is None and given["the answer"].dtype != np.bool_:
        raise _Unfit(f"gives {given['the answer'].dtype} values. Give bool[n]: which events are predicted")
    return {name: given[name] for name in names}


def _kind(value: Any) -> str:
    return f"an array of shape {value.shape}" if isinstance(value, np.ndarray) else f"a {type(value).__name__}"


def _check_feast(view: OnDemandPlan, inputs: Columns, udf: Callable[..., Any]) -> CheckResult:
    """Stock Feast hands over a dict of lists, and takes one back."""
    what = f"on-demand {view.name}"
    try:
        with np.errstate(all="ignore"):
            ours = load_function(view.function)(dict(inputs))
            stock = udf({name: values.tolist() for name, values in inputs.items()})
    except Exception as error:  # noqa: BLE001  # as above
        why = f"called with lists it raised {type(error).__name__}: {error}"
        return CheckResult("same in stock Feast", what, False, why)
    for column in view.outputs:
        if column.name not in stock:
            return CheckResult("same in stock Feast", what, False, f"the view's function does not give {column.name!r}")
        if not _equal(np.asarray(ours[column.name]), np.asarray(stock[column.name], dtype=ours[column.name].dtype)):
            return CheckResult(
                "same in stock Feast",
                what,
                False,
                f"{column.name!r} of the view's own function differs from {view.function}, which workers call",
            )
    return CheckResult("same in stock Feast", what, True)


def _check_imports(modules: list[str]) -> CheckResult:
    """In an interpreter of its own, because this one has imported feast."""
    code = f"import sys; sys.path[:0] = {sys.path!r}; import {', '.join(modules)}; sys.exit('feast' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    said = done.stderr.strip().splitlines() or ["it imports feast, which workers must not wait for"]
    passed = done.returncode == 0
    return CheckResult("workers import it", ", ".join(modules), passed, "" if passed else said[-1])


def _equal(one: Values, other: Values) -> bool:
    """Equal values, NaN being equal to NaN."""
    if one.shape != other.shape:
        return False
    if "O" in (one.dtype.kind, other.dtype.kind):
        return [_comparable(value) for value in one.tolist()] == [_comparable(value) for value in other.tolist()]
    return bool(np.array_equal(one, other, equal_nan=one.dtype.kind in "fcmM"))


def _comparable(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value
