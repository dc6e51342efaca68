"""The monitor's stage: features, predictions and outcomes reduced to partial profiles, which go out with the commit
of the rows they count.

It holds three things: counts since the last flush, the reference profiles whose bins it counts in, and per partition
of the outcomes what waits for the other half. Only the last is state that a replay has to rebuild. Features carry no
version, for they are the same whoever serves: their partials are written under the plan's model with an empty
version.
"""

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from penstock.plan import ColumnPlan, Plan
from penstock.profiles.binning import Floats, Kind, as_floats, confidence_edges
from penstock.profiles.outcomes import OutcomePartials
from penstock.profiles.partial import ColumnPartials
from penstock.profiles.reference import ColumnProfile
from penstock.profiles.rows import CLASS, CONFIDENCE, SCORE, ProfileRow, to_arrow
from penstock.records import Batch, Output, Partition, Result, State
from penstock.stage import Stage, StageKind
from penstock_monitor.join import JOIN_VERSION, Facts, Int64s, Pending
from penstock_monitor.references import ReferenceReader, References, ReferenceWatcher
from penstock_monitor.served import Served

FLUSH_MS = 1000
LABEL_JOIN = "label_join"
CLASSES = ("0", "1")
_CONFIDENCE = ColumnProfile(kind="numeric", n=0, nulls=0, edges=tuple(confidence_edges().tolist()), counts=())
_CLASS = ColumnProfile(kind="categorical", n=0, nulls=0, categories=CLASSES, counts=())


