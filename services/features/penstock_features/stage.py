"""The features stage: windows per key for every row, in event time, then the on-demand views and the service's columns.

A row's windows are updated exactly once and nothing after that can raise: a pipeline's function that fails costs its
rows, which become rejects, and never the batch. The view topics take a row whatever becomes of it afterwards.
"""

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from penstock.codec.arrow import arrow_schema
from penstock.envelope import COLUMNS as ENVELOPE
from penstock.envelope import EVENT_ID, EVENT_TIME, LABEL_KEY
from penstock.plan import Plan, PlanError, StagePlan, ViewPlan
from penstock.records import Batch, Output, Partition, Reason, Result
from penstock.stage import Stage, StageKind
from penstock.windows.layout import KERNEL_VERSION
from penstock.windows.spec import ViewSpec
from penstock.windows.state import Column, warm_up
from penstock_features.columns import Columns, Places, from_numpy, is_valid, numbers, take, texts
from penstock_features.functions import VectorFunction, condition, on_demand
from penstock_features.views import PartitionWindows, aggregated, clamped, stage_specs

OFFSET = "_offset"
Arrays = dict[str, "pa.Array[Any]"]


class FeaturesStage(Stage):
    """One stage of a pipeline's chain of entities; made by ``build``."""

    def __init__(self, plan: Plan, stage: StagePlan) -> None:
        self._stage = stage
        self._views: list[ViewPlan] = [plan.view(name) for name in stage.views]
        self._before = [plan.view(name) for name in dict.fromkeys(n for view in self._views for n in view.upstream)]
        self._specs: list[ViewSpec] = stage_specs(plan, stage.views, stage.inputs[0].value.avro)
        self._aggregated = aggregated(self._specs)
        self._features = [a.name for spec in self._specs for a in spec.aggregations]
        self._windows: dict[Partition, PartitionWindows] = {}
        self._service = [column.name for column in plan.service.columns]
        self._label = plan.label.key if plan.label else None
        self._when = condition(plan.when) if stage.last and plan.when else None
        self._otherwise = Reason(plan.when.otherwise, "predict_when is false for this event") if plan.when else None
        self._on_demand: list[VectorFunction] = [on_demand(view) for view in plan.on_demand] if stage.last else []
        self._next_topic = next((topic for topic in stage.outputs if topic.startswith(f"{plan.pipeline}.by.")), None)
        self._last_topic = f"{plan.pipeline}.features"
        self._check(plan)

    def _check(self, plan: Plan) -> None:
        schema = arrow_schema(self._stage.inputs[0].value.avro)
        given = {*schema.names, *self._features}
        for name in {view.key for view in self._views} | {self._stage.next_key, self._label} - {None}:
            if name not in schema.names:
                raise PlanError(f"stage {self._stage.name!r} needs {name!r} as a key, which its input does not have")
            texts(pa.array([], schema.field(name).type))  # raises now and not after the windows were updated
        made = set(given)
        if not self._stage.last and (self._stage.next_key is None or self._next_topic is None):
            raise PlanError(f"stage {self._stage.name!r} is not the last and names no next key. Compile the plan again")
        for function in self._on_demand:
            missing = [name for name in function.inputs or () if name not in given]
            if missing:
                raise PlanError(
                    f"on-demand view {function.name!r} reads {missing[0]!r}, which is neither event nor feature"
                )
            made |= set(function.outputs.names)
        absent = [name for name in self._service if self._stage.last and name not in made]
        if absent:
            raise PlanError(f"service {plan.service.name!r} names {absent[0]!r}, which no view computes")

    def reach(self, topic: str) -> int:
        """Longest window, lateness and one tile."""
        return max((spec.history_ms for spec in self._specs), default=0)

    def restore(self, partition: Partition, snapshot: bytes | None) -> None:
        self._windows[partition] = (
            PartitionWindows(self._specs) if snapshot is None else PartitionWindows.restore(self._specs, snapshot)
        )

    def state_version(self) -> str:
        """The kernel, and this stage's views with all that come before them."""
        return ".".join(
            (f"kernel {KERNEL_VERSION}", *(view.hash for view in self._before), *(v.hash for v in self._views))
        )

    def release(self, partition: Partition) -> None:
        self._windows.pop(partition, None)

    def snapshot(self, partition: Partition) -> bytes:
        return self._windows[partition].snapshot()

    def sizes(self) -> dict[str, tuple[int, int]]:
        """Bytes and keys of each view's windows, over all partitions."""
        totals = {spec.name: (0, 0) for spec in self._specs}
        for windows in self._windows.values():
            for name, size in windows.nbytes.items():
                held, keys = totals[name]
                totals[name] = (held + size, keys + windows.key_counts[name])
        return totals

    def process(self, batch: Batch) -> Result:
        if not len(batch):
            return Result()
        features, late = self._update(batch)
        if batch.replay:
            return Result()
        outputs = [output for view in self._views if (output := self._view_rows(view, batch, features))]
        if not self._stage.last:
            return Result([*outputs, self._next_rows(batch, features)], late=late)
        output, rejects, dropped = self._service_rows(batch, features)
        return Result([*outputs, output], rejects, dropped, late)

    def _update(self, batch: Batch) -> tuple[Arrays, int]:
        """Every row through the windows of its partition: the features in the batch's order, and how many were late."""
        rows = batch.rows
        keys = {spec.key: texts(rows.column(spec.key)) for spec in self._specs}
        columns = {name: numbers(rows.column(name)) for name in self._aggregated}
        times, watermark = batch.event_time, clamped(batch.watermark)
        parts = _by_partition(batch)
        for number, places in parts:
            self._of(batch.topic, number).check(_at(times, places), _at(watermark, places))
        found: list[list[pa.Array[Any]]] = []
        late = 0
        for number, places in parts:
            part_keys = {name: _rows_of(array, places) for name, array in keys.items()}
            part_columns: dict[str, Column] = {n: (_at(v, places), _at(ok, places)) for n, (v, ok) in columns.items()}
            arrays, is_late = self._of(batch.topic, number).update(
                part_keys, _at(times, places), _at(watermark, places), _at(batch.offset, places), part_columns
            )
            found.append(arrays)
            late += int(np.count_nonzero(is_late))
        return ({} if batch.replay else self._in_order(found, parts)), late

    def _of(self, topic: str, number: int) -> PartitionWindows:
        partition = Partition(topic, number)
        windows = self._windows.get(partition)
        if windows is None:  # a bare stage, in a backfill or a test, is not assigned anything
            windows = self._windows[partition] = PartitionWindows(self._specs)
        return windows

    def _in_order(self, found: list[list["pa.Array[Any]"]], parts: "Parts") -> Arrays:
        if len(found) == 1:
            return dict(zip(self._features, found[0], strict=True))
        whole = [pa.concat_arrays(pieces) for pieces in zip(*found, strict=True)]
        places = [where for _, where in parts]
        if not all(isinstance(where, slice) for where in places):
            order = np.concatenate([np.r_[where] if isinstance(where, slice) else where for where in places])
            back = np.empty(len(order), np.int64)
            back[order] = np.arange(len(order))
            whole = [take(array, back) for array in whole]
        return dict(zip(self._features, whole, strict=True))

    def _view_rows(self, view: ViewPlan, batch: Batch, features: Arrays) -> Output | None:
        """A row per event that has a key: a null key has features of no entity."""
        if view.topic is None:
            return None
        key = batch.rows.column(view.key)
        rows = pa.RecordBatch.from_pydict(
            {
                EVENT_ID: batch.rows.column(EVENT_ID),
                EVENT_TIME: batch.rows.column(EVENT_TIME),
                OFFSET: from_numpy(batch.offset, pa.int64()),
                view.key: key,
                **{a.name: features[a.name] for a in view.aggregations},
            }
        )
        keys = batch.keys
        source = np.arange(len(batch), dtype=np.int32)
        if key.null_count:
            some = np.flatnonzero(is_valid(key))
            places = from_numpy(some, pa.int64())
            rows, keys, source = rows.take(places), keys.take(places), source[some]
        return Output(view.topic, keys, rows, source, fate=False)

    def _next_rows(self, batch: Batch, features: Arrays) -> Output:
        """The events with this stage's features, under the next entity's key."""
        assert self._stage.next_key is not None
        assert self._next_topic is not None
        given = dict(zip(batch.rows.schema.names, batch.rows.columns, strict=True))
        keys = texts(given[self._stage.next_key])
        rows = pa.RecordBatch.from_pydict({**given, **features})
        return Output(self._next_topic, keys, rows, np.arange(len(batch), dtype=np.int32))

    def _service_rows(self, batch: Batch, features: Arrays) -> tuple[Output, dict[int, Reason], dict[int, Reason]]:
        """The service's columns of the events that are to be predicted; the others' fates."""
        known = {**dict(zip(batch.rows.schema.names, batch.rows.columns, strict=True)), **features}
        rejects: dict[int, Reason] = {}
        dropped: dict[int, Reason] = {}
        chosen: Places | None = None
        if self._when is not None:
            holds, rejects = self._when(Columns(known), len(batch))
            chosen = np.flatnonzero(holds)
            out = np.flatnonzero(~holds).tolist()
            assert self._otherwise is not None
            dropped = {row: self._otherwise for row in out if row not in rejects}
        chosen = None if chosen is None or len(chosen) == len(batch) else chosen
        arrays, good, failed = self._computed(known, chosen, len(batch))
        rejects |= failed
        output = self._service_output(batch, {**known, **arrays}, good, set(arrays))
        return output, rejects, dropped

    def _computed(
        self, known: Arrays, chosen: Places | None, n: int
    ) -> tuple[Arrays, Places | None, dict[int, Reason]]:
        """The on-demand columns of the chosen rows that no function failed on, those rows (None: all), the others."""
        rows = np.arange(n) if chosen is None else chosen
        arrays: Arrays = {}
        failed: dict[int, Reason] = {}
        if not len(rows):
            empty = {f.name: pa.nulls(0, f.type) for function in self._on_demand for f in function.outputs}
            return empty, chosen, failed
        columns: Mapping[str, NDArray[Any]] = Columns(known, chosen)
        for function in self._on_demand:
            answer = function(columns, len(rows))
            made = dict(zip(function.outputs.names, answer.arrays, strict=True))
            if answer.failed:
                failed |= {int(rows[row]): why for row, why in answer.failed.items()}
                arrays = {name: take(array, answer.rows) for name, array in arrays.items()}
                rows = chosen = rows[answer.rows]
                columns = Columns(known, chosen)
                if not len(rows):
                    return {f.name: pa.nulls(0, f.type) for g in self._on_demand for f in g.outputs}, chosen, failed
            arrays |= made
        return arrays, chosen, failed

    def _service_output(self, batch: Batch, known: Arrays, chosen: Places | None, made: set[str]) -> Output:
        def column(name: str) -> "pa.Array[Any]":
            return known[name] if chosen is None or name in made else take(known[name], chosen)

        columns = {name: column(name) for name in ENVELOPE}
        if self._label is not None:
            columns[LABEL_KEY] = texts(column(self._label))
        columns |= {name: column(name) for name in self._service}
        source = np.arange(len(batch), dtype=np.int32)
        keys = batch.keys
        if chosen is not None:
            source, keys = source[chosen], take(keys, chosen)
        return Output(self._last_topic, keys, pa.RecordBatch.from_pydict(columns), source)


