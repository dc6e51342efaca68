"""The monitor in the real loop over the transport in memory: partials go out with the commit, once whatever crashes."""

import time
from typing import Any

import pyarrow as pa
from penstock_monitor.stage import FLUSH_MS, MonitorStage, kind

from penstock.codec.avro import AvroDecoder, AvroEncoder
from penstock.health import Health
from penstock.plan import InputPlan, Plan, StagePlan
from penstock.profiles.rows import ProfileRow, from_arrow
from penstock.settings import Settings
from penstock.transport.memory import MemoryBroker, MemoryTransport
from penstock.worker import find_kind, find_main, make_loop
from tests.onnx_models import baskets, batch
from tests.onnx_models import plan as small_plan
from tests.unit.test_monitor_merging import plan as merge_plan

HOUR = 3_600_000


def plan() -> Plan:
    base = merge_plan()
    label = small_plan("shop").label
    assert label is not None
    inputs = [
        InputPlan(topic=f"shop.{name}", format="avro", value=value, event_time=time)
        for name, time in (("features", "_event_time"), ("predictions", "event_time"), ("outcomes", "event_time"))
        if (value := base.topic(name).value) is not None
    ]
    stage = StagePlan(name="monitor", inputs=tuple(inputs), outputs=("shop.profiles",))
    schemas = {i.value.id: i.value.avro for i in inputs} | base.schemas
    return base.model_copy(
        update={
            "stages": (stage,),
            "schemas": schemas,
            "label": label.model_copy(update={"horizon_ms": 10 * HOUR}),
            "monitors": base.monitors.model_copy(update={"pane_ms": HOUR, "window_ms": HOUR}),
        }
    )


def append(used: Plan, broker: MemoryBroker, name: str, rows: pa.RecordBatch) -> None:
    value = used.topic(name).value
    assert value is not None
    for encoded in AvroEncoder(value.avro, value.id).encode(rows).to_pylist():
        broker.append(f"shop.{name}", b"k", encoded)


def outcome(number: int, **facts: Any) -> dict[str, Any]:
    fixed = {"event_id": f"e{number}", "ingest_time": 0, "origin_partition": 0, "origin_offset": number}
    return {**fixed, "label_key": f"e{number}", **facts}


def outcomes(facts: list[dict[str, Any]]) -> pa.RecordBatch:
    types = {
        "kind": pa.string(),
        "label_key": pa.string(),
        "event_id": pa.string(),
        "event_time": pa.timestamp("ms"),
        "ingest_time": pa.timestamp("ms"),
        "origin_partition": pa.int32(),
        "origin_offset": pa.int64(),
        "model": pa.string(),
        "version": pa.string(),
        "score": pa.float64(),
        "label": pa.string(),
        "value": pa.float64(),
    }
    return pa.record_batch({name: pa.array([f.get(name) for f in facts], kind) for name, kind in types.items()})


def run(used: Plan, broker: MemoryBroker, *, crash: bool = False) -> None:
    """One life of a worker; ``crash`` loses what was not committed."""
    stage = MonitorStage(used)
    transport = MemoryTransport(broker, used.group("monitor"))
    loop = make_loop(used, "monitor", Settings(max_batch_rows=16), stage, transport, Health(), FLUSH_MS)
    transport.subscribe([source.topic for source in used.stage("monitor").inputs], loop)
    loop._committed = time.time()  # in the middle of its interval
    for _ in range(30):
        loop.step()
    if crash:
        transport.abort()
    else:
        loop._commit()
    transport.close()


def profiles(used: Plan, broker: MemoryBroker) -> list[ProfileRow]:
    value = used.topic("profiles").value
    assert value is not None
    decoder = AvroDecoder(value.avro, used.schemas.__getitem__)
    return from_arrow(decoder.decode([row.value for row in broker.rows("shop.profiles")]).rows)


def broker_for(used: Plan) -> MemoryBroker:
    broker = MemoryBroker()
    for topic in used.topics:
        broker.create(topic.name, topic.partitions)
    return broker


def total(rows: list[ProfileRow], feature: str, what: str = "rows") -> int:
    return sum(getattr(row, what) for row in rows if row.feature == feature)


def test_partials_go_out_with_the_commit_and_only_with_it() -> None:
    used = plan()
    broker = broker_for(used)
    append(used, broker, "features", batch(**baskets(50)).rows)
    run(used, broker, crash=True)
    assert profiles(used, broker) == []
    run(used, broker)
    run(used, broker)
    rows = profiles(used, broker)
    assert {row.feature for row in rows} == {"amount", "count", "online"}
    assert [total(rows, feature) for feature in ("amount", "count", "online")] == [50, 50, 50]
    assert {row.key for row in broker.rows("shop.profiles")} == {row.key.encode() for row in rows}


def test_a_restart_replays_the_outcomes_and_counts_every_pair_once() -> None:
    used = plan()
    broker = broker_for(used)
    made = {"kind": "prediction", "model": "shop_model", "version": "1.0.0", "score": 0.7, "label": "1"}
    predictions = [outcome(i, event_time=HOUR * i, **made) for i in range(8)]
    labels = [outcome(i, event_time=HOUR * (i + 1), kind="label", value=float(i % 2)) for i in range(8)]
    append(used, broker, "outcomes", outcomes([*predictions[:4], *labels[:2]]))
    run(used, broker)
    append(used, broker, "outcomes", outcomes([*predictions[4:], *labels[2:5]]))
    run(used, broker, crash=True)
    run(used, broker)
    append(used, broker, "outcomes", outcomes(labels[5:]))
    run(used, broker)
    rows = profiles(used, broker)
    assert total(rows, "_outcome") == 8
    assert total(rows, "_outcome", "correct") == 4
    assert sorted(row.pane // HOUR for row in rows if row.rows) == list(range(8))
    assert total(rows, "_outcome", "expired_predictions") == total(rows, "_outcome", "expired_labels") == 0


def test_the_service_is_found_by_its_entry_points() -> None:
    assert find_kind("monitor") is kind
    assert kind.commit_interval_ms == 1000
    assert find_main("monitor.merge") is not None
    assert isinstance(kind.build(plan(), "monitor"), MonitorStage)
