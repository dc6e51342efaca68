"""Each way in which an event or a label can be broken, through the running pipeline: the reason is the right one, the
dead letter is what was sent to the byte, and the neighbours go on.
"""

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import orjson
import pytest
from confluent_kafka import Message, Producer
from onnx import TensorProto, checker, helper, numpy_helper

from penstock.models.control_topic import promote
from penstock.models.manifest import MODEL_FILE, Manifest
from penstock.models.registry import ModelRegistry
from penstock.plan import Plan
from pipelines.flights.broken import HEADER, KINDS, NO_SUCH_SCHEMA, Breaker
from pipelines.flights.replay import Message as Event
from pipelines.flights.replay import schema
from tests.integration.conftest import VERSION, Feed
from tests.integration.pipeline_world import World, framed, until

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]

REASONS = {
    "wrong magic byte": ("bad magic", "the first byte is 7"),
    "unknown schema id": ("unknown schema id", "2000000000"),
    "truncated avro": ("truncated or malformed avro", "the value ends inside it"),
    "trailing bytes": ("trailing bytes", "3 bytes follow"),
    "invalid utf-8": ("invalid utf-8", "'carrier'"),
    "empty": ("empty", "no bytes"),
    "tombstone": ("empty", "tombstone"),
    "not a number": ("not a finite number", "'dep_delay' is nan"),
    "infinite": ("not a finite number", "'distance' is inf"),
    "out of range": ("out of range", "'temp' is 900.0; its schema asks for at most 130"),
    "pattern mismatch": ("pattern mismatch", "'tailnum' is a text of 7 characters"),
    "far future": ("event time in the future", "after the record's arrival"),
    "before the year 1": ("event time out of range", "before the year 1; is it in another unit?"),
    "json of a wrong type": ("wrong type", "'dep_delay': a JSON string"),
    "json null": ("bad magic", "the first byte is 110"),
    "json array": ("bad magic", "the first byte is 91"),
    "json cut short": ("malformed json", "unexpected end of data"),
    "json on two lines": ("malformed json", "unexpected content after document"),
    "nested bomb": ("bad magic", "the first byte is 91"),
    "missing field": ("missing field", "'origin' is missing"),
    "null where required": ("wrong type", "'dest': a JSON null"),
    "oversized": ("too large", "the limit is 1000000"),
}
"""Of every kind that the replay knows: the reason, and what its message has to say."""
UNFRAMED = {
    "wrong magic byte",
    "empty",
    "tombstone",
    "nested bomb",
    "missing field",
    "null where required",
    "oversized",
}
UNFRAMED |= {kind for kind in KINDS if kind.startswith("json")}
"""Kinds that name no schema id."""
LABELS = {
    "late out of range": ({"late": 7}, "out of range", "'late' is 7"),
    "delay not a number": ({"arr_delay": float("nan")}, "not a finite number", "'arr_delay'"),
    "landed in 2099": ({"landed_at": 4_070_908_800_000}, "event time in the future", "after the record's arrival"),
}


@pytest.fixture(scope="module")
def sent(world: World, feed: Feed) -> dict[str, Event]:
    """Every kind of broken event once, each between two good ones; kind → what was sent."""
    breaker = Breaker(schema("event"), world.plan.event.id)
    good = feed.take(4 * len(KINDS))
    victims = [_plain(world.schemas.decode(event.value)) for event in good if event.topic == "raw" and _is_avro(event)]
    broken = {
        kind: Event(
            "raw", f"broken-{kind}".encode(), breaker.value(kind, victims[i % len(victims)]), good[i].time, kind
        )
        for i, kind in enumerate(KINDS)
    }
    mixed = [event for pair in zip(good, broken.values(), strict=False) for event in pair]
    world.play([*mixed, *good[len(broken) :]])
    return broken


@pytest.fixture(scope="module")
def letters(world: World, sent: dict[str, Event]) -> dict[str, list[Message]]:
    found: dict[str, list[Message]] = {kind: [] for kind in sent}
    for message in world.records("dead"):
        headers = dict(message.headers())
        if HEADER in headers:
            found[headers[HEADER].decode()].append(message)
    return found


