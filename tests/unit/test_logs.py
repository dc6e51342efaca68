"""No payload, key or name of anybody in the logs: stages over bad rows that carry a marked text, in the real loop, with
everything that is logged at DEBUG looked through. The dead letters hold the text, to the byte.
"""

import json
import logging
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest
from penstock_features.stage import build as build_features
from penstock_inference.loaded import load_model
from penstock_inference.stage import InferenceStage
from penstock_ingest.stage import build as build_ingest
from penstock_monitor.stage import MonitorStage

from penstock import envelope
from penstock.codec.avro import AvroEncoder
from penstock.health import Health
from penstock.logs import JsonLines
from penstock.models.manifest import Manifest
from penstock.models.verification import VerifiedModel
from penstock.plan import InputPlan, Plan, SchemaPlan, StagePlan, TopicPlan
from penstock.records import Batch, Result
from penstock.settings import Settings
from penstock.stage import Stage
from penstock.transport.memory import MemoryBroker, MemoryTransport, Row
from penstock.worker import make_loop
from tests.onnx_models import batch, raises_on_large_amounts
from tests.onnx_models import plan as inference_plan
from tests.unit.features_plan import MINUTE, events
from tests.unit.features_plan import plan as features_plan
from tests.unit.test_monitor_loop import outcome, outcomes
from tests.unit.test_monitor_loop import plan as monitor_plan

MARK = "s3cr3t-payload"
RAW = MARK.encode()
JUNK = [
    RAW,
    b"\0" + (2_000_000_000).to_bytes(4, "big") + RAW,
    b"\0" + (10**9).to_bytes(4, "big"),
    b"{" + RAW + b"}",
    b'{"' + RAW + b'": "' + RAW + b'"}',
    b'"' + RAW + b'"',
    b"[" * 64 + RAW + b"]" * 64,
    RAW + b"\xff\xfe",
]
"""Values that are nothing to any stage."""

Sent = list[tuple[str, bytes | None, bytes | None]]
"""topic, key, value"""


def name_of(columns: Any) -> dict[str, Any]:
    """An on-demand function that fails, and says over whose name."""
    raise ValueError(f"nobody of the name {columns['shop']}")


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """Everything that was logged: as the worker writes it, and with all that a record carries beside it."""
    caplog.set_level(logging.DEBUG)
    as_written = JsonLines("test", 0)
    return lambda: [f"{as_written.format(record)} {record.__dict__!r}" for record in caplog.records]


def live(used: Plan, name: str, stage: Stage, sent: Sent) -> MemoryBroker:
    """The stage's loop over all of ``sent``, committed."""
    broker = MemoryBroker()
    for topic in used.topics:
        broker.create(topic.name, topic.partitions)
    for row in sent:
        broker.append(*row)
    transport = MemoryTransport(broker, used.group(name))
    loop = make_loop(used, name, Settings(max_batch_rows=64), stage, transport, Health(), 5)
    transport.subscribe([source.topic for source in used.stage(name).inputs], loop)
    for _ in range(20):
        loop.step()
    loop._commit()
    transport.close()
    return broker


def letters(used: Plan, broker: MemoryBroker) -> list[Row]:
    return broker.rows(used.topic("dead").name)


def pairs(rows: list[Row]) -> list[tuple[bytes | None, bytes | None]]:
    return sorted(((row.key, row.value) for row in rows), key=repr)


def with_topics(used: Plan, *names: str) -> Plan:
    more = tuple(TopicPlan(name=f"{used.pipeline}.{name}", partitions=1) for name in names)
    dropped = next(t for t in inference_plan(used.pipeline).topics if t.name.endswith(".dropped"))
    return used.model_copy(update={"topics": (*used.topics, *more, dropped)})


