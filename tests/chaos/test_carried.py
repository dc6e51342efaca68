"""A whole small pipeline in memory, with a plan and a model: every column of every row of it is judged, so that a
change of any one is found, except of what the verifier says that it does not judge.
"""

import hashlib
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path
from typing import Any

import fastavro
import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.chaos.declared import Declared, Input, Model
from tests.chaos.records import Headers, Schemas
from tests.chaos.test_verify import MemoryLog
from tests.chaos.verdict import Verdict
from tests.chaos.verify import main, verify

ROOT = Path(__file__).parents[2]
AVSC = ROOT / "schemas"
NOON = datetime(2013, 4, 1, 12, tzinfo=UTC)
CAME = 1_800_000_000_000
TIME = {"type": "long", "logicalType": "timestamp-millis"}


def optional(name: str, kind: Any) -> dict[str, Any]:
    return {"name": name, "type": ["null", kind], "default": None}


EVENT_FIELDS = [
    {"name": "id", "type": "string"},
    {"name": "sent", "type": TIME},
    {"name": "kind", "type": {"type": "enum", "name": "Kind", "symbols": ["card", "cash"]}},
    {"name": "amount", "type": "double"},
    {"name": "weight", "type": "float"},
    optional("note", "string"),
    optional("shop", "string"),
    optional("until", TIME),
]
LABEL_FIELDS = [{"name": "id", "type": "string"}, {"name": "then", "type": TIME}, {"name": "late", "type": "int"}]
ENVELOPE = [
    {"name": "_event_id", "type": "string"},
    {"name": "_origin_partition", "type": "int"},
    {"name": "_origin_offset", "type": "long"},
    {"name": "_event_time", "type": TIME},
    {"name": "_ingest_time", "type": TIME},
    optional("_traceparent", "string"),
    optional("_replays", "string"),
]
FIELDS: dict[str, list[Any]] = {
    "raw": EVENT_FIELDS,
    "labels": LABEL_FIELDS,
    "events": [*ENVELOPE, *EVENT_FIELDS],
    "by.shop": [*ENVELOPE, *EVENT_FIELDS],
    "features": [*ENVELOPE, optional("_label_key", "string"), optional("amount", "double"), optional("shop", "string"),
                 optional("twice", "double")],
    **{topic: json.loads((AVSC / f"{schema}.avsc").read_text())["fields"]
       for topic, schema in (("predictions", "prediction"), ("outcomes", "outcome"), ("dropped", "dropped"))},
}  # fmt: skip
LOCK = [
    json.dumps({"subject": f"t.{n}-value", "schema": {"type": "record", "name": f"r{i}", "fields": fields}})
    for i, (n, fields) in enumerate(FIELDS.items())
]
SCHEMAS = Schemas("t", LOCK)
MODEL = Model("m", "binary", 0.5, 0.25, ("amount", "shop", "twice"), frozenset({"shop"}))
PLAN = Declared(
    keys={"events": "kind", "by.shop": "shop", "features": "shop"},
    event_id="id",
    drops=frozenset({"closed", "duplicate"}),
    event=Input({"type": "record", "name": "Event", "fields": EVENT_FIELDS}, "sent"),
    label=Input({"type": "record", "name": "Label", "fields": LABEL_FIELDS}, "then", "id", "late"),
    model=MODEL,
    made=frozenset({"twice"}),
    baseline="amount",
)