def test_a_reason_is_expected_of_every_kind_of_breakage() -> None:
    assert set(REASONS) == set(KINDS)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_broken_event_is_a_dead_letter_with_its_reason(
    kind: str, sent: dict[str, Event], letters: dict[str, list[Message]], world: World
) -> None:
    (letter,) = letters[kind]
    headers = {name: value.decode() for name, value in letter.headers()}
    reason, told = REASONS[kind]
    assert headers["penstock.reason"] == headers["__connect.errors.exception.class.name"] == reason
    assert told in headers["__connect.errors.exception.message"]
    assert (letter.key(), letter.value()) == (sent[kind].key, sent[kind].value)
    assert headers["__connect.errors.topic"] == headers["penstock.origin.topic"] == world.topic("raw")
    assert headers["__connect.errors.stage"] == headers["penstock.service"] == "ingest"
    assert headers["penstock.attempt"] == "1"
    schema_id = {"unknown schema id": NO_SUCH_SCHEMA}.get(kind, world.plan.event.id)
    assert headers.get("penstock.schema.id") == (None if kind in UNFRAMED else str(schema_id))
    assert "penstock.model" not in headers
    assert 1.7e12 < int(headers["penstock.timestamp"]) < 4e12


def test_the_neighbours_of_broken_events_go_on(world: World, sent: dict[str, Event]) -> None:
    world.check()
    good = {world.row(event)["flight_id"] for event in world.events if event.topic == "raw" and not event.broken}
    assert good <= {row["_event_id"] for row in world.rows("events")}


def test_a_broken_label_is_a_dead_letter_and_never_an_outcome(world: World, feed: Feed) -> None:
    landing = next(event for event in feed.take(400) if event.topic == "labels")
    good = _plain(world.schemas.decode(landing.value))
    assert world.plan.label is not None
    label_id = world.plan.label.id
    written: dict[str, bytes | None] = {
        kind: framed(schema("label"), label_id, {**good, **changes}) for kind, (changes, _, _) in LABELS.items()
    }
    written["json without the label"] = orjson.dumps({name: value for name, value in good.items() if name != "late"})
    written["an event among the labels"] = next(e.value for e in world.events if e.topic == "raw" and _is_avro(e))
    expected = {kind: (reason, told) for kind, (_, reason, told) in LABELS.items()}
    expected["json without the label"] = ("missing field", "'late'")
    expected["an event among the labels"] = ("unresolvable schema", "schema id")
    world.play([Event("labels", kind.encode(), value, landing.time) for kind, value in written.items()])

    letters = {m.key().decode(): m for m in world.records("dead") if m.key() and m.key().decode() in written}
    for kind, (reason, told) in expected.items():
        headers = {name: value.decode() for name, value in letters[kind].headers()}
        assert (kind, headers["penstock.reason"]) == (kind, reason)
        assert told in headers["__connect.errors.exception.message"]
        assert headers["penstock.origin.topic"] == world.topic("labels")
        assert letters[kind].value() == written[kind]
    world.check()


@pytest.fixture(scope="module")
def moody(world: World) -> Iterator[str]:
    """The version of a champion that has no score for flights that leave more than five minutes early, and fails over
    batches with one that leaves more than twenty minutes late: it cannot make a vector of n rows one of n + 1."""
    registry = ModelRegistry(world.settings.models_url)
    manifest, _ = registry.manifest("flight_delay", VERSION)
    columns = [column.name for column in world.plan.service.columns]
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["features", "column"], ["delay"], axis=1),
            helper.make_node("Add", ["delay", "five"], ["shifted"]),
            helper.make_node("Sqrt", ["shifted"], ["root"]),
            helper.make_node("Sigmoid", ["root"], ["calm"]),
            helper.make_node("Greater", ["delay", "very_late"], ["late"]),
            helper.make_node("Cast", ["late"], ["late_number"], to=TensorProto.INT64),
            helper.make_node("ReduceMax", ["late_number"], ["any_late"], keepdims=0),
            helper.make_node("Shape", ["calm"], ["length"]),
            helper.make_node("Add", ["length", "any_late"], ["target"]),
            helper.make_node("Reshape", ["calm", "target"], ["score"]),
        ],
        "moody",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, [None, len(columns)])],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, [None])],
        [
            numpy_helper.from_array(np.array(columns.index("departure_delay")), "column"),
            numpy_helper.from_array(np.array(5, np.float32), "five"),
            numpy_helper.from_array(np.array(20, np.float32), "very_late"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)], ir_version=8)
    checker.check_model(model)
    files = {MODEL_FILE: model.SerializeToString()}
    registry.register(Manifest.of(world.plan, "2.0.0", files, codes=manifest.input.codes), files)
    promote(world.settings, world.plan, "2.0.0", "test", "it has moods")
    until("the new champion", lambda: "champion flight_delay 2.0.0" in world.log("inference"))
    yield "2.0.0"
    promote(world.settings, world.plan, VERSION, "test", "back to the old one")
    until("the old champion", lambda: world.log("inference").count(f"champion flight_delay {VERSION}") == 2)


