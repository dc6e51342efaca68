"""Inference on a real CUDA device. Where there is none these tests are left out (see tests/not_run.py)."""

import logging

import numpy as np
import numpy.typing as npt
import pytest
from onnx import helper, numpy_helper
from penstock_inference.loaded import load_model
from penstock_inference.providers import CPU, CUDA, choose
from penstock_inference.session import LARGEST_BUCKET, ScoreSession
from penstock_inference.stage import InferenceStage

from penstock.models.manifest import Manifest
from penstock.models.verification import VerifiedModel
from tests.onnx_models import baskets, batch, linear, model, plan

pytestmark = pytest.mark.gpu


def perceptron(width: int = 20) -> VerifiedModel:
    random = np.random.default_rng(5)
    sizes = [(width, 64), (64, 64), (64, 1)]
    nodes, weights, value = [], [], "features"
    for i, size in enumerate(sizes):
        last = i == len(sizes) - 1
        out = "score" if last else f"a{i}"
        weights.append(numpy_helper.from_array(random.normal(scale=0.3, size=size).astype(np.float32), f"w{i}"))
        nodes.append(helper.make_node("MatMul", [value, f"w{i}"], [f"z{i}"]))
        nodes.append(helper.make_node("Sigmoid" if last else "Relu", [f"z{i}"], [out]))
        value = out
    content = {"model.onnx": model(nodes, weights, width=width).SerializeToString()}
    columns = {f"f{i}": "double" for i in range(width)}
    return VerifiedModel(Manifest.of(plan(columns=columns, baseline=None), "1.0.0", content), "d" * 64, content)


def matrix(rows: int, width: int = 20) -> npt.NDArray[np.float32]:
    return np.random.default_rng(rows).normal(size=(rows, width)).astype(np.float32)


def test_auto_takes_the_device_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        session = ScoreSession(perceptron(), choose("auto"))

    assert session.provider == CUDA
    assert "runs on CUDAExecutionProvider: a CUDA device is there" in caplog.text


@pytest.mark.parametrize("rows", [1, 63, 64, 65, 8192, 16_384, LARGEST_BUCKET + 1])
def test_the_device_scores_as_the_cpu(rows: int) -> None:
    on_device, on_cpu = (ScoreSession(perceptron(), choose(name), max_rows=1024) for name in ("cuda,cpu", "cpu"))
    assert (on_device.provider, on_cpu.provider) == (CUDA, CPU)

    np.testing.assert_allclose(on_device.score(matrix(rows)), on_cpu.score(matrix(rows)), rtol=1e-4, atol=1e-6)


def test_a_row_of_nan_does_not_spoil_its_neighbours() -> None:
    features = matrix(100)
    features[7] = np.nan

    scores = ScoreSession(perceptron(), choose("cuda,cpu")).score(features)

    assert np.flatnonzero(np.isnan(scores)).tolist() == [7]


def test_a_smaller_batch_after_a_larger_one_sees_nothing_of_it() -> None:
    session = ScoreSession(perceptron(), choose("cuda,cpu"))
    alone = session.score(matrix(70))

    session.score(np.full((128, 20), 50, np.float32))

    np.testing.assert_allclose(session.score(matrix(70)), alone, rtol=1e-6)


def test_the_stage_predicts_on_the_device() -> None:
    used = plan()
    content = {"model.onnx": linear().SerializeToString()}
    verified = VerifiedModel(Manifest.of(used, "1.0.0", content), "d" * 64, content)
    scores = {}
    for name in ("cuda,cpu", "cpu"):
        stage = InferenceStage(used)
        stage.use(load_model(used, verified, providers=name), 0)
        result = stage.process(batch(**baskets(1000)))
        assert not result.rejects
        scores[name] = result.outputs[0].rows.column("score").to_numpy()

    np.testing.assert_allclose(scores["cuda,cpu"], scores["cpu"], rtol=1e-4, atol=1e-6)