def encoded(suffix: str, row: dict[str, Any]) -> bytes:
    number = list(FIELDS).index(suffix)
    stream = BytesIO()
    schema = fastavro.parse_schema(json.loads(LOCK[number])["schema"], named_schemas={})
    fastavro.schemaless_writer(stream, schema, row)
    return b"\0" + (number + 1).to_bytes(4, "big") + stream.getvalue()


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """m 1.0.0 says sigmoid(amount / 100 + number of the shop + twice), so NaN without a twice, and fails over a batch
    that has an amount over 1000."""
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["features", "weights"], ["sum"]),
            helper.make_node("Sigmoid", ["sum"], ["all"]),
            helper.make_node("ReduceMax", ["features"], ["most"], keepdims=0),
            helper.make_node("Greater", ["most", "limit"], ["over"]),
            helper.make_node("Cast", ["over"], ["one"], to=TensorProto.INT64),
            helper.make_node("Shape", ["all"], ["length"]),
            helper.make_node("Add", ["length", "one"], ["target"]),
            helper.make_node("Reshape", ["all", "target"], ["score"]),
        ],
        "m",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, [None, 3])],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, [None, 1])],
        [
            numpy_helper.from_array(np.array([[0.01], [1.0], [1.0]], np.float32), "weights"),
            numpy_helper.from_array(np.array(1000, np.float32), "limit"),
        ],
    )
    onnx = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)], ir_version=8).SerializeToString()
    folder = tmp_path_factory.mktemp("models")
    place = folder / "m" / "1.0.0"
    place.mkdir(parents=True)
    (place / "model.onnx").write_bytes(onnx)
    manifest = {
        "name": "m", "version": "1.0.0", "threshold": None,
        "files": {"model.onnx": {"sha256": hashlib.sha256(onnx).hexdigest(), "size": len(onnx)}},
        "input": {"name": "features", "columns": list(MODEL.columns), "codes": {"shop": ["a", "b"]}},
        "output": {"name": "score", "column": None},
    }  # fmt: skip
    (place / "manifest.json").write_text(json.dumps(manifest))
    return folder


def score_of(amount: float, shop: str | None, twice: float | None) -> float | None:
    if twice is None or amount > 1000 or shop not in ("a", "b"):
        return None
    return float(1 / (1 + np.exp(-(amount / 100 + "ab".index(shop) + twice))))


class Whole(MemoryLog):
    """Four events as Avro and as JSON with their labels; the last one is answered by the fallback."""

    def __init__(self, digest: str) -> None:
        self.topics = {f"t.{name}": [] for name in [*FIELDS, "dead"]}
        self.open = []
        self._digest = digest
        self.rows: dict[str, list[dict[str, Any]]] = {name: [] for name in FIELDS}
        for number, (amount, shop, twice) in enumerate(
            [(-150.0, "a", 0.1), (30.0, "b", -0.7), (20.0, "a", 0.3), (2000.0, "b", 1.0)]
        ):
            self.add_event(number, amount, shop, twice)
        for number in range(4):
            label = {"id": f"e{number}", "then": NOON + timedelta(hours=number), "late": number % 2}
            self._add("labels", label, label["id"])
            facts = {"event_time": label["then"], "ingest_time": came(number), "value": float(number % 2)}
            key = {"kind": "label", "label_key": label["id"], "event_id": label["id"]}
            self._add("outcomes", {**key, **facts, "origin_partition": 0, "origin_offset": number}, label["id"])

    def add_event(self, number: int, amount: float, shop: str, twice: float, event_id: str | None = None) -> None:
        """An event with all that becomes of it."""
        sent = NOON + timedelta(minutes=number)
        event = {
            "id": event_id or f"e{number}",
            "sent": sent,
            "kind": "card",
            "amount": amount,
            "weight": 0.5,
            "note": None,
        }
        event |= {"shop": shop, "until": sent + timedelta(days=1) if number else None}
        plain = {name: ms(v) if isinstance(v, datetime) else v for name, v in event.items() if v is not None}
        headers: Headers = [("traceparent", b"00-trace")] if number == 1 else []
        self._add("raw", event, event["id"], json.dumps(plain).encode() if number % 2 else None, headers)
        envelope = {"_event_id": event["id"], "_origin_partition": 0, "_origin_offset": number, "_event_time": sent}
        envelope |= {"_ingest_time": came(number), "_traceparent": "00-trace" if headers else None}
        self._add("events", envelope | event, "card")
        self._add("by.shop", envelope | event, shop)
        own = {"_label_key": event["id"], "amount": amount, "shop": shop, "twice": twice}
        self._add("features", envelope | own, shop)
        said = score_of(amount, shop, twice)
        score = 0.25 if said is None else said
        prediction = {
            "prediction_id": event["id"], "key": shop, "event_time": sent, "ingest_time": came(number),
            "origin_partition": 0, "origin_offset": number, "traceparent": envelope["_traceparent"],
            "model": "m", "version": "1.0.0", "digest": self._digest, "control_offset": 0,
            "served_by": "fallback" if said is None else "champion", "score": score,
            "label": "1" if score >= 0.5 else "0", "confidence": max(score, 1 - score),
        }  # fmt: skip
        self._add("predictions", prediction, shop)
        facts = {"kind": "prediction", "label_key": event["id"], "event_id": event["id"], "baseline": amount}
        self._add("outcomes", {**prediction, **facts, "value": None}, event["id"])

    def _add(
        self, suffix: str, row: dict[str, Any], key: str, value: bytes | None = None, headers: Headers | None = None
    ) -> None:
        self.rows[suffix].append(row)
        self.add(suffix, key.encode(), value or encoded(suffix, row), headers=headers)
        self.replace(suffix, -1, timestamp=ms(came(len(self.topics[f"t.{suffix}"]) - 1)))

    def change(self, suffix: str, place: int, **changes: Any) -> None:
        """Values of one row."""
        self.rows[suffix][place] = self.rows[suffix][place] | changes
        self.replace(suffix, place, value=encoded(suffix, self.rows[suffix][place]))


