"""The flights model end to end in memory: the features are those of the stages that serve, what is broken dies, and the
exported model gives the calibrated scores of the trees.
"""

from collections.abc import Callable
from pathlib import Path

import lightgbm as lgb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from penstock.compiling import compile_pipeline
from penstock.models.registry import ModelRegistry
from penstock.plan import Plan
from penstock.profiles.reference import ReferenceProfile
from penstock.settings import Settings
from penstock.training import TrainingRows, training_rows
from pipelines.flights import data, train
from pipelines.flights.data import Flights
from pipelines.flights.replay import RAW, Replay

BROKEN = 42


@pytest.fixture(scope="module")
def plan() -> Plan:
    return compile_pipeline("pipelines.flights.pipeline:pipeline")


@pytest.fixture(scope="module")
def days() -> Flights:
    """Four days of January."""
    return data.load(None).between("2013-01-01", "2013-01-05")


@pytest.fixture(scope="module")
def computed(plan: Plan, days: Flights) -> TrainingRows:
    """The days with broken events among them, through ingest and both features stages in small batches."""
    assert plan.label is not None
    replay = Replay(days, (plan.event.id, plan.label.id), broken=BROKEN)
    raw = [(m.key, m.value) for chunk in replay.chunks() for m in chunk if m.topic == RAW]
    return training_rows(plan, raw, Settings(max_batch_rows=500))


def test_every_departure_has_its_features_and_everything_broken_is_dead(days: Flights, computed: TrainingRows) -> None:
    departed = days.departures.filter(pc.equal(days.departures["status"], "departed"))
    assert set(computed.rows["_event_id"].to_pylist()) == set(departed["flight_id"].to_pylist())
    assert computed.rows.num_rows == departed.num_rows
    assert computed.dead == BROKEN
    assert computed.dropped == days.departures.num_rows - departed.num_rows > 0


def in_window(days: Flights, key: str, hours: float, tile_minutes: int) -> Callable[[dict[str, object]], list[float]]:
    """An oracle: the delays that a row's window holds, by looking at every departure."""
    departed: dict[object, list[tuple[int, float]]] = {}
    for r in days.departures.to_pylist():
        if r["dep_delay"] is not None:
            departed.setdefault(r[key], []).append((ms(r), r["dep_delay"]))
    tile = tile_minutes * 60_000

    def delays(row: dict[str, object]) -> list[float]:
        last = ms(row) // tile
        first = last - int(hours * 60 / tile_minutes) + 1
        return [delay for at, delay in departed[row[key]] if first <= at // tile and at <= ms(row)]

    return delays


def ms(row: dict[str, object]) -> int:
    time = row["timestamp"]
    return int(np.datetime64(time, "ms").astype(np.int64))  # type: ignore[call-overload]


def test_windows_hold_what_a_look_at_every_departure_finds(days: Flights, computed: TrainingRows) -> None:
    found = {row["_event_id"]: row for row in computed.rows.to_pylist()}
    aircraft, airport = in_window(days, "tailnum", 24, 60), in_window(days, "origin", 1, 5)
    times = days.departures.group_by(["origin", "timestamp"]).aggregate([("flight_id", "count")]).to_pylist()
    alone = {(t["origin"], t["timestamp"]) for t in times if t["flight_id_count"] == 1}
    checked = 0
    for row in days.departures.slice(600, 400).to_pylist():
        # two departures of one airport in the same minute may come in either order
        if row["status"] == "cancelled" or (row["origin"], row["timestamp"]) not in alone:
            continue
        features, of_aircraft, of_airport = found[row["flight_id"]], aircraft(row), airport(row)
        assert features["aircraft_departures_1d"] == len(of_aircraft)
        assert features["aircraft_delay_max_1d"] == max(of_aircraft)
        assert features["airport_delay_mean_1h"] == pytest.approx(np.mean(of_airport))
        if len(of_airport) > 1:
            assert features["airport_delay_std_1h"] == pytest.approx(np.std(of_airport, ddof=1))
        checked += 1
    assert checked > 100


def test_on_demand_columns_follow_the_windows_of_their_row(computed: TrainingRows) -> None:
    rows = computed.rows
    own, mean = rows["departure_delay"].to_numpy(), rows["airport_delay_mean_1h"].to_numpy()
    np.testing.assert_allclose(rows["delay_beyond_airport_1h"].to_numpy(), own - mean)
    share = rows["airport_cancelled_share_6h"].to_numpy()
    assert ((share >= 0) & (share < 1)).all()
    assert share.max() > 0


def test_the_exported_graph_is_the_calibrated_trees() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(3_000, 4)).astype(np.float32)
    x[rng.random(x.shape) < 0.1] = np.nan
    y = (np.nan_to_num(x[:, 0]) + rng.normal(size=3_000) > 0).astype(np.float64)
    booster = lgb.train(train.TREES | {"num_threads": 1}, lgb.Dataset(x, y), 20)
    expected = 1 / (1 + np.exp(-(0.8 * booster.predict(x, raw_score=True) - 0.3)))
    scores = train.run(train.export(booster, 0.8, -0.3, 4), x)
    assert scores.shape == (3_000,)
    np.testing.assert_allclose(scores, expected, atol=1e-5)


