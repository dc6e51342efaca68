"""How far a window lies from the reference, and whether that can be chance.

A distance alone alarms on small samples and sleeps on large ones, a p-value alone does the opposite. So a finding
needs three things at once: enough rows, a distance over its floor, and a p-value that holds after the correction for
the number of features looked at. (The second tier, sequential detectors within a window, is not built yet.)
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

SMOOTHING = 0.5
"""Added to every bin on both sides before PSI (Jeffreys' prior), which is infinite where one side is empty."""

Numbers = npt.NDArray[np.float64]


def psi(reference: npt.ArrayLike, window: npt.ArrayLike) -> float:
    """Population stability index of two vectors of counts: the sum of (p - q) ln(p / q), both smoothed by
    ``SMOOTHING``.

    Bins that are empty on both sides are left out. 0 when either side has no rows.
    """
    expected, actual = _both(reference, window)
    if not expected.sum() or not actual.sum():
        return 0.0
    p, q = _shares(expected + SMOOTHING), _shares(actual + SMOOTHING)
    return float(((p - q) * np.log(p / q)).sum())


def js_distance(reference: npt.ArrayLike, window: npt.ArrayLike) -> float:
    """Jensen-Shannon distance (root of the divergence, base 2, so 0 to 1) of two vectors of counts, not smoothed.

    0 when either side has no rows.
    """
    expected, actual = _both(reference, window)
    if not expected.sum() or not actual.sum():
        return 0.0
    p, q = _shares(expected), _shares(actual)
    middle = (p + q) / 2
    divergence = (_entropy(middle) - (_entropy(p) + _entropy(q)) / 2) / math.log(2)
    return math.sqrt(max(divergence, 0.0))


def g_test(reference: npt.ArrayLike, window: npt.ArrayLike) -> float:
    """p-value of "both vectors of counts are samples of one distribution" (G-test of homogeneity, Woolf 1957).

    The reference is a sample too, so a small one is not believed more than it deserves. 1 when there is nothing to
    compare.
    """
    table = np.stack(_both(reference, window))
    rows, columns, total = table.sum(axis=1), table.sum(axis=0), float(table.sum())
    if table.shape[1] < 2 or not rows.all():
        return 1.0
    expected = rows[:, None] * columns[None, :] / total
    seen = table > 0
    statistic = 2 * float((table[seen] * np.log(table[seen] / expected[seen])).sum())
    return chi2_tail(max(statistic, 0.0), table.shape[1] - 1)


def rate_test(reference: tuple[int, int], window: tuple[int, int]) -> float:
    """p-value of "both shares are the same": (how many, of how many) each; the G-test of a 2 x 2 table."""
    return g_test(*((count, total - count) for count, total in (reference, window)))


def benjamini_hochberg(p_values: Sequence[float]) -> Numbers:
    """p-values corrected for having looked at all of them (Benjamini and Hochberg 1995): float64[n], in the order
    given.

    Alarming where the result is below 0.05 keeps the share of false alarms among the alarms below 0.05.
    """
    p = np.asarray(p_values, np.float64)
    order = np.argsort(-p, kind="stable")
    scaled = p[order] * len(p) / np.arange(len(p), 0, -1)
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(np.minimum.accumulate(scaled), 1.0)
    return corrected


def chi2_tail(x: float, freedom: int) -> float:
    """P(chi-squared with ``freedom`` degrees > x): the upper incomplete gamma function, by its series below the mean
    and by its continued fraction above (Press et al., Numerical Recipes 6.2; Lentz's method). Relative error about
    1e-13.
    """
    if x < 1e-300:
        return 1.0
    a, z = freedom / 2, x / 2
    front = math.exp(a * math.log(z) - z - math.lgamma(a))
    if z < a + 1:
        term = total = 1 / a
        k = a
        while term > total * 1e-16:
            k += 1
            term *= z / k
            total += term
        return max(0.0, 1 - front * total)
    b = z + 1 - a
    c, d = math.inf, 1 / b
    fraction = d
    for i in range(1, 10_000):
        numerator = i * (a - i)
        b += 2
        d = 1 / (numerator * d + b)
        c = b + numerator / c
        fraction *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return front * fraction


def _both(reference: npt.ArrayLike, window: npt.ArrayLike) -> tuple[Numbers, Numbers]:
    """Both as float64, less the bins that are empty on both sides."""
    expected, actual = np.asarray(reference, np.float64), np.asarray(window, np.float64)
    if expected.shape != actual.shape:
        raise ValueError(f"counts of {expected.shape} and {actual.shape} bins: they were cut at different edges")
    used = (expected > 0) | (actual > 0)
    return expected[used], actual[used]


def _shares(counts: Numbers) -> Numbers:
    shares: Numbers = counts / counts.sum()
    return shares


def _entropy(p: Numbers) -> float:
    positive = p[p > 0]
    return -float((positive * np.log(positive)).sum())
