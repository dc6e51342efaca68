"""The fraud models: what is exported is what was fitted, nulls included, and both find the injected fraud."""

from pathlib import Path

import numpy as np
import pytest

from penstock.compiling import compile_pipeline
from penstock.models.registry import ModelRegistry
from penstock.plan import Plan
from pipelines.fraud import train
from pipelines.fraud.train import Family


@pytest.fixture(scope="module")
def plan() -> Plan:
    return compile_pipeline("pipelines.fraud.pipeline:pipeline")


def test_the_benchmarks_windows_are_four_over_two_views_with_six_columns() -> None:
    windows = compile_pipeline("pipelines.fraud.pipeline:windows")
    assert len(windows.views) == 2
    assert {view.key for view in windows.views} == {"card_id"}
    assert len({(view.name, a.window_ms) for view in windows.views for a in view.aggregations}) == 4
    assert len(windows.service.columns) == 6
    assert windows.model is None


def separable(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Ten columns with nulls, of which the first says nearly everything."""
    rng = np.random.default_rng(3)
    x = rng.lognormal(1, 1, (n, 10)).astype(np.float32)
    y = (x[:, 0] > 4).astype(np.float64)
    x[rng.random(x.shape) < 0.02] = np.nan
    return x, y


@pytest.mark.parametrize("family", ["mlp", "trees"])
def test_an_exported_model_scores_rows_alone_as_it_does_together(family: Family) -> None:
    x, y = separable(4_000)
    model = (train.fit_mlp if family == "mlp" else train.fit_trees)(x, y)
    scores = train.run(model, x)
    assert scores.shape == (4_000,)
    assert ((scores >= 0) & (scores <= 1)).all()
    assert ((scores >= 0.5) == (y == 1)).mean() > 0.95
    alone = np.concatenate([train.run(model, x[i : i + 1]) for i in range(20)])
    np.testing.assert_allclose(alone, scores[:20], atol=1e-6)
    everything_missing = train.run(model, np.full((1, 10), np.nan, np.float32))
    assert np.isfinite(everything_missing).all()


def test_the_network_finds_fraud_that_went_through_the_stages(plan: Plan, tmp_path: Path) -> None:
    version = train.train(str(tmp_path), plan, family="mlp", events=8_000)
    model = ModelRegistry(str(tmp_path)).load("card_fraud", version)
    assert model.manifest.metrics["auc"] > 0.9
    assert model.manifest.metrics["rows"] == 8_000
    assert model.manifest.input.columns == tuple(column.name for column in plan.service.columns)
    assert train.train(str(tmp_path), plan, family="mlp", events=8_000) == version
