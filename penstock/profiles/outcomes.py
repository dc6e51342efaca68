"""What became of predictions whose label arrived, in counts that can be added: accuracy, and the histograms of both
classes from which any window's AUC is read, for the model's scores (1000 bins of [0, 1]) and for the baseline's
values (the reference's quantiles).
"""

import numpy as np
import numpy.typing as npt

from penstock.profiles.binning import Floats
from penstock.profiles.panes import Panes
from penstock.profiles.rows import OUTCOME, SCORE_BINS, Counts, ProfileRow

Int64s = npt.NDArray[np.int64]


class OutcomePartials:
    """Partial profiles of the outcomes of one model version, by the pane of the prediction.

    ``binary``: labels are 1 or 0; otherwise only the error, score - truth, is profiled. ``baseline_edges``: empty
    without a reference.
    """

    def __init__(
        self,
        pane_ms: int,
        window_ms: int,
        model: str,
        version: str,
        binary: bool,
        reference: str = "",
        baseline_edges: Floats | None = None,
    ) -> None:
        self.panes = Panes(pane_ms, window_ms)
        self._model, self._version, self._binary = model, version, binary
        self._edges = np.empty(0) if baseline_edges is None else baseline_edges
        self._reference = reference if len(self._edges) else ""
        self._sums = self._no_sums()

    def add(self, times: Int64s, score: Floats, predicted: Int64s, truth: Floats, baseline: Floats) -> None:
        """Count pairs. ``times``: of the predictions; ``predicted``: 1, 0, or -1 for none; a NaN ``truth`` is a null
        label, counted as a row but in no class.
        """
        slots, sums = self._slots(times), self._sums
        sums.rows += np.bincount(slots, minlength=len(sums.rows))
        known = ~np.isnan(truth)
        sums.nulls += np.bincount(slots[~known], minlength=len(sums.rows))
        slots, predicted = slots[known], predicted[known]
        score, truth, baseline = score[known], truth[known], baseline[known]
        error = score - truth
        sums.add_errors(slots[np.isfinite(error)], error[np.isfinite(error)])
        if not self._binary:
            return
        positive = truth >= 0.5
        sums.correct += np.bincount(slots[predicted == positive], minlength=len(sums.rows))
        ranked = ~np.isnan(score)
        place = np.clip(score[ranked] * SCORE_BINS, 0, SCORE_BINS - 1).astype(np.int64)
        _count(sums.scores, slots[ranked], positive[ranked], place)
        if len(self._edges):
            ranked = ~np.isnan(baseline)
            place = np.searchsorted(self._edges, baseline[ranked], side="right")
            _count(sums.baseline, slots[ranked], positive[ranked], place)

    def add_expired(self, times: Int64s, labels: bool) -> None:
        """Count predictions (or ``labels``) that met nothing, at ``times`` of their own."""
        slots = self._slots(times)
        counts = self._sums.expired[:, int(labels)]
        counts += np.bincount(slots, minlength=len(counts))

    def drain(self) -> list[ProfileRow]:
        """The partial profiles since the last call, one per window, and start anew."""
        sums = self._sums
        drained = [
            ProfileRow(
                OUTCOME,
                "outcome",
                pane,
                end - pane,
                self._model,
                self._version,
                self._reference,
                rows=int(sums.rows[slot]),
                nulls=int(sums.nulls[slot]),
                n=int(sums.n[slot]),
                mean=float(sums.mean[slot]),
                m2=float(sums.m2[slot]),
                correct=int(sums.correct[slot]),
                negatives=sums.scores[slot, 0],
                positives=sums.scores[slot, 1],
                baseline_negatives=sums.baseline[slot, 0],
                baseline_positives=sums.baseline[slot, 1],
                expired_predictions=int(sums.expired[slot, 0]),
                expired_labels=int(sums.expired[slot, 1]),
            )
            for slot, (pane, end) in enumerate(self.panes.spans)
        ]
        self.panes.clear()
        self._sums = self._no_sums()
        return drained

    def _no_sums(self) -> "_Sums":
        return _Sums(
            0, SCORE_BINS if self._binary else 0, len(self._edges) + 1 if self._binary and len(self._edges) else 0
        )

    def _slots(self, times: Int64s) -> Int64s:
        slots = self.panes.slots(times)
        if len(self.panes) > len(self._sums.rows):
            self._sums = self._sums.grown(max(len(self.panes), 2 * len(self._sums.rows)))
        return slots


class _Sums:
    """Accumulators over slots; ``scores`` and ``baseline``: int64[s, 2, bins], of negatives and of positives."""

    def __init__(self, slots: int, bins: int, baseline: int) -> None:
        self.rows: Counts = np.zeros(slots, np.int64)
        self.nulls: Counts = np.zeros(slots, np.int64)
        self.correct: Counts = np.zeros(slots, np.int64)
        self.expired: Counts = np.zeros((slots, 2), np.int64)
        self.scores: Counts = np.zeros((slots, 2, bins), np.int64)
        self.baseline: Counts = np.zeros((slots, 2, baseline), np.int64)
        self.n: Counts = np.zeros(slots, np.int64)
        self.mean: Floats = np.zeros(slots)
        self.m2: Floats = np.zeros(slots)

    def grown(self, slots: int) -> "_Sums":
        bigger = _Sums(slots, self.scores.shape[2], self.baseline.shape[2])
        for name, sums in vars(self).items():
            getattr(bigger, name)[: len(sums)] = sums
        return bigger

    def add_errors(self, slots: Int64s, errors: Floats) -> None:
        """Moments, merged by Chan, Golub and LeVeque 1979."""
        size = len(self.n)
        n = np.bincount(slots, minlength=size)
        center = np.bincount(slots, errors, size) / np.maximum(n, 1)
        squares = np.bincount(slots, (errors - center[slots]) ** 2, size)
        delta = np.where(n > 0, center - self.mean, 0.0)
        share = n / np.maximum(self.n + n, 1)
        self.mean += delta * share
        self.m2 += squares + delta**2 * self.n * share
        self.n += n


def _count(counts: Counts, slots: Int64s, positive: npt.NDArray[np.bool_], place: Int64s) -> None:
    """Add ones to ``counts``: int64[s, 2, bins]."""
    flat = (slots * 2 + positive) * counts.shape[2] + place
    np.add.at(counts.reshape(-1), flat, 1)