TIMESTAMP = {"type": "long", "logicalType": "timestamp-millis"}
EVENT = {
    "type": "record",
    "name": "Visit",
    "fields": [
        {"name": "visit_id", "type": "string"},
        {"name": "customer", "type": ["null", "string"], "default": None, "pattern": "^[a-z]*$"},
        {"name": "shop", "type": "string"},
        {"name": "amount", "type": ["null", "double"], "default": None, "minimum": 0},
        {"name": "paid", "type": "boolean"},
        {"name": "at", "type": TIMESTAMP},
    ],
}


def ingest_plan() -> Plan:
    used = with_topics(features_plan(), "raw", "dead")
    value = SchemaPlan(subject="shops.raw-value", id=50, avro=EVENT)
    source = InputPlan(topic="shops.raw", format="raw", value=value, event_time="at", max_bytes=2000, future_ms=10**6)
    stage = StagePlan(name="ingest", inputs=(source,), outputs=("shops.events",), rekeys=True)
    event = used.event.model_copy(update={"avro": EVENT, "id": 50, "future_ms": 10**6})
    update = {"stages": (stage,), "event": event, "label": None, "schemas": {50: EVENT, **used.schemas}}
    return used.model_copy(update=update)


def test_ingest_logs_nothing_of_what_it_reads(lines: Callable[[], list[str]]) -> None:
    used = ingest_plan()
    good = {"visit_id": MARK, "customer": "c", "shop": MARK, "amount": 1.0, "paid": True, "at": 1_000_000}
    rows = [
        {**good, "customer": MARK},  # the hyphen and the digit are no letters
        {**good, "amount": -1.0},
        {**good, "amount": float("nan")},
        {**good, "at": 10**14},
    ]
    types = [pa.string(), pa.string(), pa.string(), pa.float64(), pa.bool_(), pa.timestamp("ms")]
    columns = {name: pa.array([row[name] for row in rows], kind) for name, kind in zip(good, types, strict=True)}
    framed = AvroEncoder(EVENT, 50).encode(pa.RecordBatch.from_pydict(columns)).to_pylist()
    texts = [
        json.dumps({**good, **change}).encode()
        for change in ({"paid": MARK}, {"amount": MARK}, {"at": MARK}, {"shop": None}, {"visit_id": MARK * 200})
    ]
    cut = [framed[0][:-9], framed[1] + RAW, framed[1].replace(RAW, RAW[:-1] + b"\xff"), texts[0][:-9]]
    bad = [*JUNK, *framed, *texts, *cut, None]
    fine = json.dumps(good).encode()

    broker = live(used, "ingest", build_ingest(used, "ingest"), [("shops.raw", RAW, value) for value in [*bad, fine]])

    assert pairs(letters(used, broker)) == sorted([(RAW, value) for value in bad], key=repr)
    assert len(broker.rows("shops.events")) == 1
    assert not [line for line in lines() if MARK in line]


def test_features_log_nothing_of_the_rows_that_their_functions_fail_on(lines: Callable[[], list[str]]) -> None:
    used = with_topics(features_plan(), "raw", "dead")
    (share,) = used.on_demand
    failing = share.model_copy(update={"function": f"{__name__}:name_of", "inputs": ("shop", "amount")})
    used = used.model_copy(update={"on_demand": (failing,)})
    source = used.stage("features.shop").inputs[0]
    rows = events([(MARK, MARK, n * MINUTE, 1.0, True) for n in range(5)])
    for field in source.value.avro["fields"][len(rows.schema.names) :]:
        kind = pa.int64() if "long" in field["type"] else pa.float64()
        rows = rows.append_column(field["name"], pa.nulls(len(rows), kind))
    framed = AvroEncoder(source.value.avro, source.value.id).encode(rows).to_pylist()
    sent: Sent = [(source.topic, RAW, value) for value in [*JUNK, *framed, framed[0][:-3]]]

    broker = live(used, "features.shop", build_features(used, "features.shop"), sent)

    dead = letters(used, broker)
    assert pairs(dead) == sorted([(key, value) for _, key, value in sent], key=repr)
    reasons = [dict(row.headers)["penstock.reason"] for row in dead]
    assert reasons.count(b"feature function failed") == 5
    assert not [line for line in lines() if MARK in line]