def came(number: int) -> datetime:
    return datetime.fromtimestamp(CAME / 1000, UTC) + timedelta(seconds=number)


def ms(time: datetime) -> int:
    return round(time.timestamp() * 1000)


@pytest.fixture
def log(models: Path) -> Whole:
    return Whole(hashlib.sha256((models / "m/1.0.0/manifest.json").read_bytes()).hexdigest())


def judged(log: MemoryLog, models: Path | None) -> Verdict:
    return verify("t", SCHEMAS, log, PLAN, models)


def test_a_whole_log_passes(log: Whole, models: Path) -> None:
    verdict = judged(log, models)
    assert verdict.ok, verdict.json()
    assert (verdict.counts["scores"], verdict.counts["fallbacks"]) == (3, 1)
    assert "events whose raw value is not read" not in verdict.counts


def other(value: Any) -> Any:
    """The next value of the same type."""
    match value:
        case None | "card" | "label" | "prediction":
            return {None: "other", "card": "cash", "label": "prediction", "prediction": "label"}[value]
        case datetime():
            return value + timedelta(milliseconds=1)
        case str():
            return value[:-1] + chr(ord(value[-1]) ^ 1)
    return value + (1 if isinstance(value, int) else 1e-7)


NOT_JUDGED = {
    "predictions": {"control_offset"},
    "features": {"twice"},
}
"""What only the service can know, and what the pipeline's own functions make of an event; of the latter the score is
the model's, so that what moves it is found."""
COLUMNS = [
    (suffix, field["name"], place)
    for suffix in ("events", "by.shop", "features", "predictions", "outcomes")
    for field in FIELDS[suffix]
    for place in ((1, -1) if suffix == "outcomes" else (1,))
    if field["name"] not in NOT_JUDGED.get(suffix, ())
]


@pytest.mark.parametrize(("suffix", "column", "place"), COLUMNS)
def test_any_column_that_is_changed_is_found(suffix: str, column: str, place: int, log: Whole, models: Path) -> None:
    before = log.rows[suffix][place].get(column)
    changed = other(before)
    if before is None and column in ("score", "confidence", "baseline", "value"):
        changed = 1.0
    log.change(suffix, place, **{column: changed})
    assert judged(log, models).findings != {}


@pytest.mark.parametrize("column", ["until", "note", "shop", "_traceparent", "_label_key", "amount"])
def test_a_value_that_is_gone_is_found(column: str, log: Whole) -> None:
    for suffix in ("events", "by.shop", "features"):
        if any(field["name"] == column and isinstance(field["type"], list) for field in FIELDS[suffix]):
            harmed = Whole("")
            harmed.change(suffix, 1, **{column: None})
            found = judged(harmed, None).findings
            assert found != {} or harmed.rows[suffix][1].get(column) == log.rows[suffix][1].get(column), suffix


@pytest.mark.parametrize("number", [0, 1])
def test_a_row_is_held_to_its_raw_event_whatever_that_is_written_in(number: int, log: Whole) -> None:
    for suffix in ("events", "by.shop"):
        log.change(suffix, number, amount=31.0)
    log.change("features", number, amount=31.0)
    log.change("outcomes", number, baseline=31.0)
    assert judged(log, None).findings == {"altered": 3}


