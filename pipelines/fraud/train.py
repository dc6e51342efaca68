"""Trains the fraud model on synthetic transactions that went through the stages that serve: a small neural network by
default, or a hundred trees. Both are exported with everything they need inside the graph.
"""

import hashlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import lightgbm as lgb
import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pyarrow as pa
from onnx import TensorProto, helper, numpy_helper
from onnxmltools import convert_lightgbm
from onnxmltools.convert.common.data_types import FloatTensorType
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier

from penstock import envelope
from penstock.codec.avro import AvroEncoder
from penstock.models.manifest import MODEL_FILE, PROFILE_FILE, Manifest
from penstock.models.registry import ModelRegistry
from penstock.plan import Plan
from penstock.profiles.ranking import auc
from penstock.profiles.reference import ReferenceProfile
from penstock.training import kept, matrix, next_version, training_rows
from pipelines.fraud.data import generate

EVENTS, SEED = 120_000, 2024
FRAUD_RATE = 0.03
TRAINED_ON = 0.75
"""Share of the events, the earlier ones, that the model learns from; it is judged on the rest."""

HIDDEN = (32, 16)
BATCH, STEPS = 512, 2_000
"""Of the network's training: the steps are the same however few the rows."""

OPSET = 15

Family = Literal["mlp", "trees"]
Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]


def train(
    models_url: str,
    plan: Plan,
    progress: Callable[[str], None] = lambda line: None,
    family: Family = "mlp",
    events: int = EVENTS,
) -> str:
    """Registers a version of the plan's model under ``models_url`` and returns it; kept if it was trained before.

    ``progress`` is told what is being done.
    """
    assert plan.model is not None
    registry = ModelRegistry(models_url)
    data_hash = _hash(family, events)
    known = kept(registry, plan, data_hash)
    if known is not None:
        progress(f"model {known.label} is kept: same data, same features")
        return known.version
    progress(f"{events} transactions go through ingest and features")
    rows = training_set(plan, events)
    progress(f"{rows.num_rows} labelled transactions; training")
    version = next_version(registry, plan.model.name)
    files, metrics = fit(plan, rows, version, family)
    manifest = Manifest.of(plan, version, files, metrics=metrics, data_hash=data_hash)
    registry.register(manifest, files)
    progress(f"model {manifest.label}: AUC {metrics['auc']:.3f}, the amount alone {metrics['baseline_auc']:.3f}")
    return version


def training_set(plan: Plan, events: int) -> pa.Table:
    """The features of ``events`` transactions with ``fraud``, by event time."""
    # the step makes them cover a day, so that every window fills
    made = generate(events, 0, np.random.default_rng(SEED), FRAUD_RATE, step_ms=86_400_000 / events)
    values = AvroEncoder(plan.event.avro, plan.event.id).encode(made.events).to_pylist()
    computed = training_rows(plan, zip(made.events["card_id"].to_pylist(), values, strict=True))
    labels = pa.table({"event_id": made.labels["event_id"], "fraud": made.labels["fraud"].cast(pa.int8())})
    joined = computed.rows.join(labels, envelope.EVENT_ID, "event_id", "inner")
    return joined.sort_by([(envelope.EVENT_TIME, "ascending"), (envelope.EVENT_ID, "ascending")])


def fit(plan: Plan, rows: pa.Table, version: str, family: Family) -> tuple[dict[str, bytes], dict[str, float]]:
    """Files and metrics of one version, from ``training_set``'s rows."""
    columns = [column.name for column in plan.service.columns]
    x, y = matrix(rows, columns, {}), rows["fraud"].to_numpy().astype(np.float64)
    cut = int(len(y) * TRAINED_ON)
    model = (fit_mlp if family == "mlp" else fit_trees)(x[:cut], y[:cut])
    scores, truth = np.full(len(y), np.nan), np.full(len(y), np.nan)
    scores[cut:], truth[cut:] = run(model, x[cut:]), y[cut:]
    baseline = plan.monitors.baseline
    metrics = {"auc": auc(scores, truth) or 0.0, "fraud_rate": float(y.mean()), "rows": float(len(y))}
    if baseline is not None:
        metrics["baseline_auc"] = auc(x[:, columns.index(baseline)].astype(np.float64), truth) or 0.0
    profile = ReferenceProfile.build(
        rows.select(columns),
        scores,
        truth,
        threshold=plan.model.threshold if plan.model else 0.5,
        baseline=baseline,
        model=plan.model.name if plan.model else "",
        version=version,
        service_hash=plan.service.hash,
    )
    return {MODEL_FILE: model, PROFILE_FILE: profile.save()}, metrics


