"""Trains the flights model on January to March: features from the stages that serve, gradient-boosted trees, a logistic
calibration inside the exported graph. The split is by time, because a shuffled one would let the model see the future.
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import lightgbm as lgb
import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pyarrow as pa
import pyarrow.compute as pc
from onnx import TensorProto, helper
from onnxmltools import convert_lightgbm
from onnxmltools.convert.common.data_types import FloatTensorType
from sklearn.linear_model import LogisticRegression

from penstock import envelope
from penstock.models.manifest import MODEL_FILE, PROFILE_FILE, Manifest
from penstock.models.registry import ModelRegistry
from penstock.plan import Plan
from penstock.profiles.ranking import auc
from penstock.profiles.reference import ReferenceProfile
from penstock.training import kept, matrix, next_version, training_rows
from pipelines.flights import data
from pipelines.flights.replay import Replay

START, END = "2013-01-01", "2013-04-01"
CALIBRATE_FROM, VALIDATE_FROM = "2013-03-01", "2013-03-16"
"""Trained on what lies before, calibrated on the first half of March, judged on the second."""

OPSET, ML_OPSET = 15, 3
TREES: dict[str, object] = {
    "objective": "binary",
    "learning_rate": 0.05,
    "num_leaves": 7,
    "min_data_in_leaf": 200,
    "feature_fraction": 0.7,
    "bagging_fraction": 0.8,
    "bagging_freq": 1,
    "lambda_l2": 5.0,
    "deterministic": True,
    "force_row_wise": True,
    "num_threads": 1,
    "seed": 2013,
    "verbosity": -1,
}
ROUNDS = 150

DELAY = "departure_delay"
WATCHED_ONLY = frozenset({"temperature", "dew_point_spread", "air_pressure", "destination"})
"""Columns that the trees may not cut on: what a winter teaches about them is wrong in summer (it costs 0.004 of AUC),
and nine destinations appear only later. The monitor watches them all the same."""

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]


def train(models_url: str, plan: Plan, progress: Callable[[str], None] = lambda line: None) -> str:
    """Registers a version of the plan's model under ``models_url`` and returns it; kept if data and features are known.

    ``progress`` is told what is being done.
    """
    assert plan.model is not None
    registry = ModelRegistry(models_url)
    flights = data.load().between(START, END)
    data_hash = _hash(flights)
    known = kept(registry, plan, data_hash)
    if known is not None:
        progress(f"model {known.label} is kept: same data, same features")
        return known.version
    progress(f"{flights.departures.num_rows} departures go through ingest and features")
    rows = training_set(plan, flights)
    progress(f"{rows.num_rows} labelled departures; training")
    version = next_version(registry, plan.model.name)
    files, metrics, codes = fit(plan, rows, version)
    manifest = Manifest.of(plan, version, files, metrics=metrics, data_hash=data_hash, codes=codes)
    registry.register(manifest, files)
    progress(f"model {manifest.label}: AUC {metrics['auc']:.3f}, the delay alone {metrics['baseline_auc']:.3f}")
    return version


def training_set(plan: Plan, flights: data.Flights) -> pa.Table:
    """The features of every departure that landed, with ``late``, by event time."""
    replay = Replay(flights, (plan.event.id, plan.label.id if plan.label else 0), broken=0)
    raw = ((m.key, m.value) for chunk in replay.chunks(4096) for m in chunk if m.topic == "raw")
    computed = training_rows(plan, raw)
    if computed.dead:
        raise ValueError(f"{computed.dead} departures of the training data did not pass ingest")
    labels = flights.landings.select(["flight_id", "late"])
    joined = computed.rows.join(labels, envelope.EVENT_ID, "flight_id", "inner")
    return joined.sort_by([(envelope.EVENT_TIME, "ascending"), (envelope.EVENT_ID, "ascending")])


def fit(
    plan: Plan, rows: pa.Table, version: str
) -> tuple[dict[str, bytes], dict[str, float], dict[str, tuple[str, ...]]]:
    """Files, metrics and codes of one version, from ``training_set``'s rows."""
    columns = [column.name for column in plan.service.columns]
    day = pc.utf8_slice_codeunits(rows[envelope.EVENT_ID], 0, 10)
    early = np.asarray(pc.less(day, CALIBRATE_FROM))
    last = np.asarray(pc.greater_equal(day, VALIDATE_FROM))
    middle = ~early & ~last
    late = rows["late"].to_numpy().astype(np.float64)
    codes = categories(rows.filter(pa.array(early)), columns)
    x = matrix(rows, columns, codes)
    constraints = {
        "feature_contri": [0.0 if name in WATCHED_ONLY else 1.0 for name in columns],
        # leaving later never makes arriving late less likely
        "monotone_constraints": [int(name == DELAY) for name in columns],
    }
    booster = lgb.train(TREES | constraints, lgb.Dataset(x[early], late[early], feature_name=columns), ROUNDS)
    raw: Doubles = booster.predict(x[middle], raw_score=True)
    platt = LogisticRegression(C=1e6).fit(raw.reshape(-1, 1), late[middle])
    model = export(booster, float(platt.coef_[0, 0]), float(platt.intercept_[0]), len(columns))
    scores = np.full(len(late), np.nan)
    scores[last] = run(model, x[last])
    baseline = plan.monitors.baseline
    metrics = {
        "auc": auc(scores[last], late[last]) or 0.0,
        "brier": float(np.mean((scores[last] - late[last]) ** 2)),
        "late_rate": float(late[last].mean()),
        "mean_score": float(scores[last].mean()),
        "rows": float(len(late)),
    }
    if baseline is not None:
        metrics["baseline_auc"] = auc(x[last, columns.index(baseline)].astype(np.float64), late[last]) or 0.0
    profile = ReferenceProfile.build(
        rows.select(columns),
        scores,
        np.where(last, late, np.nan),
        threshold=plan.model.threshold if plan.model else 0.5,
        baseline=baseline,
        model=plan.model.name if plan.model else "",
        version=version,
        service_hash=plan.service.hash,
    )
    return {MODEL_FILE: model, PROFILE_FILE: profile.save()}, metrics, codes


