"""Features to predictions, a batch at a time: one matrix, one run of the model, one prediction for every row that
got a score.

A model that raises is asked again about halves until the guilty rows stand alone. A row without a usable score gets
the declared fallback or becomes a dead letter, so no model can stop a partition.
"""

import logging

import numpy as np
import numpy.typing as npt

from penstock.plan import Plan, PlanError
from penstock.records import Batch, Output, Reason, Result
from penstock.stage import Stage
from penstock.telemetry import MODEL_FAILURES, PREDICTIONS
from penstock_inference.answers import CHAMPION, FALLBACK, Answers
from penstock_inference.loaded import LoadedModel
from penstock_inference.session import Floats, ModelFailed, NoScores, Scores

log = logging.getLogger(__name__)

NO_SCORE = "model gave no score"
FAILED = "model failed"
ROUNDING = 1e-6
"""How far a probability may lie outside [0, 1] and still be taken as float32's rounding."""


class InferenceStage(Stage):
    """Predicts with the champion that was last handed in with ``use``.

    Scores of one row differ between batch sizes by the rounding of float32 sums (about 1e-6): ONNX Runtime picks its
    kernels by shape.
    """

    def __init__(self, plan: Plan) -> None:
        if plan.model is None:
            raise PlanError(f"pipeline {plan.pipeline!r} has no model. Add model=Model(name=…) to its pipeline.py")
        self._model = plan.model
        self._predictions = f"{plan.pipeline}.predictions"
        self._outcomes = None if plan.label is None else f"{plan.pipeline}.outcomes"
        self._baseline = plan.monitors.baseline
        self._champion: LoadedModel | None = None
        self._answers: Answers | None = None
        self._told: set[str] = set()

    def use(self, champion: LoadedModel | None, control_offset: int) -> None:
        """``champion`` serves from the next batch on, by the control message at ``control_offset`` (-1: none)."""
        self._champion = champion
        self._answers = None
        self._told.clear()
        if champion is not None:
            threshold = champion.threshold if self._model.task == "binary" else None
            self._answers = Answers(champion.manifest, champion.digest, control_offset, threshold)

    @property
    def serving(self) -> str | None:
        """The champion's version."""
        return None if self._champion is None else self._champion.manifest.version

    def process(self, batch: Batch) -> Result:
        if self._champion is None or self._answers is None:
            raise RuntimeError(
                f"no champion of model {self._model.name!r} is loaded: promote one before rows are processed"
            )
        features = self._champion.matrix.fill(batch.rows)
        scores = np.full(len(batch), np.nan)
        reasons: dict[int, Reason] = {}
        self._score(features, 0, scores, reasons)
        usable = self._usable(scores)
        if usable.all():
            return Result(self._outputs(batch, scores, None, None))
        return self._mended(batch, scores, usable, reasons)

    def _score(self, features: Floats, at: int, scores: Scores, reasons: dict[int, Reason]) -> None:
        """Fills ``scores`` from row ``at`` on; rows that the model cannot do stay NaN and have a reason."""
        assert self._champion is not None
        n = len(features)
        try:
            scores[at : at + n] = self._champion.session.score(features)
        except NoScores as error:
            reasons |= dict.fromkeys(range(at, at + n), self._reason(NO_SCORE, str(error)))
        except ModelFailed as error:
            if n == 1:
                reasons[at] = self._reason(FAILED, str(error))
                return
            middle = n // 2
            self._score(features[:middle], at, scores, reasons)
            self._score(features[middle:], at + middle, scores, reasons)

    def _usable(self, scores: Scores) -> npt.NDArray[np.bool_]:
        """bool[n]; scores of a binary model are clipped to [0, 1] where only rounding put them outside."""
        if self._model.task == "regression":
            return np.isfinite(scores)
        usable: npt.NDArray[np.bool_] = (scores >= -ROUNDING) & (scores <= 1 + ROUNDING)
        np.clip(scores, 0.0, 1.0, out=scores)
        return usable

    def _mended(
        self, batch: Batch, scores: Scores, usable: npt.NDArray[np.bool_], reasons: dict[int, Reason]
    ) -> Result:
        bad = np.flatnonzero(~usable)
        odd = self._reason(
            NO_SCORE, "the score is NaN, infinite" + (" or outside [0, 1]" if self._model.task == "binary" else "")
        )
        for row in bad.tolist():
            reasons.setdefault(row, odd)
        self._count(reasons)
        if self._model.fallback is None:
            return Result(
                self._outputs(batch, scores, np.flatnonzero(usable), None), rejects=dict(sorted(reasons.items()))
            )
        scores[bad] = self._model.fallback
        return Result(self._outputs(batch, scores, None, ~usable))

    def _outputs(
        self,
        batch: Batch,
        scores: Scores,
        rows: npt.NDArray[np.intp] | None,
        fallback: npt.NDArray[np.bool_] | None,
    ) -> list[Output]:
        assert self._answers is not None
        if rows is not None:
            batch, scores = batch.take(rows), scores[rows]
        source = np.arange(len(batch), dtype=np.int32) if rows is None else rows.astype(np.int32)
        if not len(source):
            return []
        answers = self._answers
        predictions = answers.predictions(batch, scores, fallback)
        served = 0 if fallback is None else int(fallback.sum())
        for name, count in ((CHAMPION, len(source) - served), (FALLBACK, served)):
            if count:
                PREDICTIONS.labels(answers.model, answers.version, name).inc(count)
        outputs = [Output(self._predictions, batch.keys, predictions, source)]
        if self._outcomes is not None:
            keys, facts, at = answers.outcomes(batch, predictions, self._baseline)
            if len(at):
                outputs.append(Output(self._outcomes, keys, facts, source[at]))
        return outputs

    def _reason(self, kind: str, message: str) -> Reason:
        assert self._champion is not None
        return Reason(
            kind,
            f"model {self._champion.manifest.label}: {message}. Promote another version, or declare Model.fallback",
            {"model": self._champion.manifest.label},
        )

    def _count(self, reasons: dict[int, Reason]) -> None:
        assert self._champion is not None
        manifest = self._champion.manifest
        for kind in (NO_SCORE, FAILED):
            found = [reason for reason in reasons.values() if reason.kind == kind]
            if not found:
                continue
            MODEL_FAILURES.labels(manifest.name, manifest.version, kind).inc(len(found))
            if kind not in self._told:
                self._told.add(kind)
                log.warning("%d rows of a batch: %s (from now on only counted)", len(found), found[0].message)
