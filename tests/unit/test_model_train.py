"""`penstock model train`: the version, and one line and exit status 1 where the reason why there is none is known."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.onnx_models import plan

TRAIN = [sys.executable, "-m", "penstock", "model", "train"]
DAMAGED_MODEL = """
from penstock.models.registry import ModelRegistry
def train(models_url, plan, progress):
    return ModelRegistry(models_url).manifest("m", "1.0.0")[0].version
"""
DAMAGED_DATA = """
from pathlib import Path
from pipelines.flights import data
def train(models_url, plan, progress):
    return str(data.load(Path("data")))
"""


@pytest.mark.parametrize(
    ("train", "said", "mend"),
    [
        (
            DAMAGED_MODEL,
            "models/m/1.0.0/manifest.json: content: Invalid JSON: EOF while parsing",
            "Restore the file, or move its folder away and register the version again",
        ),
        (
            DAMAGED_DATA,
            "data/departures-v1.parquet cannot be read: ",
            "Delete data/departures-v1.parquet, and it is made anew",
        ),
    ],
)
def test_damaged_files_are_a_line_with_the_mend(train: str, said: str, mend: str, tmp_path: Path) -> None:
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop/train.py").write_text(train)
    (tmp_path / "models/m/1.0.0").mkdir(parents=True)
    (tmp_path / "models/m/1.0.0/manifest.json").write_text("{")
    (tmp_path / "data").mkdir()
    for name in ("departures", "landings"):
        (tmp_path / f"data/{name}-v1.parquet").write_bytes(b"what a disk may bring")
    plan().save(tmp_path / "plan.json")
    step = [*TRAIN, "shop.pipeline:pipeline", "--plan=plan.json", "--registry=models"]
    done = subprocess.run(step, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1), done.stderr
    assert done.stderr.startswith(f"penstock: {said}")
    assert done.stderr.endswith(f". {mend}\n")


GOOD = """
def train(models_url, plan, progress):
    progress("some rows")
    return "1.2.3"
"""


@pytest.mark.parametrize(
    ("pipeline", "code", "out", "err"),
    [
        ("shop.pipeline:pipeline", 0, {"name": "shop_model", "version": "1.2.3"}, "some rows\n"),
        ("bare.pipeline:pipeline", 1, "bare has no train.py. ", ""),
        ("nowhere.pipeline:pipeline", 1, "nowhere has no train.py. ", ""),
        ("pipeline:pipeline", 1, "pipeline:pipeline has no train.py. ", ""),
    ],
)
def test_json_is_the_version_or_the_error_and_progress_is_elsewhere(
    pipeline: str, code: int, out: dict[str, str] | str, err: str, tmp_path: Path
) -> None:
    for name in ("shop", "bare"):
        (tmp_path / name).mkdir()
    (tmp_path / "shop/train.py").write_text(GOOD)
    plan().save(tmp_path / "plan.json")
    command = [*TRAIN, pipeline, "--plan=plan.json", "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (code, err)
    told = json.loads(done.stdout)
    assert told == out if isinstance(out, dict) else told["error"].startswith(out)
