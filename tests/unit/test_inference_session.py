"""The ONNX Runtime session: verified bytes only, the manifest's input and output, and what a model may do wrong."""

import logging
from typing import Any

import numpy as np
import onnxruntime as ort
import penstock_inference.session as session_module
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper
from penstock_inference.providers import CPU, CUDA, Choice, choose
from penstock_inference.session import (
    DeviceLost,
    ModelFailed,
    NoScores,
    PaddedRuns,
    ScoreSession,
    bucket,
)

from penstock.models.manifest import Manifest, ModelError, ModelOutput
from penstock.models.registry import ModelRegistry
from penstock.models.verification import VerifiedModel
from tests.onnx_models import external, linear, model, plan, raises_on_large_amounts

ON_CPU = Choice((CPU,), "the test says so", required=True)


def verified(proto: ModelProto, output: ModelOutput | None = None, **files: bytes) -> VerifiedModel:
    content = {"model.onnx": proto.SerializeToString(), **files}
    return VerifiedModel(Manifest.of(plan(), "1.0.0", content, output=output), "d" * 64, content)


def opened(proto: ModelProto, output: ModelOutput | None = None, **files: bytes) -> ScoreSession:
    return ScoreSession(verified(proto, output, **files), ON_CPU)


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def matrix(n: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(size=(n, 3)).astype(np.float32)


def test_scores_are_what_the_model_computes() -> None:
    features = matrix(100)

    scores = opened(linear()).score(features)

    assert scores.dtype == np.float64
    np.testing.assert_allclose(scores, sigmoid(features @ [1.0, 0.5, -1.0]), rtol=1e-5)


def test_a_batch_of_one_scores_as_a_row_of_many_within_float32() -> None:
    session, features = opened(linear()), matrix(257)

    together = session.score(features)
    alone = np.concatenate([session.score(features[i : i + 1]) for i in range(len(features))])

    np.testing.assert_allclose(alone, together, rtol=2e-6)


def test_tampered_bytes_never_reach_onnx_runtime(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    content = {"model.onnx": linear().SerializeToString()}
    registry = ModelRegistry(str(tmp_path))
    registry.register(Manifest.of(plan(), "1.0.0", content), content)
    path = tmp_path / "shop_model" / "1.0.0" / "model.onnx"
    path.write_bytes(linear((9.0, 9.0, 9.0)).SerializeToString())
    seen: list[bytes] = []
    monkeypatch.setattr(session_module.ort, "InferenceSession", lambda content, *a, **k: seen.append(content))

    with pytest.raises(ModelError, match="has sha256"):
        ScoreSession(registry.load("shop_model", "1.0.0"), ON_CPU)

    assert seen == []


def test_bytes_that_change_after_the_check_are_not_read_again(tmp_path: Any) -> None:
    content = {"model.onnx": linear().SerializeToString()}
    registry = ModelRegistry(str(tmp_path))
    registry.register(Manifest.of(plan(), "1.0.0", content), content)
    loaded = registry.load("shop_model", "1.0.0")
    (tmp_path / "shop_model" / "1.0.0" / "model.onnx").write_bytes(linear((9.0, 9.0, 9.0)).SerializeToString())

    scores = ScoreSession(loaded, ON_CPU).score(np.ones((1, 3), np.float32))

    np.testing.assert_allclose(scores, sigmoid(0.5), rtol=1e-5)


def test_weights_in_another_file_come_from_memory(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    proto, weights = external("weights.bin")
    wrong = np.array([[9.0], [9.0], [9.0]], np.float32).tobytes()
    (tmp_path / "weights.bin").write_bytes(wrong)
    monkeypatch.chdir(tmp_path)

    scores = opened(proto, None, **{"weights.bin": weights}).score(np.ones((1, 3), np.float32))

    np.testing.assert_allclose(scores, sigmoid(0.5), rtol=1e-5)


def probabilities() -> ModelProto:
    """Two columns, [1 - p, p] with p = sigmoid of the first feature."""
    w = numpy_helper.from_array(np.array([[0, 1], [0, 0], [0, 0]], np.float32), "w")
    nodes = [
        helper.make_node("MatMul", ["features", "w"], ["z"]),
        helper.make_node("Softmax", ["z"], ["probabilities"]),
    ]
    return model(nodes, [w], score=(None, 2), output="probabilities")


def test_of_two_probabilities_the_positive_column_is_the_score() -> None:
    features = matrix(5)

    scores = opened(probabilities(), ModelOutput(name="probabilities", column=1)).score(features)

    np.testing.assert_allclose(scores, sigmoid(features[:, 0]), rtol=1e-5)


@pytest.mark.parametrize(
    ("output", "complaint"),
    [
        (ModelOutput(name="probabilities"), "has 2 columns, and no manifest says which is the score"),
        (ModelOutput(name="probabilities", column=2), "has 2 columns, the score is said to be number 2"),
        (ModelOutput(name="score"), "has outputs 'probabilities', the manifest says 'score'"),
    ],
)
def test_an_output_that_is_not_one_score_per_row_is_refused_at_load(output: ModelOutput, complaint: str) -> None:
    with pytest.raises(ModelError, match=complaint):
        opened(probabilities(), output)


def test_a_model_that_gives_one_score_for_the_whole_batch_is_refused_at_load() -> None:
    mean = model([helper.make_node("ReduceMean", ["features"], ["score"])], score=(1, 1))

    with pytest.raises(ModelError, match=r"has shape \[1, 1\] for 3 rows"):
        opened(mean)


def test_a_label_is_no_score() -> None:
    label = model(
        [helper.make_node("ArgMax", ["features"], ["score"], axis=1)], score=(None, 1), kind=TensorProto.INT64
    )

    with pytest.raises(ModelError, match="is no float tensor"):
        opened(label)


def test_a_model_of_other_columns_is_refused_at_load() -> None:
    with pytest.raises(ModelError, match=r"takes tensor\(float\) 'features' .*, the manifest says .* \[None, 3\]"):
        opened(linear((1.0, 2.0)))


def test_a_model_of_a_fixed_row_count_is_refused_at_load() -> None:
    proto = linear()
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 8

    with pytest.raises(ModelError, match="free row count"):
        opened(proto)


def test_a_graph_that_onnx_runtime_does_not_know_is_refused_with_its_words() -> None:
    proto = model([helper.make_node("NoSuchOperator", ["features"], ["score"])])

    with pytest.raises(ModelError, match=r"shop_model 1\.0\.0: ONNX Runtime .* refuses it: .*NoSuchOperator"):
        opened(proto)


def test_a_model_that_raises_is_told_apart_from_one_that_gives_too_few_scores() -> None:
    session = opened(raises_on_large_amounts())
    fine, bad = np.zeros((4, 3), np.float32), np.full((4, 3), 101, np.float32)

    np.testing.assert_array_equal(session.score(fine), [0.25] * 4)
    with pytest.raises(ModelFailed, match="Reshape"):
        session.score(bad)


def test_a_shape_that_goes_wrong_only_later_is_noticed() -> None:
    # gives one score for each row with a positive first feature; the warm-up's zeros give none, so 1 is added
    nodes = [
        helper.make_node("Slice", ["features", "zero", "one", "axis"], ["amount"]),
        helper.make_node("GreaterOrEqual", ["amount", "nought"], ["keep"]),
        helper.make_node("Compress", ["amount", "keep_flat"], ["score"], axis=0),
    ]
    nodes.insert(2, helper.make_node("Squeeze", ["keep", "axis"], ["keep_flat"]))
    proto = model(
        nodes,
        [
            numpy_helper.from_array(np.array([0], np.int64), "zero"),
            numpy_helper.from_array(np.array([1], np.int64), "one"),
            numpy_helper.from_array(np.array([1], np.int64), "axis"),
            numpy_helper.from_array(np.array(0, np.float32), "nought"),
        ],
    )
    session = opened(proto)

    with pytest.raises(NoScores, match=r"has shape \[2, 1\] for 3 rows"):
        session.score(np.array([[1, 0, 0], [-1, 0, 0], [2, 0, 0]], np.float32))


@pytest.mark.parametrize(("rows", "size"), [(1, 64), (64, 64), (65, 128), (4096, 4096), (4097, 8192), (65536, 65536)])
def test_buckets_are_powers_of_two_from_64(rows: int, size: int) -> None:
    assert bucket(rows) == size


@pytest.mark.parametrize("rows", [1, 63, 64, 65, 70_000])
def test_padded_runs_score_as_plain_ones(rows: int) -> None:
    padded = PaddedRuns(
        ort.InferenceSession(linear().SerializeToString(), providers=[CPU]), "features", "score", 3, "cpu"
    )
    features = matrix(rows)

    # twice, so that a bucket's former content would show
    padded.run(matrix(rows, seed=9))
    scores = padded.run(features)[:, 0]

    np.testing.assert_allclose(scores, sigmoid(features @ [1.0, 0.5, -1.0]), rtol=2e-5, atol=1e-6)


def test_padding_does_not_hide_a_wrong_shape() -> None:
    mean = model([helper.make_node("ReduceMean", ["features"], ["score"])], score=(1, 1))
    padded = PaddedRuns(ort.InferenceSession(mean.SerializeToString(), providers=[CPU]), "features", "score", 3, "cpu")

    assert padded.run(matrix(100)).shape == (1, 1)


def test_without_a_device_the_log_says_cpu_and_why(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("penstock_inference.providers.no_cuda", lambda: "no CUDA driver on this machine")

    with caplog.at_level(logging.INFO):
        session = ScoreSession(verified(linear()), choose("auto"))

    assert session.provider == CPU
    assert "shop_model 1.0.0 runs on CPUExecutionProvider: no CUDA driver on this machine" in caplog.text


def test_a_provider_that_is_asked_for_by_name_and_not_there_is_an_error() -> None:
    with pytest.raises(ModelError, match=r"PENSTOCK_PROVIDERS='abacus': this ONNX Runtime has .*CPUExecutionProvider"):
        choose("abacus")
    assert choose("cpu") == Choice((CPU,), "PENSTOCK_PROVIDERS says so", required=True)
    if CUDA in ort.get_available_providers():
        assert choose("cuda, cpu").providers == (CUDA, CPU)


def test_a_lost_device_ends_the_worker_and_blames_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    class DeviceReset(Exception):
        """As ONNX Runtime names it."""

    session = opened(linear())

    def lost(features: Any) -> Any:
        return session_module._guarded(lambda: (_ for _ in ()).throw(DeviceReset("device removed")))

    monkeypatch.setattr(session, "_run", lost)
    with pytest.raises(DeviceLost, match="device removed"):
        session.score(matrix(1))
