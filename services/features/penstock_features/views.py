"""The windows of all views of a stage on one partition with the event ids it has seen, and what the plan says about
them in the kernel's terms.

Everything that can fail on a batch's types is done before the first window is touched, so that an update is done for
all views or for none.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from penstock.codec.arrow import arrow_schema
from penstock.plan import Plan, PlanError, ViewPlan
from penstock.records import State
from penstock.windows.spec import EVERY_ROW, NUMERIC, AggregationSpec, ColumnType, ViewSpec
from penstock.windows.state import Column, WindowState
from penstock.windows.watermark import NO_WATERMARK
from penstock_features.duplicates import Seen

EVENT_IDS = "event ids"
"""The name of what is no view among the parts of the state; no view can have it, for it names no topic."""
Ints = NDArray[np.int64]
_COLUMN_TYPES: dict["pa.DataType", ColumnType] = {
    pa.bool_(): "bool",
    pa.int32(): "int32",
    pa.int64(): "int64",
    pa.float32(): "float32",
    pa.float64(): "float64",
    pa.string(): "string",
    pa.binary(): "bytes",
}


def window_spec(view: ViewPlan, schema: "pa.Schema") -> ViewSpec:
    """The view as the kernel knows it. Raises ``PlanError`` where the plan and the input's ``schema`` do not fit."""
    tiles: dict[int, int] = {}
    aggregations = []
    for planned in view.aggregations:
        tile = tiles.setdefault(planned.window_ms, planned.tile_ms)
        if tile != planned.tile_ms:
            raise PlanError(
                f"view {view.name!r} has two tiles, {tile} and {planned.tile_ms} ms, for windows of "
                f"{planned.window_ms} ms. Give aggregations of one window the same slide_interval"
            )
        aggregations.append(
            AggregationSpec(
                column=planned.column,
                function=planned.function,
                window_ms=planned.window_ms,
                name=planned.name,
                column_type=_column_type(view, planned.column, schema),
            )
        )
    if view.key not in schema.names:
        raise PlanError(f"view {view.name!r} is keyed by {view.key!r}, which its input does not have: {schema.names}")
    return ViewSpec(
        name=view.name, key=view.key, aggregations=tuple(aggregations), tile_ms=tiles, lateness_ms=view.lateness_ms
    )


def _column_type(view: ViewPlan, column: str, schema: "pa.Schema") -> ColumnType:
    if column == EVERY_ROW:
        return "int64"
    if column not in schema.names:
        raise PlanError(f"view {view.name!r} aggregates {column!r}, which its input does not have: {schema.names}")
    kind = schema.field(column).type
    return "timestamp" if pa.types.is_timestamp(kind) else _COLUMN_TYPES.get(kind, "string")


def stage_specs(plan: Plan, names: tuple[str, ...], avro: Mapping[str, Any]) -> list[ViewSpec]:
    """The specs of the views called ``names``, which read rows of the Avro schema ``avro``."""
    schema = arrow_schema(avro)
    return [window_spec(plan.view(name), schema) for name in names]


def aggregated(specs: list[ViewSpec]) -> list[str]:
    """The columns that the kernel needs values or validity of. A key counts its own rows."""
    names = {a.column: None for spec in specs for a in spec.aggregations if a.column != EVERY_ROW}
    keys = {spec.key for spec in specs}
    return [name for name in names if name not in keys or _summed(specs, name)]


def _summed(specs: list[ViewSpec], name: str) -> bool:
    """A key of one view that another aggregates, or one that is more than counted."""
    return any(
        a.column == name and (spec.key != name or (a.function != "count" and a.column_type in NUMERIC))
        for spec in specs
        for a in spec.aggregations
    )


class PartitionWindows:
    """The state of one partition: a ``WindowState`` per view, in the order of the specs, and the ids of its events
    where copies are looked for within ``horizon_ms``.
    """

    def __init__(self, specs: list[ViewSpec], horizon_ms: int | None = None) -> None:
        self._specs = specs
        self._states = [WindowState(spec) for spec in specs]
        self.seen = None if horizon_ms is None else Seen(horizon_ms)

    @property
    def sizes(self) -> dict[str, tuple[int, int]]:
        """Bytes of memory and keys, by view; and those of the event ids."""
        found = {s.name: (state.nbytes, state.key_count) for s, state in zip(self._specs, self._states, strict=True)}
        return found if self.seen is None else {**found, EVENT_IDS: (self.seen.nbytes, len(self.seen))}

    def check(self, times: Ints, watermark: Ints) -> None:
        """Raises ``ValueError``, with nothing changed, where ``update`` would refuse these rows."""
        behind = any(state.watermark > watermark[0] for state in self._states)
        if behind or bool((watermark[1:] < np.maximum(watermark, times)[:-1]).any()):
            raise ValueError(
                "the watermark of a partition fell behind its rows. It must be the running maximum of the log"
            )

    def update(
        self,
        keys: Mapping[str, "pa.Array[Any]"],
        times: Ints,
        watermark: Ints,
        offsets: Ints,
        columns: Mapping[str, Column],
    ) -> tuple[list["pa.Array[Any]"], NDArray[np.bool_]]:
        """Every view's columns one after the other, and bool[n]: late in any view. ``keys`` by their column."""
        found: list[pa.Array[Any]] = []
        late = np.zeros(len(times), np.bool_)
        for spec, state in zip(self._specs, self._states, strict=True):
            rows = state.update(keys[spec.key], times, watermark, offsets, columns)
            found += rows.columns
            late |= rows.late
        return found, late

    def snapshot(self) -> State:
        """All views by their names, and the event ids."""
        parts = {spec.name: state.snapshot() for spec, state in zip(self._specs, self._states, strict=True)}
        if self.seen is not None:
            parts[EVENT_IDS] = self.seen.snapshot()
        return parts

    @staticmethod
    def restore(specs: list[ViewSpec], snapshot: State, horizon_ms: int | None = None) -> "PartitionWindows":
        """The state that ``snapshot()`` wrote. Raises ``ValueError`` for a view that is missing or changed."""
        wanted = [spec.name for spec in specs] + ([] if horizon_ms is None else [EVENT_IDS])
        missing = [name for name in wanted if name not in snapshot]
        if missing:
            raise ValueError(f"the snapshot has no view {missing[0]!r}. Rebuild the state by replay")
        windows = PartitionWindows(specs)
        windows._states = [WindowState.restore(spec, snapshot[spec.name]) for spec in specs]
        if horizon_ms is not None:
            windows.seen = Seen.restore(horizon_ms, snapshot[EVENT_IDS])
        return windows


def clamped(watermark: Ints) -> Ints:
    """Watermarks from which a lateness can be taken without an overflow."""
    return np.maximum(watermark, NO_WATERMARK)
