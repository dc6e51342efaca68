"""Predictions made again: ONNX Runtime on the CPU, from the files of the version that a prediction names and the row of
NAME.features that it is of, thousands of rows at a time.

A score may differ from the stage's by ``TOLERANCE``, for ONNX Runtime sums in another order in batches of another size
(by 2e-7 with the flights' model). Label and confidence follow exactly from the score that was sent.
"""

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnxruntime

from tests.chaos.carried import Row, picking
from tests.chaos.declared import Model
from tests.chaos.records import Find, Place

TOLERANCE = 1e-6
"""Of a score up to 1; of a larger one its millionth."""
BATCH = 4096
CHAMPION, FALLBACK = "champion", "fallback"
PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
Numbers = npt.NDArray[np.float64]


class Answer(NamedTuple):
    """What a prediction says; ``where`` it lies."""

    where: str
    origin: Place
    served_by: str
    score: float
    label: str | None
    confidence: float | None


@dataclass(frozen=True)
class Version:
    """A version of a model, read from its folder as plain files. ``codes``: values of text columns, by column."""

    columns: tuple[str, ...]
    codes: dict[str, list[str]]
    threshold: float | None
    run: Callable[[npt.NDArray[np.float32]], Numbers]

    @staticmethod
    def read(folder: Path, name: str, version: str, digest: str) -> "Version":
        """Raises ValueError where the files are not those of the digest."""
        if not (PLAIN.fullmatch(name) and PLAIN.fullmatch(version)):
            raise ValueError("which is no name of a folder")
        try:
            manifest = (folder / name / version / "manifest.json").read_bytes()
            said = json.loads(manifest)
            if hashlib.sha256(manifest).hexdigest() != digest:
                raise ValueError(f"whose manifest has not the digest {digest}")
            if (said["name"], said["version"]) != (name, version):
                raise ValueError(f"whose manifest is of {said['name']} {said['version']}")
            for file, facts in said["files"].items():
                if hashlib.sha256((folder / name / version / file).read_bytes()).hexdigest() != facts["sha256"]:
                    raise ValueError(f"whose {file} is not that of its manifest")
        except OSError as error:
            raise ValueError(f"of which {error.filename} cannot be read") from None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 4
        path = str(folder / name / version / "model.onnx")
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        given, asked, column = said["input"], said["output"]["name"], said["output"]["column"] or 0

        def run(features: npt.NDArray[np.float32]) -> Numbers:
            scores = np.asarray(session.run([asked], {given["name"]: features})[0], np.float64)
            return scores if scores.ndim == 1 else scores[:, column]

        return Version(tuple(given["columns"]), given["codes"], said["threshold"], run)


