"""Predictions that were made again: those of the model's files pass, in batches of any size, and each that is not what
the model says, or names another one, is found.
"""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.chaos import scores as module
from tests.chaos.scores import TOLERANCE, Scores
from tests.chaos.test_carried import MODEL, Whole, judged, log, models, score_of

__all__ = ["log", "models"]  # fixtures


def harmed(**changes: Any) -> Callable[[Whole], object]:
    """The second prediction and its outcome say something else, so that only the score can tell."""

    def do(log: Whole) -> None:
        log.change("predictions", 1, **changes)
        shared = {name: value for name, value in changes.items() if name != "digest"}
        log.change("outcomes", 1, **shared)

    return do


def said(score: float) -> dict[str, Any]:
    return {"score": score, "label": "1" if score >= 0.5 else "0", "confidence": max(score, 1 - score)}


SCORE = score_of(30.0, "b", -0.7)
assert SCORE is not None
assert SCORE > 0.5 + 1e-3
HARM = {
    "another score": harmed(**said(SCORE + 1e-5)),
    "no number": lambda log: log.change("predictions", 1, **said(float("nan"))),
    "a score beside its confidence": harmed(score=SCORE + TOLERANCE / 10),
    "another label": harmed(label="0"),
    "no label": harmed(label=None),
    "another confidence": harmed(confidence=SCORE - 1e-9),
    "another model": harmed(model="n"),
    "a version that is not there": harmed(version="1.0.1"),
    "a version that is a way out": harmed(version="../m/1.0.0"),
    "another digest": harmed(digest="0" * 64),
    "served by nobody that is known": harmed(served_by="somebody"),
    "the fallback, though the model has a score": harmed(**said(0.25), served_by="fallback"),
    "another value than the fallback's": lambda log: [
        log.change(suffix, 3, **said(0.3)) for suffix in ("predictions", "outcomes")
    ],
    "a champion's score that the model does not have": lambda log: [
        log.change(suffix, 3, served_by="champion") for suffix in ("predictions", "outcomes")
    ],
    "features that were changed before they were served": lambda log: log.change("features", 1, twice=-0.69),
    "features that were served as another shop's": lambda log: log.change("features", 1, twice=None),
}  # fmt: skip


@pytest.mark.parametrize("harm", HARM)
def test_a_prediction_that_is_not_the_models_is_found(harm: str, log: Whole, models: Path) -> None:
    HARM[harm](log)
    assert judged(log, models).findings.keys() - {"altered"} == {"wrong score"}


def test_rounding_is_no_finding(log: Whole, models: Path) -> None:
    harmed(**said(SCORE + TOLERANCE / 3))(log)
    assert judged(log, models).findings == {}


@pytest.mark.parametrize("file", ["model.onnx", "manifest.json"])
@pytest.mark.parametrize("harm", [lambda f: f.write_bytes(f.read_bytes() + b" "), Path.unlink])
def test_files_that_are_not_those_of_the_digest_are_found(
    file: str, harm: Callable[[Path], object], log: Whole, models: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(models, tmp_path / "models")
    harm(copy / "m" / "1.0.0" / file)
    assert judged(log, copy).findings == {"wrong score": 4}


def test_a_manifest_of_another_version_is_found(log: Whole, models: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(models, tmp_path / "models")
    manifest = copy / "m/1.0.0/manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"version": "2.0.0"}))
    for place in range(4):
        log.change("predictions", place, digest=hashlib.sha256(manifest.read_bytes()).hexdigest())
    assert judged(log, copy).findings == {"wrong score": 4}


def test_without_the_models_no_score_is_judged(log: Whole) -> None:
    harmed(**said(SCORE + 0.1))(log)
    verdict = judged(log, None)
    assert verdict.ok
    assert "scores" not in verdict.counts


@pytest.mark.parametrize("batch", [1, 2, 7, 4096])
def test_batches_of_any_size_say_the_same(batch: int, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH", batch)
    found: list[str] = []
    scores = Scores(models, MODEL, lambda kind, what: found.append(what))
    digest = hashlib.sha256((models / "m/1.0.0/manifest.json").read_bytes()).hexdigest()
    shops = ["a", "b", None, "c"]
    rows = [{"amount": 10.0 * n - 100, "shop": shops[n % 4], "twice": None if n % 5 == 0 else 0.1} for n in range(40)]
    for place, row in enumerate(rows):
        scores.featured((0, place), row)
    for place, row in reversed(list(enumerate(rows))):
        score = score_of(row["amount"], row["shop"], row["twice"])  # type: ignore[arg-type]
        served = {"served_by": "fallback", **said(0.25)} if score is None else {"served_by": "champion", **said(score)}
        scores.predicted(str(place), {"model": "m", "version": "1.0.0", "digest": digest, **served}, (0, place))
    scores.judge()
    assert found == []
    assert (scores.checked, scores.fallbacks) == (16, 24)


def test_a_regression_has_neither_label_nor_confidence(models: Path) -> None:
    found: list[str] = []
    number = module.Model("m", "regression", 0.5, None, MODEL.columns, MODEL.texts)
    scores = Scores(models, number, lambda kind, what: found.append(what))
    digest = hashlib.sha256((models / "m/1.0.0/manifest.json").read_bytes()).hexdigest()
    names = {"model": "m", "version": "1.0.0", "digest": digest, "served_by": "champion", "score": SCORE}
    scores.featured((0, 0), {"amount": 30.0, "shop": "b", "twice": -0.7})
    scores.predicted("good", names | {"label": None, "confidence": None}, (0, 0))
    scores.predicted("bad", names | {"label": "1", "confidence": None}, (0, 0))
    scores.judge()
    assert len(found) == 1
    assert found[0].startswith("bad")
