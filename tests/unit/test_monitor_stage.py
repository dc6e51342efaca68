"""The monitor's stage: what it emits with a commit, before there is a model, with one, and after a restart."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from penstock_monitor.references import References
from penstock_monitor.stage import MonitorStage

from penstock.plan import FORMAT, ColumnPlan, EventPlan, LabelPlan, ModelPlan, MonitorPlan, Plan, ServicePlan
from penstock.profiles.ranking import auc, auc_of_counts
from penstock.profiles.reference import ReferenceProfile
from penstock.profiles.rows import SCHEMA, ProfileRow, from_arrow
from penstock.records import NO_TIME, Batch, Partition, column
from penstock.stage import Stage

HOUR = 3_600_000
OUTCOMES = pa.schema(
    [
        ("kind", pa.string()),
        ("label_key", pa.string()),
        ("model", pa.string()),
        ("version", pa.string()),
        ("score", pa.float64()),
        ("label", pa.string()),
        ("baseline", pa.float64()),
        ("value", pa.float64()),
    ]
)


def plan(*, model: bool = True) -> Plan:
    return Plan(
        format=FORMAT,
        pipeline="p",
        source="test:p",
        partitions=2,
        lateness_ms=HOUR,
        event=EventPlan(
            avro={}, id=1, subject="p.event", event_id=None, timestamp="t", key="k", max_bytes=1000, future_ms=0
        ),
        label=LabelPlan(avro={}, id=2, subject="p.label", key="k", value="v", timestamp="t", horizon_ms=10 * HOUR),
        when=None,
        topics=(),
        stages=(),
        views=(),
        on_demand=(),
        service=ServicePlan(
            name="s",
            columns=(
                ColumnPlan(name="delay", type=["null", "double"]),
                ColumnPlan(name="count", type=["null", "long"]),
                ColumnPlan(name="carrier", type=["null", "string"]),
                ColumnPlan(name="rain", type=["null", "boolean"]),
            ),
            hash="h1",
        ),
        model=ModelPlan(name="m", task="binary", threshold=0.5, fallback=None) if model else None,
        monitors=MonitorPlan(
            pane_ms=HOUR,
            window_ms=HOUR,
            idle_ms=1000,
            psi=0.2,
            js=0.1,
            null_rate=0.05,
            minimum_rows=100,
            baseline="delay",
        ),
    )


def batch(
    topic: str, rows: pa.RecordBatch, times: Iterable[int], partition: int | Iterable[int] = 0, *, replay: bool = False
) -> Batch:
    at = np.fromiter(times, np.int64)
    n = len(at)
    partitions = np.full(n, partition) if isinstance(partition, int) else np.fromiter(partition, np.int64)
    return Batch(
        f"p.{topic}",
        rows,
        column([b"k"] * n),
        partitions.astype(np.int32),
        np.arange(n, dtype=np.int64),
        at,
        at,
        np.full(n, NO_TIME),
        replay,
    )


def features(n: int, hour: int = 0, seed: int = 0) -> Batch:
    rng = np.random.default_rng(seed)
    delay = rng.normal(10, 5, n)
    delay[::10] = np.nan
    rows = pa.record_batch(
        {
            "delay": pa.array(delay, from_pandas=True),
            "count": pa.array(rng.integers(0, 5, n)),
            "carrier": pa.array(rng.choice(["AA", "UA", "B6"], n)),
            "rain": pa.array(rng.random(n) < 0.3),
        }
    )
    return batch("features", rows, np.full(n, hour * HOUR + 5))


def outcomes(facts: list[dict[str, Any]], *, replay: bool = False) -> Batch:
    rows = pa.RecordBatch.from_pylist([{name: fact.get(name) for name in OUTCOMES.names} for fact in facts], OUTCOMES)
    return batch("outcomes", rows, [f["time"] for f in facts], [f.get("partition", 0) for f in facts], replay=replay)


def predicted(key: str, time: int, score: float, **more: Any) -> dict[str, Any]:
    label = str(int(score >= 0.5))
    fact = {"kind": "prediction", "label_key": key, "time": time, "model": "m", "version": "1.0.0", "score": score}
    return {**fact, "label": label, "baseline": score * 10, **more}


def labelled(key: str, time: int, value: float, **more: Any) -> dict[str, Any]:
    return {"kind": "label", "label_key": key, "time": time, "value": value, **more}


def emitted(stage: Stage) -> list[ProfileRow]:
    result = stage.flush()
    if not result.outputs:
        return []
    (output,) = result.outputs
    assert output.topic == "p.profiles"
    assert output.rows.schema == SCHEMA
    assert (output.source == -1).all()
    rows = from_arrow(output.rows)
    assert output.keys.to_pylist() == [row.key for row in rows]
    return rows


def reference() -> References:
    rows = features(2000, seed=9).rows
    scores = np.random.default_rng(2).random(2000)
    labels = (np.random.default_rng(3).random(2000) < scores).astype(float)
    return References(
        {"1.0.0": ReferenceProfile.build(rows, scores, labels, baseline="delay", version="1.0.0", service_hash="h1")}
    )


def test_before_there_is_a_model_features_have_nulls_and_moments() -> None:
    stage = MonitorStage(plan(model=False))
    assert not stage.process(features(100)).outputs
    stage.process(features(50, hour=3))
    rows = {(row.feature, row.pane // HOUR): row for row in emitted(stage)}
    assert set(rows) == {(name, hour) for name in ("delay", "count", "carrier", "rain") for hour in (0, 3)}
    delay = rows["delay", 0]
    assert (delay.rows, delay.nulls, delay.n, delay.reference, delay.key) == (100, 10, 90, "", "||delay")
    assert delay.bins.tolist() == []
    assert emitted(stage) == []


def test_with_a_reference_features_are_counted_in_its_bins() -> None:
    known = reference()
    stage = MonitorStage(plan(), known)
    for seed in range(3):
        stage.process(features(100, seed=seed))
    rows = {row.feature: row for row in emitted(stage)}
    assert known.newest is not None
    for name, row in rows.items():
        column = known.newest.columns[name]
        assert (row.reference, row.rows, len(row.bins)) == (known.newest.id, 300, len(column.counts))
        assert row.bins.sum() + row.nulls == 300
        assert np.abs(row.bins / row.bins.sum() - column.shares).max() < 0.1
    assert rows["delay"].key == "m||delay"


def test_a_reference_that_comes_later_is_taken_up_between_two_batches() -> None:
    stage = MonitorStage(plan())
    stage.process(features(100))
    stage.use(reference())
    stage.process(features(60))
    delays = [row for row in emitted(stage) if row.feature == "delay"]
    assert [(row.rows, row.reference != "") for row in delays] == [(100, False), (60, True)]


def test_predictions_are_profiled_by_version() -> None:
    n = 400
    rng = np.random.default_rng(1)
    scores = rng.random(n)
    versions = ["1.0.0"] * 300 + ["2.0.0"] * 100
    rows = pa.record_batch(
        {
            "model": pa.array(["m"] * n),
            "version": pa.array(versions),
            "score": pa.array(scores),
            "label": pa.array((scores >= 0.5).astype(int).astype(str)),
            "confidence": pa.array(np.maximum(scores, 1 - scores)),
        }
    )
    known = reference()
    stage = MonitorStage(plan(), known)
    stage.process(batch("predictions", rows, np.full(n, 7)))
    got = {(row.version, row.feature): row for row in emitted(stage)}
    assert set(got) == {(v, f) for v in ("1.0.0", "2.0.0") for f in ("_score", "_confidence", "_class")}
    assert got["1.0.0", "_score"].reference == known.by_version["1.0.0"].id
    assert got["2.0.0", "_score"].reference == ""
    assert got["1.0.0", "_class"].bins.tolist()[:2] == [
        int((scores[:300] < 0.5).sum()),
        int((scores[:300] >= 0.5).sum()),
    ]
    assert got["1.0.0", "_confidence"].mean == pytest.approx(np.maximum(scores, 1 - scores)[:300].mean())
    assert got["2.0.0", "_confidence"].bins.sum() == 100
    assert got["1.0.0", "_confidence"].bins[:25].sum() == 0


def test_labels_that_met_their_prediction_give_accuracy_and_both_rankings() -> None:
    rng = np.random.default_rng(5)
    n = 500
    scores = rng.random(n)
    truth = (rng.random(n) < scores).astype(float)
    stage = MonitorStage(plan(), reference())
    facts = [predicted(f"k{i}", 10, float(scores[i])) for i in range(n)]
    facts += [labelled(f"k{i}", HOUR * 2, float(truth[i])) for i in range(n - 20)]
    stage.process(outcomes(facts))
    (row,) = emitted(stage)
    assert (row.version, row.feature, row.pane, row.rows) == ("1.0.0", "_outcome", 0, n - 20)
    assert row.correct == int(((scores >= 0.5) == (truth == 1))[: n - 20].sum())
    exact = auc(scores[: n - 20], truth[: n - 20])
    assert auc_of_counts(row.positives, row.negatives) == pytest.approx(exact, abs=0.002)
    assert auc_of_counts(row.baseline_positives, row.baseline_negatives) == pytest.approx(exact, abs=0.02)
    assert row.positives.sum() + row.negatives.sum() == n - 20
    errors = (scores - truth)[: n - 20]
    assert row.mean == pytest.approx(errors.mean())
    assert row.m2 == pytest.approx(((errors - errors.mean()) ** 2).sum())


def test_the_pane_of_an_outcome_is_that_of_its_prediction_and_partitions_do_not_mix() -> None:
    stage = MonitorStage(plan())
    stage.process(
        outcomes(
            [
                predicted("a", 1 * HOUR, 0.9, partition=0),
                predicted("b", 2 * HOUR, 0.1, partition=1),
                labelled("a", 5 * HOUR, 1.0, partition=1),
                labelled("a", 5 * HOUR, 1.0, partition=0),
                labelled("b", 6 * HOUR, 1.0, partition=1),
            ]
        )
    )
    got = {row.pane // HOUR: (row.rows, row.correct) for row in emitted(stage)}
    assert got == {1: (1, 1), 2: (1, 0)}
    assert stage.waiting(Partition("p.outcomes", 1)) == (0, 1)


def test_what_met_nothing_within_the_horizon_is_counted_once() -> None:
    stage = MonitorStage(plan())
    stage.process(outcomes([predicted("a", HOUR, 0.9), labelled("zz", 2 * HOUR, 1.0)]))
    stage.process(outcomes([labelled("far", 40 * HOUR, 1.0), predicted("far", 40 * HOUR, 0.2)]))
    rows = {(row.version, row.pane // HOUR): row for row in emitted(stage)}
    assert rows["1.0.0", 1].expired_predictions == 1
    assert rows["", 2].expired_labels == 1
    assert rows["1.0.0", 40].rows == 1
    assert sum(row.expired_predictions + row.expired_labels for row in rows.values()) == 2


def test_a_replay_rebuilds_what_waits_and_counts_nothing_again() -> None:
    here = Partition("p.outcomes", 0)
    log = [
        predicted("a", HOUR, 0.9),
        predicted("b", HOUR, 0.2),
        labelled("a", 2 * HOUR, 1.0),
        labelled("b", 3 * HOUR, 0.0),
    ]
    stage = MonitorStage(plan())
    stage.restore(here, None)
    stage.process(outcomes(log[:3]))
    first = emitted(stage)
    again = MonitorStage(plan())
    again.restore(here, None)
    again.process(outcomes(log[:3], replay=True))
    assert emitted(again) == []
    assert again.waiting(here) == (1, 0)
    again.process(outcomes(log[3:]))
    assert [sum(row.rows for row in rows) for rows in (first, emitted(again))] == [1, 1]


def test_a_partition_that_is_taken_away_and_given_back_starts_empty() -> None:
    here = Partition("p.outcomes", 0)
    stage = MonitorStage(plan())
    for topic in ("p.features", "p.predictions", "p.outcomes"):
        stage.restore(Partition(topic, 0), None)
    stage.process(outcomes([predicted("a", HOUR, 0.9)]))
    stage.release(Partition("p.features", 0))
    assert stage.waiting(here) == (1, 0)
    stage.release(here)
    stage.restore(here, None)
    assert stage.waiting(here) == (0, 0)
    assert stage.reach("p.features") is None
    assert stage.reach("p.outcomes") == 31 * HOUR


def test_a_batch_that_cannot_be_computed_changes_nothing() -> None:
    stage = MonitorStage(plan(), reference())
    good = features(10)
    broken = batch("features", good.rows.drop_columns(["rain"]), good.event_time)
    with pytest.raises(KeyError):
        stage.process(broken)
    stage.process(good)
    assert {row.rows for row in emitted(stage)} == {10}


def test_a_batch_is_not_changed_and_its_cut_does_not_matter() -> None:
    whole, parts = MonitorStage(plan(), reference()), MonitorStage(plan(), reference())
    one = features(200)
    before = one.rows.to_pydict()
    whole.process(one)
    assert one.rows.to_pydict() == before
    for start in range(0, 200, 33):
        parts.process(one.take(np.arange(start, min(start + 33, 200))))
    for a, b in zip(emitted(whole), emitted(parts), strict=True):
        assert a.bins.tolist() == b.bins.tolist()
        assert (a.rows, a.nulls, a.n, a.min, a.max) == (b.rows, b.nulls, b.n, b.min, b.max)
        assert a.m2 == pytest.approx(b.m2)


def test_panes_of_one_window_that_meet_in_a_flush_are_one_row_that_says_how_far_it_reaches() -> None:
    used = plan(model=False)
    used = used.model_copy(update={"monitors": used.monitors.model_copy(update={"window_ms": 24 * HOUR})})
    stage = MonitorStage(used)
    for hour in (5, 3, 7, 30, 26):
        stage.process(features(10, hour=hour))
    spans = [(row.pane // HOUR, row.pane_ms // HOUR, row.rows) for row in emitted(stage) if row.feature == "delay"]
    assert spans == [(3, 5, 30), (26, 5, 20)]
    rows = pa.concat_tables([pa.table(features(10).rows), pa.table(features(10).rows)]).combine_chunks().to_batches()[0]
    stage.process(batch("features", rows, [h * HOUR for h in [*range(20, 30), *range(-5, 5)]]))
    spans = [(row.pane // HOUR, row.pane_ms // HOUR, row.rows) for row in emitted(stage) if row.feature == "delay"]
    assert sorted(spans) == [(-5, 5, 5), (0, 24, 9), (24, 6, 6)]
