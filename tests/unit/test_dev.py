"""What `penstock dev` says while nothing serves: the commands that are left, as far as the registry has come."""

from pathlib import Path

import pytest

from penstock.local.dev import how_to_serve, train_command
from penstock.models.manifest import Manifest
from penstock.models.registry import ModelRegistry
from tests.onnx_models import linear, plan

TRAIN = "penstock model train shop.pipeline:pipeline"


def told(registry: ModelRegistry) -> list[str]:
    return how_to_serve(plan(), registry, TRAIN, Path("var/dev/shop/plan.json"), "h:1").splitlines()[1:]


def test_while_there_is_no_version_it_says_how_to_make_one_and_only_then_how_to_promote_it(tmp_path: Path) -> None:
    registry = ModelRegistry(str(tmp_path / "models"))
    make, serve = told(registry)
    assert make.endswith(f"has no version of shop_model for these features. Make one:  {TRAIN}")
    assert serve.endswith("KAFKA_BOOTSTRAP_SERVERS=h:1 penstock model promote var/dev/shop/plan.json VERSION")


def test_once_a_version_is_registered_it_says_how_to_promote_that_one(tmp_path: Path) -> None:
    registry = ModelRegistry(str(tmp_path / "models"))
    assert len(told(registry)) == 2
    files = {"model.onnx": linear().SerializeToString()}
    registry.register(Manifest.of(plan(), "1.2.0", files, metrics={}), files)
    (serve,) = told(registry)
    assert "has shop_model 1.2.0. Let it serve:" in serve
    assert serve.endswith("penstock model promote var/dev/shop/plan.json 1.2.0")


def test_a_newer_version_that_another_pipeline_trained_is_passed_over(tmp_path: Path) -> None:
    registry = ModelRegistry(str(tmp_path / "models"))
    other = plan().model_copy(update={"service": plan().service.model_copy(update={"hash": "another"})})
    files = {"model.onnx": linear().SerializeToString()}
    for version, of in (("1.9.0", plan()), ("1.10.0", plan()), ("1.11.0-rc.1", plan()), ("2.0.0", other)):
        registry.register(Manifest.of(of, version, files, metrics={}), files)
    assert registry.latest("shop_model", plan().service.hash) == "1.10.0"
    assert registry.latest("shop_model", other.service.hash) == "2.0.0"


def test_the_training_beside_the_pipeline_is_named_where_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, files in {"trained_shop": ["__init__.py", "train.py"], "bare_shop": ["__init__.py"]}.items():
        (tmp_path / name).mkdir()
        for file in files:
            (tmp_path / name / file).write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    assert train_command("trained_shop.pipeline:pipeline") == "penstock model train trained_shop.pipeline:pipeline"
    assert train_command("bare_shop.pipeline:pipeline") == "penstock model register FOLDER"
