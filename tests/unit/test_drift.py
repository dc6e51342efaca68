"""The numbers of drift against scipy, and what an alarm needs."""

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon

from penstock.profiles.drift import (
    SMOOTHING,
    benjamini_hochberg,
    chi2_tail,
    g_test,
    js_distance,
    psi,
    rate_test,
)
from penstock.profiles.ranking import auc, auc_of_counts, resolution_of_counts

counts = st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 5000)), min_size=2, max_size=40).filter(
    lambda bins: any(a for a, _ in bins) and any(b for _, b in bins)
)


@given(counts)
def test_psi_is_the_sum_of_both_relative_entropies(bins: list[tuple[int, int]]) -> None:
    table = np.array([bin_ for bin_ in bins if any(bin_)], float) + SMOOTHING
    p, q = (table / table.sum(axis=0)).T
    expected = scipy.stats.entropy(p, q) + scipy.stats.entropy(q, p)
    assert psi(*zip(*bins, strict=True)) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@given(counts)
def test_js_distance_is_scipys(bins: list[tuple[int, int]]) -> None:
    p, q = (np.array(side, float) for side in zip(*bins, strict=True))
    expected = np.sqrt(max(0.0, np.nan_to_num(jensenshannon(p, q, base=2)) ** 2))
    assert js_distance(p, q) == pytest.approx(expected, abs=1e-7)


@given(counts)
def test_the_g_test_is_scipys(bins: list[tuple[int, int]]) -> None:
    table = np.array([bin_ for bin_ in bins if any(bin_)]).T
    expected = 1.0
    if table.shape[1] > 1:
        expected = scipy.stats.chi2_contingency(table, correction=False, lambda_="log-likelihood").pvalue
    assert g_test(*zip(*bins, strict=True)) == pytest.approx(expected, rel=1e-8, abs=1e-12)


@given(st.floats(0, 5000), st.integers(1, 500))
def test_the_chi_squared_tail_is_scipys(x: float, freedom: int) -> None:
    assert chi2_tail(x, freedom) == pytest.approx(scipy.stats.chi2.sf(x, freedom), rel=1e-9, abs=1e-13)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_the_correction_is_scipys(p_values: list[float]) -> None:
    np.testing.assert_allclose(benjamini_hochberg(p_values), scipy.stats.false_discovery_control(p_values))


def test_shares_are_compared_as_a_two_by_two_table() -> None:
    expected = scipy.stats.chi2_contingency([[5, 95], [30, 270]], correction=False, lambda_="log-likelihood").pvalue
    assert rate_test((5, 100), (30, 300)) == pytest.approx(expected)
    assert rate_test((0, 100), (0, 300)) == 1.0
    assert rate_test((0, 0), (3, 300)) == 1.0


def test_counts_cut_at_different_edges_are_refused() -> None:
    with pytest.raises(ValueError, match="different edges"):
        psi([1, 2], [1, 2, 3])


def test_nothing_to_compare_is_no_drift() -> None:
    assert (psi([0, 0], [3, 4]), js_distance([3, 4], [0, 0]), g_test([0, 0], [3, 4])) == (0.0, 0.0, 1.0)


def test_a_shift_of_a_fifth_of_a_deviation_is_found_at_a_thousand_rows_and_not_without_it() -> None:
    rng = np.random.default_rng(7)
    reference = rng.normal(size=20_000)
    edges = np.quantile(reference, np.arange(1, 16) / 16)

    def p_values(shift: float) -> list[float]:
        cut = lambda x: np.bincount(np.searchsorted(edges, x, side="right"), minlength=16)  # noqa: E731
        return [g_test(cut(reference), cut(rng.normal(shift, 1, 1000))) for _ in range(200)]

    assert np.mean(np.array(p_values(0.2)) < 0.05) > 0.85
    assert np.mean(np.array(p_values(0.0)) < 0.05) < 0.1


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=200))
def test_the_area_from_a_thousand_bins_is_within_its_stated_resolution(rows: list[tuple[float, bool]]) -> None:
    scores, labels = np.array([s for s, _ in rows]), np.array([float(y) for _, y in rows])
    bins = np.minimum((scores * 1000).astype(int), 999)
    positives = np.bincount(bins[labels == 1], minlength=1000)
    negatives = np.bincount(bins[labels == 0], minlength=1000)
    exact, binned = auc(scores, labels), auc_of_counts(positives, negatives)
    if exact is None:
        assert binned is None
    else:
        assert binned is not None
        assert abs(exact - binned) <= resolution_of_counts(positives, negatives) + 1e-12
