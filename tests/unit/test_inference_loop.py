"""Inference in the real loop over the transport in memory: features in, predictions, facts and dead letters out."""

import math
from io import BytesIO
from typing import Any

import fastavro
import numpy as np
import pyarrow as pa
import pytest
from onnx import ModelProto
from penstock_inference.loaded import load_model
from penstock_inference.stage import InferenceStage

from penstock.codec.avro import AvroEncoder
from penstock.health import Health
from penstock.models.manifest import Manifest
from penstock.models.verification import VerifiedModel
from penstock.plan import Plan
from penstock.settings import Settings
from penstock.transport.memory import MemoryBroker, MemoryTransport
from penstock.worker import make_loop
from tests.onnx_models import baskets, batch, linear, plan, raises_on_large_amounts


def run(used: Plan, proto: ModelProto, columns: dict[str, pa.Array], max_rows: int = 100) -> MemoryBroker:
    broker = MemoryBroker()
    for topic in used.topics:
        broker.create(topic.name, topic.partitions)
    value = used.topic("features").value
    assert value is not None
    rows = batch(**columns)
    values = AvroEncoder(value.avro, value.id).encode(rows.rows)
    for key, encoded in zip(rows.keys.to_pylist(), values.to_pylist(), strict=True):
        broker.append(used.topic("features").name, key, encoded)
    content = {"model.onnx": proto.SerializeToString()}
    stage = InferenceStage(used)
    verified = VerifiedModel(Manifest.of(used, "1.0.0", content), "d" * 64, content)
    stage.use(load_model(used, verified, providers="cpu"), 7)
    settings = Settings(max_batch_rows=max_rows)
    transport = MemoryTransport(broker, used.group("inference"))
    loop = make_loop(used, "inference", settings, stage, transport, Health(), 5)
    transport.subscribe([used.topic("features").name], loop)
    for _ in range(len(rows) // max_rows + 3):
        loop.step()
    loop._commit()
    return broker


def read(used: Plan, broker: MemoryBroker, topic: str) -> list[dict[str, Any]]:
    """What a third party's decoder reads."""
    value = used.topic(topic).value
    assert value is not None
    schema = fastavro.parse_schema(value.avro)
    found = []
    for row in broker.rows(used.topic(topic).name):
        assert row.value is not None
        assert row.value[:5] == bytes([0]) + value.id.to_bytes(4, "big")
        decoded = fastavro.schemaless_reader(BytesIO(row.value[5:]), schema, None)
        assert isinstance(decoded, dict)
        found.append(decoded)
    return found


@pytest.mark.parametrize("max_rows", [1, 7, 1000])
def test_every_row_is_predicted_once_wherever_batches_are_cut(max_rows: int) -> None:
    used, columns = plan(), baskets(50)

    broker = run(used, linear(), columns, max_rows)

    predictions, facts = read(used, broker, "predictions"), read(used, broker, "outcomes")
    features = np.column_stack(
        [np.asarray(column.to_numpy(zero_copy_only=False), float) for column in columns.values()]
    )
    expected = 1 / (1 + np.exp(-features @ [1.0, 0.5, -1.0]))
    assert [p["prediction_id"] for p in predictions] == [f"event-{i}" for i in range(50)]
    np.testing.assert_allclose([p["score"] for p in predictions], expected, rtol=1e-5)
    assert [p["label"] for p in predictions] == ["1" if score >= 0.5 else "0" for score in expected]
    assert [f["label_key"] for f in facts] == [f"event-{i}" for i in range(50)]
    assert [row.key for row in broker.rows("shop.predictions")][:2] == [b"card-0", None]
    assert [row.key for row in broker.rows("shop.outcomes")][:2] == [b"event-0", b"event-1"]
    assert not broker.rows("shop.dead")


def test_rows_without_a_score_become_dead_letters_byte_for_byte_with_the_reason() -> None:
    columns = baskets(20)
    columns["amount"] = pa.array([math.nan if i == 3 else 1000.0 if i == 11 else 0.5 for i in range(20)])

    broker = run(plan(), raises_on_large_amounts(), columns)

    dead = broker.rows("shop.dead")
    originals = broker.rows("shop.features")
    assert [row.value for row in dead] == [originals[3].value, originals[11].value]
    assert [dict(row.headers)["penstock.reason"] for row in dead] == [b"model gave no score", b"model failed"]
    assert dict(dead[1].headers)["penstock.origin.offset"] == b"111"
    assert len(broker.rows("shop.predictions")) == 18


def test_with_a_fallback_nothing_is_lost() -> None:
    used, columns = plan(fallback=0.125), baskets(20)
    columns["amount"] = pa.array([1000.0] * 20)

    broker = run(used, raises_on_large_amounts(), columns)

    assert not broker.rows("shop.dead")
    assert {(p["served_by"], p["score"]) for p in read(used, broker, "predictions")} == {("fallback", 0.125)}