def categories(rows: pa.Table, columns: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The values of each string column by how often their flights are late, so that a tree can cut between them."""
    found = {}
    for name in columns:
        if pa.types.is_string(rows[name].type):
            rates = rows.group_by(name).aggregate([("late", "mean")]).drop_null()
            found[name] = tuple(rates.sort_by([("late_mean", "ascending"), (name, "ascending")])[name].to_pylist())
    return found


def export(booster: lgb.Booster, slope: float, intercept: float, columns: int) -> bytes:
    """The model as ONNX: ``features`` float32[n, k] → ``score`` float32[n] = sigmoid(slope·trees + intercept)."""
    # as a regression the trees give their raw sum, which is what the calibration was fitted on
    text = booster.model_to_string().replace("objective=binary sigmoid:1", "objective=regression")
    sums = lgb.Booster(model_str=text.replace("[objective: binary]", "[objective: regression]"))
    features = FloatTensorType([None, columns])
    graph = convert_lightgbm(sums, initial_types=[("features", features)], target_opset=OPSET).graph
    raw = graph.output[0].name
    graph.initializer.extend(
        [
            helper.make_tensor("slope", TensorProto.FLOAT, [1], [slope]),
            helper.make_tensor("intercept", TensorProto.FLOAT, [1], [intercept]),
            helper.make_tensor("flat", TensorProto.INT64, [1], [-1]),
        ]
    )
    graph.node.extend(
        [
            helper.make_node("Mul", [raw, "slope"], ["scaled"]),
            helper.make_node("Add", ["scaled", "intercept"], ["logit"]),
            helper.make_node("Sigmoid", ["logit"], ["probability"]),
            helper.make_node("Reshape", ["probability", "flat"], ["score"]),
        ]
    )
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info("score", TensorProto.FLOAT, [None]))
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("ai.onnx.ml", ML_OPSET)]
    model = helper.make_model(graph, opset_imports=opsets, producer_name="penstock", ir_version=8)
    onnx.checker.check_model(model)
    content: bytes = model.SerializeToString()
    return content


def run(model: bytes, x: Floats) -> Doubles:
    """float64[n]: the scores that the exported model gives."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    scores: Doubles = session.run(["score"], {"features": x})[0].astype(np.float64)
    return scores


def _hash(flights: data.Flights) -> str:
    """sha256 of the training data and of this recipe, 64 hex digits: what a version has to be trained anew for."""
    digest = hashlib.sha256(Path(__file__).read_bytes())
    for table in (flights.departures, flights.landings):
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table.combine_chunks())
        digest.update(sink.getvalue())
    return digest.hexdigest()
