"""The demo's training step: a reason that is known is one line and exit status 1."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.onnx_models import plan

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
    step = [sys.executable, "-m", "penstock.local.train_step", "shop.pipeline:pipeline", "plan.json", "models"]
    done = subprocess.run(step, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1), done.stderr
    assert done.stderr.startswith(said)
    assert done.stderr.endswith(f". {mend}\n")