def fit_mlp(x: Floats, y: Doubles) -> bytes:
    """A network of two hidden layers as ONNX: null as 0, log(1 + x), standardised, ReLU, a sigmoid at the end."""
    scaled = np.log1p(np.maximum(np.nan_to_num(x, nan=0.0), 0.0))
    mean, std = scaled.mean(0), scaled.std(0) + 1e-6
    passes = -(-STEPS * BATCH // len(x))
    network = MLPClassifier(
        HIDDEN, batch_size=BATCH, max_iter=passes, random_state=SEED, tol=0.0, n_iter_no_change=passes
    )
    with warnings.catch_warnings():
        # the steps are enough, and more is what it would like
        warnings.simplefilter("ignore", ConvergenceWarning)
        network.fit((scaled - mean) / std, y.astype(np.int64))
    constants = {
        "zero": np.zeros(1, np.float32),
        "one": np.ones(1, np.float32),
        "mean": mean.astype(np.float32),
        "std": std.astype(np.float32),
        "flat": np.array([-1], np.int64),
    }
    nodes = [
        helper.make_node("IsNaN", ["features"], ["missing"]),
        helper.make_node("Where", ["missing", "zero", "features"], ["filled"]),
        helper.make_node("Max", ["filled", "zero"], ["positive"]),
        helper.make_node("Add", ["positive", "one"], ["more"]),
        helper.make_node("Log", ["more"], ["logarithm"]),
        helper.make_node("Sub", ["logarithm", "mean"], ["centred"]),
        helper.make_node("Div", ["centred", "std"], ["layer0"]),
    ]
    layers = list(zip(network.coefs_, network.intercepts_, strict=True))
    for i, (weights, bias) in enumerate(layers):
        constants[f"weights{i}"], constants[f"bias{i}"] = weights.astype(np.float32), bias.astype(np.float32)
        nodes.append(helper.make_node("Gemm", [f"layer{i}", f"weights{i}", f"bias{i}"], [f"sum{i}"]))
        last = i == len(layers) - 1
        nodes.append(helper.make_node("Sigmoid" if last else "Relu", [f"sum{i}"], [f"layer{i + 1}"]))
    nodes.append(helper.make_node("Reshape", [f"layer{len(layers)}", "flat"], ["score"]))
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    return _model(nodes, initializers, x.shape[1])


def fit_trees(x: Floats, y: Doubles) -> bytes:
    """A hundred boosted trees as ONNX."""
    settings: dict[str, Any] = {"objective": "binary", "num_leaves": 31, "min_data_in_leaf": 50, "seed": SEED}
    settings |= {"deterministic": True, "force_row_wise": True, "num_threads": 1, "verbosity": -1}
    booster = lgb.train(settings, lgb.Dataset(x, y), 100)
    features = FloatTensorType([None, x.shape[1]])
    graph = convert_lightgbm(booster, initial_types=[("features", features)], target_opset=OPSET, zipmap=False).graph
    positive = numpy_helper.from_array(np.array([1], np.int64), "positive")
    flat = numpy_helper.from_array(np.array([-1], np.int64), "flat")
    nodes = [
        *graph.node,
        helper.make_node("Gather", ["probabilities", "positive"], ["chosen"], axis=1),
        helper.make_node("Reshape", ["chosen", "flat"], ["score"]),
    ]
    return _model(nodes, [*graph.initializer, positive, flat], x.shape[1])


def run(model: bytes, x: Floats) -> Doubles:
    """float64[n]: the scores that the exported model gives."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    scores: Doubles = session.run(["score"], {"features": x})[0].astype(np.float64)
    return scores


def _model(nodes: list[Any], initializers: list[Any], columns: int) -> bytes:
    """``features`` float32[n, columns] to ``score`` float32[n]."""
    graph = helper.make_graph(
        nodes,
        "fraud",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, [None, columns])],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, [None])],
        initializers,
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("ai.onnx.ml", 3)]
    model = helper.make_model(graph, opset_imports=opsets, producer_name="penstock", ir_version=8)
    onnx.checker.check_model(model)
    content: bytes = model.SerializeToString()
    return content


def _hash(family: Family, events: int) -> str:
    """sha256 of this recipe and of what generates the data, 64 hex digits."""
    digest = hashlib.sha256(f"{family} {events}".encode())
    for name in ("train.py", "data.py"):
        digest.update(Path(__file__).with_name(name).read_bytes())
    return digest.hexdigest()