class Scores:
    """Takes NAME.features, then NAME.predictions, and judges at the end. ``checked``: scores that were held against the
    model's; ``fallbacks``: those that had to be the declared fallback, where the model has no score."""

    def __init__(self, models: Path, model: Model, find: Find) -> None:
        self._models, self._model, self._find = models, model, find
        self._numbers = [name for name in model.columns if name not in model.texts]
        self._texts = [name for name in model.columns if name in model.texts]
        self._take_numbers, self._take_texts = picking(tuple(self._numbers)), picking(tuple(self._texts))
        self._ids: dict[str | None, int] = {None: 0}
        self._row_of: dict[Place, int] = {}
        self._held: list[tuple[tuple[Any, ...], list[int]]] = []
        self._parts: list[tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]] = []
        self._answers: dict[tuple[str, str, str], list[Answer]] = defaultdict(list)
        self.checked = self.fallbacks = 0

    def featured(self, origin: Place, row: Row) -> None:
        """A row of NAME.features; of two of one origin, which is told elsewhere, the first counts."""
        if origin in self._row_of:
            return
        self._row_of[origin] = len(self._row_of)
        ids = self._ids
        self._held.append((self._take_numbers(row), [ids.setdefault(t, len(ids)) for t in self._take_texts(row)]))
        if len(self._held) == BATCH:
            self._put_away()

    def predicted(self, where: str, row: Row, origin: Place) -> None:
        answer = Answer(where, origin, row["served_by"], row["score"], row["label"], row["confidence"])
        if origin in self._row_of:  # a prediction of nothing is told elsewhere
            self._answers[row["model"], row["version"], row["digest"]].append(answer)

    def judge(self) -> None:
        self._put_away()
        if not self._parts:
            return
        numbers, texts = (np.concatenate(parts) for parts in zip(*self._parts, strict=True))
        for (name, number, digest), answers in self._answers.items():
            try:
                if name != self._model.name:
                    raise ValueError(f"and the plan's is {self._model.name}")
                version = Version.read(self._models, name, number, digest)
            except Exception as error:  # noqa: BLE001  # ONNX Runtime's errors have no class in common
                for answer in answers:
                    self._find("wrong score", f"{answer.where} is by model {name} {number}, {error}")
                continue
            rows = np.array([self._row_of[answer.origin] for answer in answers])
            for start in range(0, len(rows), BATCH):
                part = rows[start : start + BATCH]
                scores = self._scores(version, self._matrix(version, numbers[part], texts[part]))
                self._compare(version, answers[start : start + BATCH], scores)

    def _put_away(self) -> None:
        if self._held:
            numbers, texts = zip(*self._held, strict=True)
            with np.errstate(over="ignore"):
                self._parts.append((np.array(numbers, np.float64).astype(np.float32), np.array(texts, np.int32)))
            self._held.clear()

    def _matrix(
        self, version: Version, numbers: npt.NDArray[np.float32], texts: npt.NDArray[np.int32]
    ) -> npt.NDArray[np.float32]:
        """In the manifest's order; a text is the index among its column's codes, and NaN where it is none of them."""
        matrix = np.empty((len(numbers), len(version.columns)), np.float32)
        for place, name in enumerate(version.columns):
            if name in self._texts:
                codes = {value: float(code) for code, value in enumerate(version.codes.get(name, []))}
                table = np.array([codes.get(t, np.nan) if t is not None else np.nan for t in self._ids], np.float32)
                matrix[:, place] = table[texts[:, self._texts.index(name)]]
            else:
                matrix[:, place] = numbers[:, self._numbers.index(name)]
        return matrix

    def _scores(self, version: Version, matrix: npt.NDArray[np.float32]) -> Numbers:
        """NaN where the model has no score: it may fail over a row, and with it over the batch."""
        try:
            found = version.run(matrix)
            if found.shape == (len(matrix),):
                return found
        except Exception:  # noqa: BLE001
            pass
        if len(matrix) == 1:
            return np.array([np.nan])
        middle = len(matrix) // 2
        return np.concatenate([self._scores(version, matrix[:middle]), self._scores(version, matrix[middle:])])

    def _compare(self, version: Version, answers: list[Answer], scores: Numbers) -> None:
        binary = self._model.task == "binary"
        usable = np.isfinite(scores)
        if binary:
            usable &= (scores >= -TOLERANCE) & (scores <= 1 + TOLERANCE)
            scores = np.clip(scores, 0.0, 1.0)
        threshold = self._model.threshold if version.threshold is None else version.threshold
        said = np.array([answer.score for answer in answers])
        close = np.abs(said - scores) <= TOLERANCE * np.maximum(1.0, np.abs(scores))
        for answer, score, is_usable, is_close in zip(
            answers, scores.tolist(), usable.tolist(), close.tolist(), strict=True
        ):
            if answer.served_by == FALLBACK:
                self.fallbacks += 1
                if is_usable or answer.score != self._model.fallback:
                    self._wrong(answer, f"the fallback's {answer.score}; the model says {score}")
            elif answer.served_by != CHAMPION:
                self._wrong(answer, f"served by {answer.served_by!r}")
            else:
                self.checked += 1
                if not (is_usable and is_close):
                    self._wrong(answer, f"{answer.score}; the model says {score}")
            label = None if not binary else "1" if answer.score >= threshold else "0"
            if answer.label != label:
                self._wrong(answer, f"{answer.score} with the label {answer.label!r}")
            if answer.confidence != (max(answer.score, 1.0 - answer.score) if binary else None):
                self._wrong(answer, f"{answer.score} with the confidence {answer.confidence}")

    def _wrong(self, answer: Answer, what: str) -> None:
        self._find("wrong score", f"{answer.where} is {what}")
