"""The feature service's columns as the one float32 matrix that a model reads, in the order of the manifest; null
becomes NaN.

Training uses it too, so that a model meets the same numbers when it serves.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from penstock.models.manifest import Manifest, ModelError
from penstock.plan import ColumnPlan, Plan

Floats = npt.NDArray[np.float32]


class FeatureMatrix:
    """Fills one buffer again and again: the matrix of a batch is good until the next ``fill``."""

    def __init__(self, names: tuple[str, ...], codes: Mapping[str, tuple[str, ...]]) -> None:
        self._names = names
        self._codes = {name: pa.array(values, pa.string()) for name, values in codes.items()}
        self._buffer = np.empty((0, len(names)), np.float32)

    def fill(self, rows: pa.RecordBatch) -> Floats:
        """float32[n, k] in C order. Numbers beyond float32 become infinite, integers beyond 2**24 lose their last
        digits.
        """
        n = rows.num_rows
        if len(self._buffer) < n:
            self._buffer = np.empty((n, len(self._names)), np.float32)
        matrix = self._buffer[:n]
        with np.errstate(over="ignore"):
            for j, name in enumerate(self._names):
                matrix[:, j] = self._numbers(rows.column(name), name)
        return matrix

    def _numbers(self, column: pa.Array, name: str) -> npt.NDArray[np.generic]:
        codes = self._codes.get(name)
        if codes is not None:
            column = pc.index_in(column, value_set=codes, skip_nulls=True)
        elif pa.types.is_boolean(column.type):
            column = column.cast(pa.uint8())
        elif pa.types.is_null(column.type):
            return np.full(len(column), np.nan, np.float32)
        numbers: npt.NDArray[np.generic] = column.to_numpy(zero_copy_only=False)
        return numbers


def matrix_for(plan: Plan, manifest: Manifest) -> FeatureMatrix:
    """The matrix of this model. Raises ``ModelError`` when it was trained for other columns than the plan's service
    gives.
    """
    service = plan.service
    columns = tuple(column.name for column in service.columns)
    if manifest.feature_service_hash != service.hash:
        raise ModelError(
            f"model {manifest.label} was trained for feature service {manifest.feature_service!r} with hash "
            f"{manifest.feature_service_hash}, the plan of {plan.pipeline!r} has {service.name!r} with hash "
            f"{service.hash}. Train and register a version for these features, or go back to the former definitions"
        )
    if manifest.input.columns != columns:
        raise ModelError(
            f"model {manifest.label} reads the columns {', '.join(manifest.input.columns)}, service "
            f"{service.name!r} gives {', '.join(columns)}. Write the manifest with the service's columns in order"
        )
    for column in service.columns:
        _check_type(column, manifest)
    return FeatureMatrix(columns, manifest.input.codes)


def _check_type(column: ColumnPlan, manifest: Manifest) -> None:
    branches = column.type if isinstance(column.type, list) else [column.type]
    text = any(branch in ("string", {"type": "string"}) for branch in branches)
    if text and column.name not in manifest.input.codes:
        raise ModelError(
            f"model {manifest.label}: column {column.name!r} is a string and the manifest has no codes for it. "
            "List its values under input.codes, or turn it into a number in an on-demand view"
        )
    if not text and column.name in manifest.input.codes:
        raise ModelError(
            f"model {manifest.label}: column {column.name!r} is {column.type!r} and needs no codes. "
            "Remove them from the manifest"
        )
