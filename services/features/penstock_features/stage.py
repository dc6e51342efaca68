"""The features stage: windows per key for every row, in event time, then the on-demand views and the service's columns.

A row's windows are updated exactly once and nothing after that can raise: a pipeline's function that fails costs its
rows, which become rejects, and never the batch. The view topics take a row whatever becomes of it afterwards. A copy
of an event that came before is dropped ahead of all of it.
"""

import itertools
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from penstock.codec.arrow import arrow_schema
from penstock.envelope import COLUMNS as ENVELOPE
from penstock.envelope import EVENT_ID, EVENT_TIME, LABEL_KEY, ORIGIN_OFFSET, ORIGIN_PARTITION, REPLAYS
from penstock.plan import Plan, PlanError, StagePlan, ViewPlan
from penstock.records import Batch, Output, Partition, Reason, Result, State
from penstock.records import column as binary
from penstock.stage import Stage, StageKind
from penstock.windows.layout import KERNEL_VERSION
from penstock.windows.spec import ViewSpec
from penstock.windows.state import Column, warm_up
from penstock_features.columns import Columns, Places, from_numpy, is_valid, numbers, take, texts
from penstock_features.duplicates import DUPLICATES_VERSION, replayed_places
from penstock_features.functions import VectorFunction, condition, on_demand
from penstock_features.views import PartitionWindows, aggregated, clamped, stage_specs

OFFSET = "_offset"
DUPLICATE = "duplicate"
Arrays = dict[str, "pa.Array[Any]"]


class Prepared(NamedTuple):
    """What the windows take of a batch, with all that can fail on it behind it; ``keys`` by their column."""

    keys: Arrays
    columns: dict[str, Column]
    watermark: NDArray[np.int64]
    parts: "Parts"


