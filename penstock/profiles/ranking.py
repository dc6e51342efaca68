"""How well scores put positives above negatives: exactly, and from histograms that can be added up."""

import numpy as np
import numpy.typing as npt

from penstock.profiles.binning import Floats

Counts = npt.NDArray[np.int64]


def auc(scores: Floats, labels: Floats) -> float | None:
    """Area under the ROC curve, ties counted half (Mann-Whitney); None when a class is missing. NaNs are left out."""
    known = ~(np.isnan(scores) | np.isnan(labels))
    positive = labels[known] >= 0.5
    n_positive = int(positive.sum())
    n_negative = len(positive) - n_positive
    if not n_positive or not n_negative:
        return None
    _, place, counts = np.unique(scores[known], return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts - 1) / 2
    above = ranks[place][positive].sum() - n_positive * (n_positive + 1) / 2
    return float(above / (n_positive * n_negative))


def auc_of_counts(positives: Counts, negatives: Counts) -> float | None:
    """Area under the ROC curve of scores known only by bin; None when a class is missing.

    ``positives``, ``negatives``: int64[b], counts per ascending bin. Pairs within one bin count half, as ties do, so
    that the result is off by at most ``resolution_of_counts``.
    """
    pairs = float(positives.sum()) * float(negatives.sum())
    if not pairs:
        return None
    below = np.cumsum(negatives) - negatives
    return float((positives * (below + negatives / 2)).sum() / pairs)


def resolution_of_counts(positives: Counts, negatives: Counts) -> float:
    """The largest error of ``auc_of_counts``: half the share of pairs that lie in one bin."""
    pairs = float(positives.sum()) * float(negatives.sum())
    return float((positives.astype(np.float64) * negatives).sum() / 2 / pairs) if pairs else 0.0


def auc_error(area: float, positives: int, negatives: int) -> float:
    """Standard error of an area under the curve (Hanley and McNeil 1982)."""
    q1, q2 = area / (2 - area), 2 * area * area / (1 + area)
    variance = area * (1 - area) + (positives - 1) * (q1 - area**2) + (negatives - 1) * (q2 - area**2)
    return float(np.sqrt(max(variance, 0.0) / max(positives * negatives, 1)))