def labelled(plan: Plan, n: int) -> pa.Table:
    """Rows as ``training_set`` gives them, over January to March: late when the delay and a little luck say so."""
    rng = np.random.default_rng(2)
    day = np.datetime64("2013-01-01") + np.sort(rng.integers(0, 90, n))
    delay = rng.normal(5, 30, n)
    columns: dict[str, object] = {"_event_id": [f"{d}.UA.{i % 9999}.EWR" for i, d in enumerate(day)]}
    for column in plan.service.columns:
        kind = next(t for t in column.type if t != "null")
        columns[column.name] = {
            "string": rng.choice(["B6", "UA"], n),
            "long": rng.integers(0, 20, n),
            "double": rng.normal(size=n),
        }[kind]
    columns["departure_delay"] = delay
    columns["late"] = (delay + 10 * (columns["airline"] == "B6") + rng.normal(0, 10, n) > 15).astype(np.int32)
    return pa.table(columns)


def test_a_version_beats_the_delay_alone_and_says_what_it_was_trained_on(plan: Plan) -> None:
    files, metrics, codes = train.fit(plan, labelled(plan, 6_000), "1.0.0")
    assert metrics["auc"] > metrics["baseline_auc"] > 0.8
    assert metrics["mean_score"] == pytest.approx(metrics["late_rate"], abs=0.05)
    assert codes["airline"] == ("UA", "B6")
    profile = ReferenceProfile.load(files["profile.json"])
    assert list(profile.columns) == [column.name for column in plan.service.columns]
    assert profile.baseline is not None
    assert profile.baseline.column == "departure_delay"


def test_training_again_on_the_same_data_keeps_the_version(
    plan: Plan, days: Flights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = labelled(plan, 3_000)
    calls: list[Flights] = []

    def training_set(plan: Plan, flights: Flights) -> pa.Table:
        calls.append(flights)
        return rows

    monkeypatch.setattr(data, "load", lambda: days)
    monkeypatch.setattr(train, "training_set", training_set)
    lines: list[str] = []
    first = train.train(str(tmp_path), plan, lines.append)
    again = train.train(str(tmp_path), plan, lines.append)
    assert first == again == "1.0.0"
    assert len(calls) == 1
    assert "kept" in lines[-1]
    other = plan.model_copy(update={"service": plan.service.model_copy(update={"hash": "0123456789abcdef"})})
    assert train.train(str(tmp_path), other) == "1.1.0"
    manifest = ModelRegistry(str(tmp_path)).load("flight_delay", "1.1.0").manifest
    assert manifest.feature_service_hash == "0123456789abcdef"
    assert manifest.input.columns == tuple(column.name for column in plan.service.columns)