class FeaturesStage(Stage):
    """One stage of a pipeline's chain of entities; made by ``build``."""

    def __init__(self, plan: Plan, stage: StagePlan) -> None:
        self._stage = stage
        self._views: list[ViewPlan] = [plan.view(name) for name in stage.views]
        self._before = [plan.view(name) for name in dict.fromkeys(n for view in self._views for n in view.upstream)]
        self._specs: list[ViewSpec] = stage_specs(plan, stage.views, stage.inputs[0].value.avro)
        self._aggregated = aggregated(self._specs)
        self._features = [a.name for spec in self._specs for a in spec.aggregations]
        self._key = self._views[0].key
        self._windows: dict[Partition, PartitionWindows] = {}
        self._service = [column.name for column in plan.service.columns]
        self._label = plan.label.key if plan.label else None
        self._when = condition(plan.when) if stage.last and plan.when else None
        self._otherwise = Reason(plan.when.otherwise, "predict_when is false for this event") if plan.when else None
        self._on_demand: list[VectorFunction] = [on_demand(view) for view in plan.on_demand] if stage.last else []
        self._next_topic = next((topic for topic in stage.outputs if topic.startswith(f"{plan.pipeline}.by.")), None)
        self._last_topic = f"{plan.pipeline}.features"
        self._raw = f"{plan.pipeline}.raw"
        is_first = stage.inputs[0].topic == f"{plan.pipeline}.events"
        self._horizon = plan.event.deduplicate_ms if is_first else None
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
        """Longest window, lateness and one tile; and the horizon before that, in which the oldest row of a window may
        have been a copy."""
        return max((spec.history_ms for spec in self._specs), default=0) + (self._horizon or 0)

    def restore(self, partition: Partition, snapshot: State | None) -> None:
        self._windows[partition] = (
            PartitionWindows(self._specs, self._horizon)
            if snapshot is None
            else PartitionWindows.restore(self._specs, snapshot, self._horizon)
        )

    def state_version(self) -> str:
        """The kernel, this stage's views with all that come before them, and how copies are told."""
        ids = () if self._horizon is None else (f"duplicates {DUPLICATES_VERSION} {self._horizon}",)
        return ".".join(
            (f"kernel {KERNEL_VERSION}", *ids, *(view.hash for view in self._before), *(v.hash for v in self._views))
        )

    def release(self, partition: Partition) -> None:
        self._windows.pop(partition, None)

    def snapshot(self, partition: Partition) -> State:
        return self._windows[partition].snapshot()

    def sizes(self) -> dict[str, tuple[int, int]]:
        """Bytes and keys of each view's windows and of the event ids, over all partitions."""
        totals = {spec.name: (0, 0) for spec in self._specs}
        for windows in self._windows.values():
            for name, (size, keys) in windows.sizes.items():
                held, before = totals.get(name, (0, 0))
                totals[name] = (held + size, before + keys)
        return totals

    def process(self, batch: Batch) -> Result:
        if not len(batch):
            return Result()
        rows = self._prepared(batch)
        copies = {} if self._horizon is None else self._copies(batch, rows)
        if not copies:
            return self._fates(batch, rows)
        kept = np.setdiff1d(np.arange(len(batch), dtype=np.int32), list(copies))
        result = Result()
        if len(kept):
            rest = batch.take(kept)
            result = self._fates(rest, self._prepared(rest))
        return Result() if batch.replay else _with_drops(result, kept, copies)

    def _fates(self, batch: Batch, rows: Prepared) -> Result:
        features, late = self._update(batch, rows)
        if batch.replay:
            return Result()
        outputs = [output for view in self._views if (output := self._view_rows(view, batch, features))]
        if not self._stage.last:
            return Result([*outputs, self._next_rows(batch, features)], late=late)
        output, rejects, dropped = self._service_rows(batch, rows.keys[self._key], features)
        return Result([*outputs, output], rejects, dropped, late)

    def _prepared(self, batch: Batch) -> Prepared:
        """Raises, with nothing changed, where the windows could not take the batch."""
        keys = {spec.key: texts(batch.rows.column(spec.key)) for spec in self._specs}
        columns = {name: numbers(batch.rows.column(name)) for name in self._aggregated}
        rows = Prepared(keys, columns, clamped(batch.watermark), _by_partition(batch))
        for number, places in rows.parts:
            times, watermark = _at(batch.event_time, places), _at(rows.watermark, places)
            self._of(batch.topic, number).check(times, watermark)
        return rows

    def _copies(self, batch: Batch, rows: Prepared) -> dict[int, Reason]:
        """The rows whose event came before on its partition, by id."""
        found: dict[int, Reason] = {}
        ids = texts(batch.rows.column(EVENT_ID))
        origin = batch.rows.column(ORIGIN_PARTITION).to_numpy().astype(np.int64)
        offset = batch.rows.column(ORIGIN_OFFSET).to_numpy()
        replayed = replayed_places(batch.rows.column(REPLAYS), self._raw)
        for number, places in rows.parts:
            seen = self._of(batch.topic, number).seen
            assert seen is not None, "the horizon says that ids are kept"
            times, watermark = _at(batch.event_time, places), _at(rows.watermark, places)
            origins = _at(origin, places), _at(offset, places)
            of = _at(replayed[0], places), _at(replayed[1], places)
            firsts = seen.firsts(_rows_of(ids, places), times, watermark, origins, of)
            if firsts is None:
                continue
            again = np.flatnonzero(firsts[:, 0] >= 0)
            at = again + places.start if isinstance(places, slice) else places[again]
            for row, (first_partition, first_offset) in zip(at.tolist(), firsts[again].tolist(), strict=True):
                first = f"{self._raw}/{first_partition}@{first_offset}"
                found[row] = Reason(DUPLICATE, f"the event of this id came before, as {first}")
        return found

    def _update(self, batch: Batch, rows: Prepared) -> tuple[Arrays, int]:
        """Every row through the windows of its partition: the features in the batch's order, and how many were late."""
        parts = rows.parts
        found: list[list[pa.Array[Any]]] = []
        late = 0
        for number, places in parts:
            part_keys = {name: _rows_of(array, places) for name, array in rows.keys.items()}
            part_columns: dict[str, Column] = {
                n: (_at(v, places), _at(ok, places)) for n, (v, ok) in rows.columns.items()
            }
            times, watermark, offset = (_at(a, places) for a in (batch.event_time, rows.watermark, batch.offset))
            windows = self._of(batch.topic, number)
            arrays, is_late = windows.update(part_keys, times, watermark, offset, part_columns)
            found.append(arrays)
            late += int(np.count_nonzero(is_late))
        return ({} if batch.replay else self._in_order(found, parts)), late

    def _of(self, topic: str, number: int) -> PartitionWindows:
        partition = Partition(topic, number)
        windows = self._windows.get(partition)
        if windows is None:  # a bare stage, in a backfill or a test, is not assigned anything
            windows = self._windows[partition] = PartitionWindows(self._specs, self._horizon)
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

    def _service_rows(
        self, batch: Batch, keys: "pa.Array[Any]", features: Arrays
    ) -> tuple[Output, dict[int, Reason], dict[int, Reason]]:
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
        output = self._service_output(batch, keys, {**known, **arrays}, good, set(arrays))
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

    def _service_output(
        self, batch: Batch, keys: "pa.Array[Any]", known: Arrays, chosen: Places | None, made: set[str]
    ) -> Output:
        def column(name: str) -> "pa.Array[Any]":
            return known[name] if chosen is None or name in made else take(known[name], chosen)

        columns = {name: column(name) for name in ENVELOPE}
        if self._label is not None:
            columns[LABEL_KEY] = texts(column(self._label))
        columns |= {name: column(name) for name in self._service}
        source = np.arange(len(batch), dtype=np.int32)
        if chosen is not None:
            source, keys = source[chosen], take(keys, chosen)
        # the entity's key and not the record's: an event without an entity may have come under its id
        return Output(self._last_topic, binary(keys), pa.RecordBatch.from_pydict(columns), source)


def _with_drops(result: Result, kept: NDArray[np.int32], copies: dict[int, Reason]) -> Result:
    """The result of the ``kept`` rows as one of the whole batch, of which the ``copies`` are dropped."""
    place = kept.tolist()
    return Result(
        [Output(o.topic, o.keys, o.rows, kept[o.source], o.fate) for o in result.outputs],
        {place[row]: reason for row, reason in result.rejects.items()},
        {**copies, **{place[row]: reason for row, reason in result.dropped.items()}},
        result.late,
    )


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