class Failing(Stage):
    """Raises over a row and says its name, as a stage of anybody's may."""

    def process(self, batch: Batch) -> Result:
        if len(batch):
            raise KeyError(batch.rows.column("visit_id")[0].as_py())
        return Result()


def test_a_stage_that_raises_is_logged_without_what_it_said(lines: Callable[[], list[str]]) -> None:
    used = with_topics(features_plan(), "raw", "dead")
    source = used.stage("features.customer").inputs[0]
    rows = events([(MARK, MARK, n * MINUTE, 1.0, True) for n in range(3)])
    rows = rows.set_column(rows.schema.get_field_index("visit_id"), "visit_id", pa.array([MARK] * 3))
    framed = AvroEncoder(source.value.avro, source.value.id).encode(rows).to_pylist()

    broker = live(used, "features.customer", Failing(), [(source.topic, RAW, value) for value in framed])

    dead = letters(used, broker)
    assert pairs(dead) == sorted([(RAW, value) for value in framed], key=repr)
    assert {dict(row.headers)["penstock.reason"] for row in dead} == {b"stage failed"}
    assert any("Failing raised KeyError on 3 rows" in line for line in lines())
    assert not [line for line in lines() if MARK in line]


def test_inference_logs_nothing_of_the_rows_that_the_model_fails_on(lines: Callable[[], list[str]]) -> None:
    used = inference_plan()
    value = used.topic("features").value
    assert value is not None
    n = 6
    amounts = pa.array([1000.0, 0.5, float("nan"), 1000.0, 0.5, 0.5])
    rows = batch([MARK] * n, amount=amounts, count=pa.array([1] * n), online=pa.array([True] * n)).rows
    rows = rows.set_column(0, envelope.EVENT_ID, pa.array([MARK] * n))
    framed = AvroEncoder(value.avro, value.id).encode(rows).to_pylist()
    topic = used.topic("features").name
    content = {"model.onnx": raises_on_large_amounts().SerializeToString()}
    stage = InferenceStage(used)
    verified = VerifiedModel(Manifest.of(used, "1.0.0", content), "d" * 64, content)
    stage.use(load_model(used, verified, providers="cpu"), 7)

    broker = live(used, "inference", stage, [(topic, RAW, value) for value in [*JUNK, *framed]])

    bad = [*JUNK, framed[0], framed[2], framed[3]]
    assert pairs(letters(used, broker)) == sorted([(RAW, value) for value in bad], key=repr)
    assert len(broker.rows(used.topic("predictions").name)) == 3
    assert any("rows of a batch" in line for line in lines())
    assert not [line for line in lines() if MARK in line]


def test_the_monitor_logs_nothing_of_what_it_watches(lines: Callable[[], list[str]]) -> None:
    used = monitor_plan()
    value = used.topic("outcomes").value
    assert value is not None
    facts = [
        outcome(1, label_key=MARK, kind="prediction", event_time=10, model="m", version=MARK, score=0.5, label=MARK),
        outcome(2, label_key=MARK, kind="label", event_time=20, value=float("nan")),
        outcome(3, label_key=MARK, kind="label", event_time=20, value=1.0),
        outcome(3, label_key=MARK, kind="label", event_time=20, value=0.0),
    ]
    framed = AvroEncoder(value.avro, value.id).encode(outcomes(facts)).to_pylist()
    sent: Sent = [("shop.outcomes", RAW, row) for row in framed]
    sent += [(f"shop.{name}", RAW, junk) for name in ("features", "predictions", "outcomes") for junk in JUNK]

    broker = live(used, "monitor", MonitorStage(used), sent)

    dead = pairs(letters(used, broker))
    for junk in JUNK:
        assert dead.count((RAW, junk)) == 3
    assert not [line for line in lines() if MARK in line]
