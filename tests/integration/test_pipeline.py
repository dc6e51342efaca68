"""The whole flights pipeline on the real broker, every worker a process: what goes in comes out once, scored, joined
with its label, watched, and in Feast. Topics are read back with plain confluent-kafka and fastavro.
"""

import json
import math
import subprocess
import sys
import warnings
from collections import Counter
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import onnxruntime as ort
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from penstock.local.resolve import BrokerHandle
from penstock.models.registry import ModelRegistry
from penstock.plan import Plan
from penstock.training import matrix
from tests.integration.conftest import VERSION, Feed
from tests.integration.pipeline_world import World, until

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]

VIEWS = {"aircraft_delays": "tailnum", "airport_delays": "origin"}


@pytest.fixture(scope="module", autouse=True)
def played(world: World, feed: Feed) -> None:
    """Three days and their landings."""
    world.play(feed.take(5000))


def departures(world: World) -> list[dict[str, Any]]:
    """The events that are to be predicted, as they were sent."""
    good = [world.row(event) for event in world.events if event.topic == "raw" and not event.broken]
    return [row for row in good if row["status"] == "departed"]


def test_every_event_has_one_fate_and_keeps_its_order(world: World) -> None:
    counts = world.check()
    assert counts["raw"] > 2000
    assert counts["dropped"] == sum(
        world.row(event)["status"] == "cancelled" for event in world.events if event.topic == "raw" and not event.broken
    )
    assert {row["reason"] for row in world.rows("dropped")} == {"no departure"}


def test_the_command_of_the_verifier_agrees(world: World) -> None:
    command = [sys.executable, "-m", "tests.chaos.verify", world.bootstrap, world.name, "--lock", str(world.lock)]
    command += ["--plan", str(world.folder / "plan.json"), "--models", world.settings.models_url]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    counts = json.loads(done.stdout)
    assert counts["raw"] == sum(event.topic == "raw" for event in world.events)
    assert counts["scores"] == counts["predictions"]


def test_a_prediction_is_what_the_model_says_of_the_row_in_the_features(world: World) -> None:
    manifest, digest = ModelRegistry(world.settings.models_url).manifest("flight_delay", VERSION)
    model = Path(world.settings.models_url, "flight_delay", VERSION, "model.onnx").read_bytes()
    columns = [column.name for column in world.plan.service.columns]
    features = world.rows("features")
    rows = pa.Table.from_pylist(features)
    x = matrix(rows, columns, dict(manifest.input.codes))
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    scores = dict(
        zip((row["_event_id"] for row in features), session.run(["score"], {"features": x})[0].tolist(), strict=True)
    )
    predictions = [row for row in world.rows("predictions") if row["version"] == VERSION]
    assert len(predictions) > 2000
    for row in predictions:
        assert row["score"] == pytest.approx(scores[row["prediction_id"]], abs=1e-5)
        assert row["label"] == ("1" if row["score"] >= 0.5 else "0")
        assert row["confidence"] == max(row["score"], 1 - row["score"])
        assert (row["model"], row["digest"], row["served_by"]) == ("flight_delay", digest, "champion")
    assert len({row["control_offset"] for row in predictions}) <= 2


def test_a_prediction_carries_the_facts_of_its_event(world: World) -> None:
    predictions = {row["prediction_id"]: (row, message) for row, message in _with_messages(world, "predictions")}
    arrived = {(m.partition(), m.offset()): m for m in world.records("raw")}
    missing = 0
    for event in departures(world):
        if event["flight_id"] not in predictions:
            missing += 1  # another test's dead letter, which the verifier has seen
            continue
        row, message = predictions[event["flight_id"]]
        raw = arrived[row["origin_partition"], row["origin_offset"]]
        assert raw.key() == event["flight_id"].encode()
        assert row["key"] == event["origin"] == message.key().decode()
        assert _ms(row["event_time"]) == _ms(event["timestamp"])
        assert _ms(row["ingest_time"]) == raw.timestamp()[1] <= message.timestamp()[1]
    assert missing <= len(world.records("dead"))