def test_a_row_that_the_model_has_no_score_for_or_fails_over_is_a_dead_letter_of_inference(
    world: World, feed: Feed, moody: str
) -> None:
    departures = [event for event in world.play(feed.take(600)) if event.topic == "raw"]
    world.check()
    delays = {row["flight_id"]: row["dep_delay"] or 0 for row in map(world.row, departures)}
    expected = {flight: "model gave no score" for flight, delay in delays.items() if delay < -5}
    expected |= {flight: "model failed" for flight, delay in delays.items() if delay > 20}
    assert len(set(expected.values())) == 2
    features = {(m.partition(), m.offset()): m for m in world.records("features")}
    refused = {}
    for letter in world.records("dead"):
        headers = {name: value.decode() for name, value in letter.headers()}
        if headers["__connect.errors.stage"] == "inference":
            at = int(headers["__connect.errors.partition"]), int(headers["__connect.errors.offset"])
            assert letter.value() == features[at].value()
            told = headers["__connect.errors.exception.message"]
            assert ("NaN" if headers["penstock.reason"] == "model gave no score" else "Reshape") in told
            assert headers["penstock.model"] == f"flight_delay {moody}"
            assert headers["penstock.schema.id"] == str(int.from_bytes((letter.value() or b"")[1:5], "big"))
            refused[world.schemas.decode(letter.value())["_event_id"]] = headers["penstock.reason"]
    assert refused == expected
    versions = {row["prediction_id"]: row["version"] for row in world.rows("predictions")}
    sent = {world.row(event)["flight_id"] for event in departures}
    assert {versions[flight] for flight in sent & versions.keys()} == {moody}


def test_where_a_fallback_is_declared_it_answers_for_the_model(
    world: World, moody: str, flights_plan: Plan, flights_models: Path, tmp_path: Path
) -> None:
    """The same features, in a pipeline of inference alone."""
    assert flights_plan.model is not None
    plan = flights_plan.model_copy(update={"model": flights_plan.model.model_copy(update={"fallback": 0.125})})
    name = f"fallback_{uuid4().hex[:8]}"
    with World(plan, name, world.bootstrap, tmp_path, flights_models, moody, stages=("inference",)) as alone:
        producer = Producer({"bootstrap.servers": world.bootstrap})
        features = world.rows("features")
        for record in world.records("features"):
            producer.produce(alone.topic("features"), record.value(), record.key())
        assert producer.flush(30) == 0
        until("a prediction of each", lambda: len(alone.records("predictions")) == len(features), pause=0.2)
        answered = {row["prediction_id"]: (row["served_by"], row["score"]) for row in alone.rows("predictions")}
        assert alone.records("dead") == []
    delays = {row["_event_id"]: row["departure_delay"] or 0 for row in features}
    assert answered.keys() == delays.keys()
    for flight, (served_by, score) in answered.items():
        missing = not -5 <= delays[flight] <= 20
        assert served_by == ("fallback" if missing else "champion"), delays[flight]
        assert not missing or score == 0.125
    assert {served_by for served_by, _ in answered.values()} == {"fallback", "champion"}


def _is_avro(event: Event) -> bool:
    return event.value is not None and event.value[:1] == b"\0"


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """Times as numbers, ms since epoch."""
    return {name: int(v.timestamp() * 1000) if isinstance(v, datetime) else v for name, v in row.items()}
