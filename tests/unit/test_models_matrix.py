"""The matrix that training and serving share: order, nulls, codes, and the refusal of another service's model."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.models.manifest import Manifest, ModelError
from penstock.models.matrix import FeatureMatrix, matrix_for
from tests.onnx_models import linear, plan


def manifest(columns: dict[str, str], codes: dict[str, tuple[str, ...]] | None = None) -> Manifest:
    content = {"model.onnx": linear().SerializeToString()}
    return Manifest.of(plan(columns=columns), "1.0.0", content, codes=codes)


def test_columns_are_in_the_manifests_order_and_null_is_nan() -> None:
    rows = pa.RecordBatch.from_pydict(
        {
            "extra": pa.array(["x", "y"]),
            "flag": pa.array([True, None]),
            "count": pa.array([None, 7], pa.int64()),
            "amount": pa.array([1.5, None]),
        }
    )

    matrix = FeatureMatrix(("amount", "count", "flag"), {}).fill(rows)

    assert matrix.dtype == np.float32
    assert matrix.flags.c_contiguous
    np.testing.assert_array_equal(matrix, [[1.5, np.nan, 1.0], [np.nan, 7.0, np.nan]])


def test_a_string_becomes_its_place_in_the_codes_and_an_unlisted_one_nan() -> None:
    rows = pa.RecordBatch.from_pydict({"shop": pa.array(["EWR", "LGA", "never seen", None])})

    matrix = FeatureMatrix(("shop",), {"shop": ("EWR", "JFK", "LGA")}).fill(rows)

    np.testing.assert_array_equal(matrix[:, 0], [0.0, 2.0, np.nan, np.nan])


def test_a_column_of_nothing_but_nulls_is_nan() -> None:
    matrix = FeatureMatrix(("a",), {}).fill(pa.RecordBatch.from_pydict({"a": pa.nulls(2)}))

    np.testing.assert_array_equal(matrix, [[np.nan], [np.nan]])


def test_a_number_beyond_float32_becomes_infinite_without_a_warning() -> None:
    matrix = FeatureMatrix(("a",), {}).fill(pa.RecordBatch.from_pydict({"a": pa.array([1e300, -1e300])}))

    np.testing.assert_array_equal(matrix[:, 0], [np.inf, -np.inf])


@given(st.lists(st.lists(st.tuples(st.one_of(st.none(), st.floats(width=32)), st.none() | st.booleans()), max_size=20)))
def test_every_batch_gives_what_a_loop_over_rows_gives(batches: list[list[tuple[float | None, bool | None]]]) -> None:
    matrix = FeatureMatrix(("number", "flag"), {})
    for batch in batches:
        rows = pa.RecordBatch.from_pydict(
            {
                "number": pa.array([number for number, _ in batch], pa.float64()),
                "flag": pa.array([flag for _, flag in batch], pa.bool_()),
            }
        )
        by_row = [[np.nan if value is None else float(value) for value in row] for row in batch]
        np.testing.assert_array_equal(matrix.fill(rows), np.array(by_row, np.float32).reshape(-1, 2))


def test_a_model_for_other_features_is_refused_with_both_hashes() -> None:
    columns = {"amount": "double", "count": "long"}

    with pytest.raises(ModelError, match=r"'basket' with hash feedc0de, the plan .* 'basket' with hash 0ldc0de"):
        matrix_for(plan(columns=columns, service_hash="0ldc0de"), manifest(columns))


def test_a_model_that_reads_the_columns_in_another_order_is_refused() -> None:
    trained, served = {"amount": "double", "count": "long"}, {"count": "long", "amount": "double"}

    with pytest.raises(ModelError, match="reads the columns amount, count, service 'basket' gives count, amount"):
        matrix_for(plan(columns=served), manifest(trained))


def test_a_string_column_without_codes_is_refused() -> None:
    columns = {"amount": "double", "shop": "string"}

    with pytest.raises(ModelError, match="column 'shop' is a string and the manifest has no codes for it"):
        matrix_for(plan(columns=columns), manifest(columns))
    matrix_for(plan(columns=columns), manifest(columns, {"shop": ("a", "b")}))


def test_codes_for_a_number_are_refused() -> None:
    columns = {"amount": "double"}

    with pytest.raises(ModelError, match=r"column 'amount' .* needs no codes"):
        matrix_for(plan(columns=columns), manifest(columns, {"amount": ("a",)}))