def test_labels_meet_their_predictions_and_the_monitor_counts_them_once(world: World) -> None:
    outcomes = world.rows("outcomes")
    predicted = {row["label_key"]: row for row in outcomes if row["kind"] == "prediction"}
    labels = {row["label_key"]: row["value"] for row in outcomes if row["kind"] == "label"}
    truth = {
        row["flight_id"]: row["late"]
        for row in (world.row(e) for e in world.events if e.topic == "labels")
        if "late" in row and row["late"] in (0, 1)
    }
    both = predicted.keys() & labels.keys()
    assert len(both) > 1500
    assert all(labels[key] == truth[key] for key in both)
    scores = np.array([predicted[key]["score"] for key in both])
    late = np.array([labels[key] for key in both]) == 1
    assert scores[late].mean() > scores[~late].mean() + 0.2, "a model of four weeks knows late from punctual flights"

    expected = {
        "departure_delay": len(world.records("features")),
        "_score": len(world.records("predictions")),
        "_outcome": len(both),
    }

    def counted() -> bool:
        rows: Counter[str] = Counter()
        for profile in world.rows("profiles"):
            rows[profile["feature"]] += profile["rows"]
        return {name: rows[name] for name in expected} == expected

    until(f"profiles of {expected}", counted, 30, pause=0.5)


def test_alerts_can_be_read_and_say_what_is_over_which_threshold(world: World) -> None:
    alerts = until("an alert", lambda: world.rows("alerts"), 60, pause=0.5)
    windows = {(row["window_start"], row["window_end"]) for row in alerts}
    assert all(end - start == timedelta(days=1) and start.year == 2013 for start, end in windows)
    by_id: dict[str, dict[str, Any]] = {}
    for row in alerts:
        assert row["model"] == "flight_delay"
        assert row["feature"].startswith("_") or row["feature"] in row["message"]  # _outcome, _score: not a column
        assert row["message"]
        if row["kind"] in ("drift", "unseen"):
            assert row["value"] > row["threshold"]
        assert row["rows"] >= world.plan.monitors.minimum_rows
        assert row["p_value"] is None or 0 <= row["p_value"] < 0.05
        by_id.setdefault(row["alert_id"], row)
    assert {row["feature"] for row in by_id.values()} & {"temperature", "air_pressure", "dew_point_spread"}, (
        "the first days of April are not like the weeks before"
    )


@pytest.fixture(scope="module")
def written(world: World, played: None) -> World:
    """The Feast writer has read all there is, and was asked to leave: what was in hand is in its files."""
    until("the Feast writer to read all", lambda: world.behind("features.feast") == 0, pause=0.2)
    world.ask_to_leave("features.feast")
    return world


@pytest.mark.parametrize("view", sorted(VIEWS))
def test_the_offline_store_has_every_row_of_a_view_once(written: World, view: str) -> None:
    sent = Counter(row["_event_id"] for row in written.rows(f"view.{view}"))
    folder = written.folder / "feast/var/flights/offline" / view
    history = Counter(pq.read_table(folder).column("_event_id").to_pylist())
    assert history == sent
    known = [written.row(event) for event in written.events if event.topic == "raw" and not event.broken]
    assert set(sent) == {row["flight_id"] for row in known if row[VIEWS[view]] is not None}


def feast_store(world: World) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from feast import FeatureStore

        return FeatureStore(repo_path=str(world.store))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("view", sorted(VIEWS))
def test_stock_feast_serves_the_newest_row_of_every_entity(written: World, view: str) -> None:
    key = VIEWS[view]
    newest: dict[str, dict[str, Any]] = {}
    for row in written.rows(f"view.{view}"):
        held = newest.get(row[key])
        if held is None or (held["_event_time"], held["_offset"]) <= (row["_event_time"], row["_offset"]):
            newest[row[key]] = row
    names = [name for name in next(iter(newest.values())) if not name.startswith("_") and name != key]
    found = feast_store(written).get_online_features(
        features=[f"{view}:{name}" for name in names], entity_rows=[{key: entity} for entity in newest]
    )
    served = found.to_dict()
    assert len(newest) >= 3
    for i, entity in enumerate(served[key]):
        assert {name: served[name][i] for name in names} == {name: newest[entity][name] for name in names}