Where = slice | Places
Parts = list[tuple[int, Where]]


def _by_partition(batch: Batch) -> Parts:
    """The partitions of a batch with their rows in order: a slice where they lie together."""
    partition = batch.partition
    if bool((partition == partition[0]).all()):
        return [(int(partition[0]), slice(0, len(batch)))]
    order = None
    if bool((partition[1:] < partition[:-1]).any()):
        order = np.argsort(partition.astype(np.int16), kind="stable")
        partition = partition[order]
    bounds = [0, *(np.flatnonzero(np.diff(partition)) + 1).tolist(), len(partition)]
    return [
        (int(partition[low]), slice(low, high) if order is None else order[low:high])
        for low, high in itertools.pairwise(bounds)
    ]


def _at(values: NDArray[Any], where: Where) -> NDArray[Any]:
    return values[where]


def _rows_of(array: "pa.Array[Any]", where: Where) -> "pa.Array[Any]":
    if isinstance(where, slice):
        return array.slice(where.start, where.stop - where.start)
    return take(array, where)


def build(plan: Plan, name: str) -> FeaturesStage:
    """The stage called ``name`` in the plan, with its kernels compiled. Raises ``PlanError``."""
    stage = FeaturesStage(plan, plan.stage(name))
    warm_up()
    return stage


kind = StageKind(build)
