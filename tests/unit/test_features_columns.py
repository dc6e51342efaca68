"""Columns between Arrow and numpy: what a pipeline's function is given, and what becomes of what it returns."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from penstock_features.columns import Columns, numbers, texts, to_arrow, to_numpy
from penstock_features.functions import condition

from penstock.plan import WhenPlan

NAN, INF = float("nan"), float("inf")


def test_nulls_are_nan_in_numbers_and_none_in_text() -> None:
    whole = to_numpy(pa.array([1, None], pa.int64()))
    assert whole.dtype == np.float64
    assert np.array_equal(whole, [1.0, NAN], equal_nan=True)
    assert np.array_equal(to_numpy(pa.array([None, 2.5])), [NAN, 2.5], equal_nan=True)
    assert to_numpy(pa.array(["a", None])).tolist() == ["a", None]
    assert to_numpy(pa.array(["a", None]).dictionary_encode()).tolist() == ["a", None]
    assert to_numpy(pa.array([True, None])).tolist() == [True, None]


def test_columns_without_nulls_keep_their_type() -> None:
    assert to_numpy(pa.array([1, 2], pa.int32())).dtype == np.int32
    assert to_numpy(pa.array([True, False])).dtype == np.bool_
    assert to_numpy(pa.array([7], pa.timestamp("us"))).dtype == np.dtype("datetime64[ms]")


def test_a_function_cannot_change_what_others_will_read() -> None:
    columns = Columns({"x": pa.array([1.0, 2.0])})
    with pytest.raises(ValueError, match="read-only"):
        columns["x"][0] = 9.0


def test_columns_are_taken_at_the_chosen_rows() -> None:
    columns = Columns({"x": pa.array([1, 2, 3]), "s": pa.array(["a", None, "c"])}, np.array([2, 1]))
    assert columns["x"].tolist() == [3, 2]
    assert columns["s"].tolist() == ["c", None]
    assert sorted(columns) == ["s", "x"]


@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        (np.array([1.5, NAN, INF, -INF]), pa.float64(), [1.5, None, None, None]),
        (np.array([1.0, NAN]), pa.int64(), [1, None]),
        (np.array([3, 4], np.int8), pa.float64(), [3.0, 4.0]),
        (np.array([True, False]), pa.bool_(), [True, False]),
        (np.array([True, False]), pa.int64(), [1, 0]),
        (np.array(["a", None, NAN], object), pa.string(), ["a", None, None]),
        (np.array(["a", "ß"]), pa.string(), ["a", "ß"]),
        (np.array([1, None, NAN], object), pa.int64(), [1, None, None]),
        (np.array([2.0, INF], object), pa.float64(), [2.0, None]),
        ([1, 2], pa.int64(), [1, 2]),
        (np.array([1.5, NAN], np.float32), pa.float64(), [1.5, None]),
    ],
)
def test_what_a_function_returns_becomes_the_declared_column(
    values: Any, kind: pa.DataType, expected: list[Any]
) -> None:
    column = to_arrow(values, kind)
    assert column.type == kind
    assert column.to_pylist() == expected


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (np.array([1.5]), pa.int64()),
        (np.array(["x"]), pa.float64()),
        (np.array([1j]), pa.float64()),
        (np.array([{"a": 1}], object), pa.string()),
    ],
)
def test_what_does_not_fit_the_declared_column_is_refused(values: Any, kind: pa.DataType) -> None:
    with pytest.raises((ValueError, TypeError)):
        to_arrow(values, kind)


def test_windows_take_nan_and_infinity_for_missing() -> None:
    values, valid = numbers(pa.array([1.0, NAN, None, INF]))
    assert valid.tolist() == [True, False, False, False]
    assert values[0] == 1.0
    assert numbers(pa.array([True, None]))[1].tolist() == [True, False]
    assert numbers(pa.array(["x", None]))[1].tolist() == [True, False]


def test_a_key_may_be_a_number() -> None:
    assert texts(pa.array([7, None])).to_pylist() == ["7", None]
    assert texts(pa.array(["a", "b"]).dictionary_encode()).to_pylist() == ["a", "b"]


def is_even(columns: Any) -> Any:
    if 5 in columns["n"]:
        raise ArithmeticError("no five")
    return columns["n"] % 2 == 0


def too_short(columns: Any) -> Any:
    return np.ones(0, np.bool_)


def test_a_condition_that_raises_for_a_row_is_decided_for_the_others() -> None:
    when = condition(WhenPlan(function=f"{__name__}:is_even", otherwise="odd"))
    holds, failed = when(Columns({"n": pa.array(range(8)), "unused": pa.array(["x"] * 8)}), 8)
    assert np.flatnonzero(holds).tolist() == [0, 2, 4, 6]
    assert list(failed) == [5]
    assert "ArithmeticError" in failed[5].message


def test_a_function_of_the_wrong_length_or_without_a_column_fails_its_rows() -> None:
    when = condition(WhenPlan(function=f"{__name__}:is_even", otherwise="odd"))
    assert list(when(Columns({"m": pa.array([1, 2])}), 2)[1]) == [0, 1]
    short = condition(WhenPlan(function=f"{__name__}:too_short", otherwise="odd"))
    assert list(short(Columns({"n": pa.array([1, 2])}), 2)[1]) == [0, 1]