@pytest.mark.filterwarnings("ignore")
def test_stock_feast_computes_online_what_the_model_was_given(written: World) -> None:
    """For the newest flights, so that the stores have not gone on: the on-demand views included."""
    events = {row["flight_id"]: row for row in departures(written)}
    features = {row["_event_id"]: row for row in written.rows("features")}
    newest_of = {}
    for view, key in VIEWS.items():
        rows = sorted(written.rows(f"view.{view}"), key=lambda row: (row["_event_time"], row["_offset"]))
        newest_of[key] = {row[key]: row["_event_id"] for row in rows}
    flights = [
        flight
        for flight in newest_of["origin"].values()
        if flight in features and newest_of["tailnum"].get(events[flight]["tailnum"]) == flight
    ]
    assert flights
    store = feast_store(written)
    service = store.get_feature_service("flight_delay")
    asked = [{k: v for k, v in events[flight].items() if not isinstance(v, datetime)} for flight in flights]
    wanted = ["tailnum", "origin", *(field.name for field in _request_fields(store))]
    served = store.get_online_features(
        features=service, entity_rows=[{name: row[name] for name in dict.fromkeys(wanted)} for row in asked]
    ).to_dict()
    for i, flight in enumerate(flights):
        for column in written.plan.service.columns:
            ours, theirs = features[flight][column.name], served[column.name][i]
            assert _same(ours, theirs), (flight, column.name, ours, theirs)


@pytest.mark.filterwarnings("ignore")
def test_stock_feast_joins_the_history_as_of_each_flight(written: World) -> None:
    rows = {row["_event_id"]: row for row in written.rows("view.aircraft_delays")}
    taken: Counter[tuple[str, datetime]] = Counter((row["tailnum"], row["_event_time"]) for row in rows.values())
    some = [row for row in rows.values() if taken[row["tailnum"], row["_event_time"]] == 1][:300]
    names = ["aircraft_delay_mean_6h", "aircraft_departures_1d", "aircraft_delay_last_7d"]
    asked = pd.DataFrame({"tailnum": [r["tailnum"] for r in some], "event_timestamp": [r["_event_time"] for r in some]})
    found = feast_store(written).get_historical_features(
        entity_df=asked, features=[f"aircraft_delays:{name}" for name in names]
    )
    got = {
        (row["tailnum"], row["event_timestamp"].to_pydatetime()): row for row in found.to_df().to_dict(orient="records")
    }
    for row in some:
        joined = got[row["tailnum"], row["_event_time"]]
        assert all(_same(row[name], joined[name]) for name in names), (row, joined)


def test_at_least_once_runs_without_transactions_and_loses_nothing(
    broker: BrokerHandle, flights_plan: Plan, flights_models: Path, feed: Feed, tmp_path: Path
) -> None:
    stages = ["ingest", "features.aircraft", "features.airport", "inference"]
    name = f"loose_{uuid4().hex[:8]}"
    with World(
        flights_plan, name, broker.bootstrap, tmp_path, flights_models, VERSION, stages, guarantee="at_least_once"
    ) as loose:
        loose.play(feed.take(1000))
        loose.check()
        # a transaction would have left its marker at the end of every log
        ends = {(m.partition(), m.offset() + 1) for m in loose.records("events")}
        last = {partition: max(end for p, end in ends if p == partition) for partition, _ in ends}
        assert sum(last.values()) == len(ends)


def _with_messages(world: World, suffix: str) -> list[tuple[dict[str, Any], Any]]:
    return [(world.schemas.decode(message.value()), message) for message in world.records(suffix)]


def _ms(time: datetime | int) -> int:
    return time if isinstance(time, int) else round(time.timestamp() * 1000)


def _request_fields(store: Any) -> list[Any]:
    views = store.list_on_demand_feature_views()
    return [field for view in views for source in view.source_request_sources.values() for field in source.schema]


def _same(ours: Any, theirs: Any) -> bool:
    """Null is None here and may be NaN there."""
    if isinstance(theirs, float) and math.isnan(theirs):
        theirs = None
    if isinstance(ours, float) and theirs is not None:
        return math.isclose(ours, theirs, rel_tol=1e-9, abs_tol=1e-9)
    return bool(ours == theirs)