class MonitorStage(Stage):
    """Absorbs every row; ``flush`` emits the partials of all rows since the last one."""

    absorbs = True

    def __init__(self, plan: Plan, references: References | None = None) -> None:
        self._plan = plan
        self._model = plan.model.name if plan.model is not None else ""
        self._binary = plan.model is None or plan.model.task == "binary"
        self._horizon = plan.label.horizon_ms if plan.label is not None else 0
        topic = plan.pipeline.__add__
        self._ways: dict[str, Callable[[Batch], None]] = {
            topic(".features"): self._features,
            topic(".predictions"): self._predictions,
            topic(".outcomes"): self._outcomes,
        }
        self._profiles = topic(".profiles")
        self._outcomes_topic = topic(".outcomes")
        self._served, self._judged = Served(), Served()
        self._pending: dict[int, Pending] = {}
        self._ready: list[ProfileRow] = []
        self._begin(references or References())

    def use(self, references: References) -> None:
        """Count in the bins of ``references`` from now on; what was counted in others goes out as it is."""
        self._ready += self._drain()
        self._begin(references)

    def _begin(self, references: References) -> None:
        self._references = references
        newest = references.newest
        columns = [(column.name, kind_of_column(column)) for column in self._plan.service.columns]
        monitors = self._plan.monitors
        known = dict(newest.columns) if newest is not None else {}
        name = newest.id if newest is not None else ""
        self._columns = ColumnPartials(columns, known, monitors.pane_ms, monitors.window_ms, name, self._model)
        self._by_served: dict[int, ColumnPartials] = {}
        self._by_judged: dict[int, OutcomePartials] = {}

    def process(self, batch: Batch) -> Result:
        way = self._ways.get(batch.topic)
        if way is None:
            raise ValueError(f"a monitor of {self._plan.pipeline!r} does not read {batch.topic!r}")
        way(batch)
        return Result()

    def flush(self) -> Result:
        rows = self._ready + self._drain()
        self._ready = []
        if not rows:
            return Result()
        keys = pa.array([row.key for row in rows])
        return Result([Output(self._profiles, keys, to_arrow(rows), np.full(len(rows), -1, np.int32))])

    def reach(self, topic: str) -> int | None:
        # two horizons is the longest wait (see join), and one more is as far as a label's prediction lies before it
        return 3 * self._horizon + self._plan.lateness_ms if topic == self._outcomes_topic else None

    def restore(self, partition: Partition, snapshot: State | None) -> None:
        if partition.topic != self._outcomes_topic:
            return
        self._pending[partition.number] = (
            Pending(self._horizon)
            if snapshot is None
            else Pending.restore(self._horizon, snapshot[LABEL_JOIN], self._judged.code)
        )

    def snapshot(self, partition: Partition) -> State:
        pending = self._pending[partition.number]
        return {LABEL_JOIN: pending.snapshot({code: self._judged.name(code) for code in pending.served if code >= 0})}

    def state_version(self) -> str:
        return f"label join {JOIN_VERSION}, horizon {self._horizon} ms"

    def release(self, partition: Partition) -> None:
        if partition.topic == self._outcomes_topic:
            self._pending.pop(partition.number, None)

    def sizes(self) -> dict[str, tuple[int, int]]:
        """Bytes and entries of what waits in the label join."""
        held = [pending.size for pending in self._pending.values()]
        return {LABEL_JOIN: (sum(size for size, _ in held), sum(entries for _, entries in held))}

    def waiting(self, partition: Partition) -> tuple[int, int]:
        """How many predictions and labels of a partition of the outcomes wait for the other."""
        return self._pending[partition.number].waiting

    def _features(self, batch: Batch) -> None:
        if not batch.replay:
            self._columns.add(batch.rows, batch.event_time)

    def _predictions(self, batch: Batch) -> None:
        if batch.replay:
            return
        rows = batch.rows
        named = pa.record_batch(
            {
                SCORE: rows.column("score"),
                CONFIDENCE: rows.column("confidence"),
                CLASS: rows.column("label"),
            }
        )
        codes = self._served.codes(rows)
        for code, chosen in _groups(codes):
            if code not in self._by_served:
                self._by_served[code] = self._score_partials(*self._served.name(code))
            if chosen is None:
                self._by_served[code].add(named, batch.event_time)
            else:
                self._by_served[code].add(named.take(pa.array(chosen)), batch.event_time[chosen])

    def _score_partials(self, model: str, version: str) -> ColumnPartials:
        columns: list[tuple[str, Kind]] = [(SCORE, "numeric")]
        references = {CONFIDENCE: _CONFIDENCE, CLASS: _CLASS}
        if self._binary:
            columns += [(CONFIDENCE, "numeric"), (CLASS, "categorical")]
        profile = self._references.by_version.get(version)
        if profile is not None and profile.score is not None:
            references[SCORE] = profile.score
        name = profile.id if profile is not None else ""
        pane, window = self._plan.monitors.pane_ms, self._plan.monitors.window_ms
        return ColumnPartials(columns, references, pane, window, name, model, version)

    def _outcomes(self, batch: Batch) -> None:
        facts = self._facts(batch)
        for number, chosen in _groups(batch.partition.astype(np.int64)):
            rows = np.arange(len(facts)) if chosen is None else chosen
            met = self._pending_of(number).meet(facts, rows)
            if batch.replay:
                continue
            for code, some in _groups(met.pairs["served"]):
                pairs = met.pairs if some is None else met.pairs[some]
                self._judge(code).add(*(pairs[name] for name in ("time", "score", "predicted", "value", "baseline")))
            for expired, labels in ((met.predictions, False), (met.labels, True)):
                for code, some in _groups(expired[:, 0]):
                    times = expired[:, 1] if some is None else expired[some, 1]
                    self._judge(code).add_expired(times, labels)

    def _facts(self, batch: Batch) -> Facts:
        rows = batch.rows
        predicted = np.full(len(batch), -1, np.int64)
        label = rows.column("label")
        for code, name in enumerate(CLASSES):
            predicted[_true(pc.equal(label, name))] = code
        return Facts(
            _true(pc.equal(rows.column("kind"), "label")),
            rows.column("label_key"),
            np.ascontiguousarray(batch.event_time),
            self._judged.codes(rows),
            predicted,
            _contiguous(rows, "score"),
            _contiguous(rows, "baseline"),
            _contiguous(rows, "value"),
        )

    def _pending_of(self, partition: int) -> Pending:
        # backfills and tests may process without an assignment
        if partition not in self._pending:
            self._pending[partition] = Pending(self._horizon)
        return self._pending[partition]

    def _judge(self, code: int) -> OutcomePartials:
        if code not in self._by_judged:
            model, version = self._judged.name(code) if code >= 0 else (self._model, "")
            profile = self._references.by_version.get(version)
            baseline = profile.baseline if profile is not None else None
            edges = np.asarray(baseline.edges, np.float64) if baseline is not None else None
            monitors, name = self._plan.monitors, profile.id if profile is not None else ""
            self._by_judged[code] = OutcomePartials(
                monitors.pane_ms, monitors.window_ms, model, version, self._binary, name, edges
            )
        return self._by_judged[code]

    def _drain(self) -> list[ProfileRow]:
        parts: list[ColumnPartials | OutcomePartials] = [self._columns]
        parts += [*self._by_served.values(), *self._by_judged.values()]
        return [row for part in parts for row in part.drain()]


def kind_of_column(column: ColumnPlan) -> Kind:
    """How a service's column is profiled, by its Avro type."""
    types = column.type if isinstance(column.type, list) else [column.type]
    names = [kind.get("type") if isinstance(kind, dict) else kind for kind in types if kind != "null"]
    return "categorical" if "string" in names else "boolean" if "boolean" in names else "numeric"


def _groups(codes: Int64s) -> list[tuple[int, Int64s | None]]:
    """The rows of every code; None stands for all rows, which is the usual case."""
    if not len(codes):
        return []
    first = int(codes[0])
    if (codes == first).all():
        return [(first, None)]
    return [(code, np.flatnonzero(codes == code)) for code in np.unique(codes).tolist()]


def _true(flags: "pa.BooleanArray") -> "np.ndarray[tuple[int], np.dtype[np.bool_]]":
    return np.asarray(pc.fill_null(flags, False).to_numpy(zero_copy_only=False), np.bool_)


def _contiguous(rows: "pa.RecordBatch", column: str) -> Floats:
    return np.ascontiguousarray(as_floats(rows.column(column)))


kind = StageKind(
    build=lambda plan, name: MonitorStage(plan),
    companion=lambda plan, name, settings: ReferenceWatcher(ReferenceReader(plan, settings)),
    commit_interval_ms=FLUSH_MS,
)
