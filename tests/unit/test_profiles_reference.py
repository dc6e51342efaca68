"""The reference profile: bins that hold their share, and that survive ties, constants and few distinct values."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from penstock.profiles.binning import quantile_edges
from penstock.profiles.ranking import auc
from penstock.profiles.reference import ProfileError, ReferenceProfile, profile_column

values = hnp.arrays(
    np.float64,
    st.integers(1, 300),
    elements=st.one_of(st.floats(-1e300, 1e300), st.integers(-3, 3).map(float)),
)


def test_a_continuous_column_gets_sixteen_bins_of_equal_share() -> None:
    column = profile_column(pa.array(np.random.default_rng(1).normal(size=16_000)))
    assert len(column.counts) == 16
    assert np.abs(np.asarray(column.counts) - 1000).max() <= 1


def test_a_constant_that_grows_or_shrinks_leaves_its_bin() -> None:
    edges = quantile_edges(np.full(100, 7.0), 16)
    assert [np.searchsorted(edges, x, side="right") for x in (6.9, 7.0, 7.1)] == [0, 1, 2]


def test_few_distinct_values_each_have_a_bin_of_their_own() -> None:
    column = profile_column(pa.array([1, 1, 1, 2, 5, 5]))
    assert column.counts == (0, 3, 1, 2, 0)


def test_a_heavy_tie_does_not_make_an_edge_twice() -> None:
    column = profile_column(pa.array(np.concatenate([np.zeros(900), np.arange(1.0, 101.0)])))
    assert list(column.edges) == sorted(set(column.edges))
    assert sum(column.counts) == 1000


@given(values)
def test_edges_ascend_and_every_value_is_in_a_bin(x: np.ndarray) -> None:
    edges = quantile_edges(x, 16)
    assert np.all(np.diff(edges) > 0)
    assert len(edges) <= 17
    column = profile_column(pa.array(x))
    assert sum(column.counts) == len(x) - column.nulls


def test_nulls_and_nan_are_the_same_and_infinities_are_in_the_outer_bins() -> None:
    column = profile_column(pa.array([1.0, None, float("nan"), float("inf"), 2.0, float("-inf")]))
    assert (column.n, column.nulls, column.null_rate) == (6, 2, 2 / 6)
    assert column.counts[0] == column.counts[-1] == 1
    assert column.moments is not None
    assert (column.moments.n, column.moments.min, column.moments.max) == (2, 1.0, 2.0)


def test_a_column_of_nulls_has_no_edges_and_no_moments() -> None:
    column = profile_column(pa.array([None, None], pa.float64()))
    assert (column.edges, column.counts, column.moments, column.null_rate) == ((), (0,), None, 1.0)


def test_categories_beyond_the_hundred_most_frequent_are_the_rest_but_not_unseen() -> None:
    names = [f"c{i:03}" for i in range(120) for _ in range(200 - i)] + [None]
    column = profile_column(pa.array(names))
    assert column.categories[:2] == ("c000", "c001")
    assert len(column.categories) == 100
    assert column.rest == tuple(f"c{i:03}" for i in range(100, 120))
    assert column.counts[-1] == sum(200 - i for i in range(100, 120))
    assert column.nulls == 1
    assert column.complete


def test_a_boolean_has_two_bins() -> None:
    column = profile_column(pa.array([True, False, True, None]))
    assert (column.kind, column.counts, column.nulls) == ("boolean", (1, 2), 1)


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]), st.booleans()), min_size=1, max_size=60))
def test_the_area_under_the_curve_is_the_share_of_pairs_in_order(rows: list[tuple[float, bool]]) -> None:
    positives = [s for s, y in rows if y]
    negatives = [s for s, y in rows if not y]
    got = auc(np.array([s for s, _ in rows]), np.array([float(y) for _, y in rows]))
    if not positives or not negatives:
        assert got is None
    else:
        pairs = [(p > n) + 0.5 * (p == n) for p in positives for n in negatives]
        assert got == pytest.approx(sum(pairs) / len(pairs))


def test_a_profile_comes_back_from_its_bytes_and_the_id_names_its_bins() -> None:
    table = pa.table(
        {"delay": [1.0, 2.0, 3.0, 40.0], "carrier": ["AA", "UA", "AA", None], "rain": [True, False, None, True]}
    )
    profile = ReferenceProfile.build(
        table,
        np.array([0.1, 0.4, 0.6, 0.9]),
        np.array([0.0, 0.0, 1.0, 1.0]),
        baseline="delay",
        model="m",
        version="1.0.0",
    )
    assert ReferenceProfile.load(profile.save()) == profile
    assert (profile.auc, profile.label_rate, profile.classes) == (1.0, 0.5, {"0": 2, "1": 2})
    assert sum(profile.confidence) == 4
    assert profile.baseline is not None
    assert profile.baseline.auc == 1.0
    assert profile.id == profile.model_copy(update={"version": "1.0.1"}).id
    assert profile.id != ReferenceProfile.build(table.slice(1)).id


def test_a_damaged_profile_is_refused_with_the_mend() -> None:
    with pytest.raises(ProfileError, match="Train again"):
        ReferenceProfile.load(b'{"rows": 3}')


def test_scores_of_another_length_and_odd_columns_are_refused() -> None:
    table = pa.table({"x": [1.0, 2.0]})
    with pytest.raises(ProfileError, match="one value per row"):
        ReferenceProfile.build(table, np.zeros(3))
    with pytest.raises(ProfileError, match="'when' is date32"):
        ReferenceProfile.build(pa.table({"when": pa.array([1], pa.date32())}))
    with pytest.raises(ProfileError, match="baseline 'y'"):
        ReferenceProfile.build(table, baseline="y")


def test_rows_that_were_not_scored_are_no_nulls_of_the_score() -> None:
    scores = np.where(np.arange(1000) % 5 == 0, np.linspace(0, 1, 1000), np.nan)
    columns = pa.table({"x": pa.array(np.arange(1000.0))})
    profile = ReferenceProfile.build(columns, scores, None, task="binary")
    assert profile.score is not None
    assert profile.score.null_rate == 0