def test_a_change_behind_the_events_is_found_where_nobody_can_read_the_raw_event(log: Whole) -> None:
    log.replace("raw", 1, value=b"[" * 100_000)
    verdict = judged(log, None)
    assert verdict.ok
    assert verdict.counts["events whose raw value is not read"] == 1
    log.change("by.shop", 1, weight=0.25)
    assert judged(log, None).findings == {"altered": 1}


def test_json_is_read_as_the_schema_says(log: Whole) -> None:
    log.replace("raw", 1, value=(log.topics["t.raw"][1].value or b"").replace(b'"weight": 0.5', b'"weight": 0.1'))
    narrow = float(np.float32(0.1))
    log.change("events", 1, weight=narrow)
    log.change("by.shop", 1, weight=narrow)
    assert judged(log, None).findings == {}


def test_an_event_without_a_declared_id_is_named_by_its_place(log: Whole) -> None:
    plan = Declared(event=PLAN.event)
    assert verify("t", SCHEMAS, log, plan).findings["mistaken"] == 4
    for number in range(4):
        name = f"t.raw-0-{number}"
        for suffix in ("events", "by.shop", "features"):
            log.change(suffix, number, _event_id=name)
        log.change("predictions", number, prediction_id=name)
    assert verify("t", SCHEMAS, log, plan).findings == {}


KEYS: dict[str, tuple[Callable[[Whole], object], str]] = {
    "of an event": (lambda log: log.replace("events", 1, key=b"cash"), "mistaken"),
    "of the second hop": (lambda log: log.replace("by.shop", 1, key=b"a"), "mistaken"),
    "of the features": (lambda log: log.replace("features", 1, key=b"a"), "mistaken"),
    "of a prediction": (lambda log: log.replace("predictions", 1, key=b"a"), "mistaken"),
    "of a prediction's outcome": (lambda log: log.replace("outcomes", 1, key=b"e0"), "mistaken"),
    "of a label's outcome": (lambda log: log.replace("outcomes", -1, key=b"e0"), "mistaken"),
}  # fmt: skip


@pytest.mark.parametrize("what", KEYS)
def test_another_key_is_found(what: str, log: Whole) -> None:
    do, kind = KEYS[what]
    do(log)
    assert kind in judged(log, None).findings


def test_a_label_that_lies_elsewhere_than_its_prediction_is_found(log: Whole) -> None:
    log.replace("outcomes", -1, partition=1)
    assert judged(log, None).findings == {"misordered": 1}


@pytest.mark.parametrize("changes", [{"timestamp": CAME}, {"headers": [("traceparent", b"00-other")]}, {"headers": []}])
def test_what_came_with_the_raw_record_is_in_the_event(changes: dict[str, Any], log: Whole) -> None:
    log.replace("raw", 1, **changes)
    assert judged(log, None).findings == {"altered": 1}


@pytest.mark.parametrize(("changes", "found"), [
    ({}, {}), ({"event_id": "e2"}, {"mistaken": 1}),
    ({"offset": 2}, {"mistaken": 1}), ({"partition": 1}, {"mistaken": 1}),
    ({"topic": "t.events", "offset": 0}, {"mistaken": 1}), ({"topic": "t.bx.shop"}, {"mistaken": 1}),
])  # fmt: skip
def test_a_note_of_a_drop_names_its_event(changes: dict[str, Any], found: dict[str, int], log: Whole) -> None:
    for suffix in ("features", "predictions", "outcomes"):
        log.drop(suffix, 1)
    note = {"stage": "s", "reason": "closed", "message": "", "topic": "t.by.shop", "partition": 0, "offset": 1}
    note |= {"event_id": "e1", "origin_partition": 0, "origin_offset": 1}
    log.add("dropped", b"b", encoded("dropped", note | changes))
    assert judged(log, None).findings == found


def test_the_command_takes_the_folder_of_the_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["127.0.0.1:1", "t", "--lock", str(tmp_path / "none.lock"), "--models", str(tmp_path)]) == 2
    assert "none.lock" in capsys.readouterr().out
