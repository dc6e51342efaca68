"""Small real ONNX models and a plan that they fit, for the tests of the registry and of inference."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from penstock import envelope
from penstock.plan import (
    FORMAT,
    ColumnPlan,
    EventPlan,
    InputPlan,
    LabelPlan,
    ModelPlan,
    MonitorPlan,
    Plan,
    SchemaPlan,
    ServicePlan,
    StagePlan,
    TopicPlan,
)
from penstock.records import Batch, column

SCHEMAS = Path(__file__).parents[1] / "schemas"
COLUMNS = {"amount": "double", "count": "long", "online": "boolean"}


def plan(
    pipeline: str = "shop",
    columns: dict[str, str] = COLUMNS,
    task: str = "binary",
    fallback: float | None = None,
    label: bool = True,
    threshold: float = 0.5,
    service_hash: str = "feedc0de",
    baseline: str | None = "amount",
) -> Plan:
    """A plan as the compiler writes it, as far as inference reads it."""
    event = {"type": "record", "name": "Event", "fields": [{"name": "at", "type": "long"}]}
    declared = [{"name": name, "type": ["null", kind], "default": None} for name, kind in columns.items()]
    label_key = {"name": envelope.LABEL_KEY, "type": ["null", "string"], "default": None}
    row = {"type": "record", "name": "Features", "fields": [*envelope.FIELDS, label_key, *declared]}
    features = SchemaPlan(subject=f"{pipeline}.features-value", id=9, avro=row)

    def topic(name: str, schema_id: int, schema: str, compacted: bool = False) -> TopicPlan:
        value = SchemaPlan(
            subject=f"{pipeline}.{name}-value", id=schema_id, avro=json.loads((SCHEMAS / f"{schema}.avsc").read_text())
        )
        return TopicPlan(name=f"{pipeline}.{name}", value=value, partitions=1, compacted=compacted)

    return Plan(
        format=FORMAT,
        pipeline=pipeline,
        source="tests",
        partitions=1,
        lateness_ms=0,
        event=EventPlan(
            avro=event, id=1, subject="e", event_id=None, timestamp="at", key="k", max_bytes=1000, future_ms=0
        ),
        label=LabelPlan(avro=event, id=2, subject="l", key="k", value="v", timestamp="at", horizon_ms=1)
        if label
        else None,
        when=None,
        topics=(
            topic("predictions", 10, "prediction"),
            topic("outcomes", 11, "outcome"),
            topic("control", 12, "control", compacted=True),
            topic("dropped", 13, "dropped"),
            TopicPlan(name=f"{pipeline}.dead", partitions=1),
            TopicPlan(name=f"{pipeline}.raw", partitions=1),
            TopicPlan(name=f"{pipeline}.features", value=features, partitions=1),
        ),
        stages=(
            StagePlan(
                name="inference",
                inputs=(
                    InputPlan(topic=f"{pipeline}.features", format="avro", value=features, event_time="_event_time"),
                ),
                outputs=(f"{pipeline}.predictions", f"{pipeline}.outcomes"),
            ),
        ),
        views=(),
        on_demand=(),
        service=ServicePlan(
            name="basket",
            columns=tuple(ColumnPlan(name=name, type=["null", kind]) for name, kind in columns.items()),
            hash=service_hash,
        ),
        model=ModelPlan(name="shop_model", task=task, threshold=threshold, fallback=fallback),
        monitors=MonitorPlan(
            pane_ms=1, window_ms=1, idle_ms=1, psi=1, js=1, null_rate=1, minimum_rows=1, baseline=baseline
        ),
        schemas={9: row},
    )


def batch(label_keys: list[str | None] | None = None, **columns: pa.Array) -> Batch:
    """Rows of ``shop.features`` with these feature columns."""
    n = len(next(iter(columns.values())))
    ids = [f"event-{i}" for i in range(n)]
    rows = {
        "_event_id": pa.array(ids),
        "_origin_partition": pa.array([i % 3 for i in range(n)], pa.int32()),
        "_origin_offset": pa.array([100 + i for i in range(n)], pa.int64()),
        "_event_time": pa.array([1_000 + i for i in range(n)], pa.timestamp("ms")),
        "_ingest_time": pa.array([2_000 + i for i in range(n)], pa.timestamp("ms")),
        "_traceparent": pa.nulls(n, pa.string()),
        "_replays": pa.nulls(n, pa.string()),
        "_label_key": pa.array(ids if label_keys is None else label_keys, pa.string()),
        **columns,
    }
    times = np.arange(n, dtype=np.int64) + 1_000
    return Batch(
        "shop.features",
        pa.RecordBatch.from_pydict(rows),
        column([f"card-{i}".encode() if i % 2 == 0 else None for i in range(n)]),
        np.zeros(n, np.int32),
        np.arange(n, dtype=np.int64),
        times,
        times,
        times,
    )


def baskets(n: int = 4, seed: int = 1) -> dict[str, pa.Array]:
    """Feature columns without nulls for ``COLUMNS``."""
    random = np.random.default_rng(seed)
    return {
        "amount": pa.array(random.normal(size=n)),
        "count": pa.array(random.integers(0, 5, n)),
        "online": pa.array(random.random(n) < 0.5),
    }


def linear(weights: tuple[float, ...] = (1.0, 0.5, -1.0), final: str | None = "Sigmoid") -> ModelProto:
    """score = sigmoid(features · weights); with ``final`` None the sum itself."""
    w = numpy_helper.from_array(np.array(weights, np.float32).reshape(-1, 1), "w")
    nodes = [helper.make_node("MatMul", ["features", "w"], ["sum" if final else "score"])]
    if final:
        nodes.append(helper.make_node(final, ["sum"], ["score"]))
    return model(nodes, [w], width=len(weights))


def model(
    nodes: list[NodeProto],
    initializers: list[TensorProto] = [],  # noqa: B006  # never changed
    width: int = 3,
    score: tuple[str | int | None, ...] = (None, 1),
    output: str = "score",
    kind: int = TensorProto.FLOAT,
) -> ModelProto:
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, [None, width])],
        [helper.make_tensor_value_info(output, kind, list(score))],
        initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def raises_on_large_amounts() -> ModelProto:
    """Gives 0.25, but its last node cannot broadcast once a row's first feature is over 100: that batch raises."""
    nodes = [
        helper.make_node("Slice", ["features", "zero", "one", "axis"], ["amount"]),
        helper.make_node("Greater", ["amount", "hundred"], ["large"]),
        helper.make_node("Cast", ["large"], ["large_number"], to=TensorProto.INT64),
        helper.make_node("ReduceMax", ["large_number"], ["any_large"], keepdims=0),
        helper.make_node("Shape", ["amount"], ["shape"]),
        helper.make_node("Add", ["shape", "any_large"], ["target"]),
        helper.make_node("Reshape", ["amount", "target"], ["same"]),
        helper.make_node("Mul", ["same", "nought"], ["nothing"]),
        helper.make_node("Add", ["nothing", "quarter"], ["score"]),
    ]
    return model(
        nodes,
        [
            numpy_helper.from_array(np.array([0], np.int64), "zero"),
            numpy_helper.from_array(np.array([1], np.int64), "one"),
            numpy_helper.from_array(np.array([1], np.int64), "axis"),
            numpy_helper.from_array(np.array(100, np.float32), "hundred"),
            numpy_helper.from_array(np.array(0, np.float32), "nought"),
            numpy_helper.from_array(np.array(0.25, np.float32), "quarter"),
        ],
    )


def external(location: str) -> tuple[ModelProto, bytes]:
    """``linear`` with its weights in a file, and what that file holds."""
    proto = linear()
    tensor = proto.graph.initializer[0]
    weights = tensor.raw_data
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", str(len(weights)))):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    return proto, weights
