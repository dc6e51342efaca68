"""Partial profiles: of any split of the rows they add up to one pass, and to what plain Python counts."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.profiles.partial import ColumnPartials
from penstock.profiles.reference import profile_column
from penstock.profiles.rows import SCHEMA, ProfileRow, from_arrow, to_arrow

HOUR = 3_600_000
numbers = st.one_of(st.none(), st.floats(-1e6, 1e6), st.sampled_from([0.0, 1.0, float("inf"), float("-inf")]))
words = st.one_of(st.none(), st.sampled_from(["AA", "UA", "B6", "ZZ", "", "é"]))
rows = st.lists(
    st.tuples(numbers, words, st.one_of(st.none(), st.booleans()), st.integers(-3, 3)),
    min_size=1,
    max_size=80,
)
COLUMNS = [("delay", "numeric"), ("carrier", "categorical"), ("rain", "boolean")]
REFERENCES = {
    "delay": profile_column(pa.array(np.random.default_rng(1).normal(0, 1000, 500))),
    "carrier": profile_column(pa.array(["AA"] * 3 + ["UA"] * 2 + ["é"])),
    "rain": profile_column(pa.array([True, False])),
}


def batch(some: list[tuple]) -> tuple[pa.RecordBatch, np.ndarray]:
    delay, carrier, rain, hour = zip(*some, strict=True)
    columns = pa.record_batch(
        {
            "delay": pa.array(delay, pa.float64()),
            "carrier": pa.array(carrier, pa.string()),
            "rain": pa.array(rain, pa.bool_()),
        }
    )
    return columns, np.array(hour, np.int64) * HOUR + 17


def partials(references: dict = REFERENCES) -> ColumnPartials:
    return ColumnPartials(COLUMNS, references, HOUR, reference="r1", model="m")


def summed(drained: list[ProfileRow]) -> dict:
    total: dict = {}
    for row in drained:
        at = total.setdefault((row.feature, row.pane), Counter())
        at.update({"rows": row.rows, "nulls": row.nulls, "unseen": row.unseen, "n": row.n})
        at.update({f"bin {i}": count for i, count in enumerate(row.bins.tolist())})
        at.update({f"name {name}": count for name, count in zip(row.names, row.name_counts, strict=True)})
        at["min"] = min(at.get("min", np.inf), np.inf if row.min is None else row.min)
        at["max"] = max(at.get("max", -np.inf), -np.inf if row.max is None else row.max)
    return {key: +Counter({k: v for k, v in c.items() if k not in ("min", "max")}) for key, c in total.items()} | {
        (*key, "range"): (c["min"], c["max"]) for key, c in total.items()
    }


@settings(max_examples=60, deadline=None)
@given(rows, st.data())
def test_partials_of_any_split_add_up_to_one_pass(some: list[tuple], data: st.DataObject) -> None:
    whole = partials()
    whole.add(*batch(some))
    cut = data.draw(st.integers(0, len(some)))
    drained = []
    parts = partials()
    for part, drain in ((some[:cut], data.draw(st.booleans())), (some[cut:], True)):
        if part:
            parts.add(*batch(part))
        if drain:
            drained += parts.drain()
    assert summed(drained) == summed(whole.drain())


@settings(max_examples=60, deadline=None)
@given(rows)
def test_partials_are_what_plain_python_counts(some: list[tuple]) -> None:
    one = partials()
    one.add(*batch(some))
    drained = {(row.feature, row.pane): row for row in one.drain()}
    for hour in {row[3] for row in some}:
        here = [row for row in some if row[3] == hour]
        delay = drained["delay", hour * HOUR]
        known = np.array([row[0] for row in here if row[0] is not None])
        assert (delay.rows, delay.nulls) == (len(here), len(here) - len(known))
        places = np.searchsorted(REFERENCES["delay"].edges, known, side="right")
        assert delay.bins.tolist() == np.bincount(places, minlength=16).tolist()
        finite = known[np.isfinite(known)]
        assert delay.n == len(finite)
        if len(finite):
            assert delay.mean == pytest.approx(finite.mean(), rel=1e-9, abs=1e-6)
            assert delay.m2 == pytest.approx(((finite - finite.mean()) ** 2).sum(), rel=1e-9, abs=1e-3)
            assert (delay.min, delay.max) == (finite.min(), finite.max())
        carrier = drained["carrier", hour * HOUR]
        words = Counter(row[1] for row in here)
        assert carrier.bins.tolist() == [words["AA"], words["UA"], words["é"], 0]
        assert carrier.nulls == words[None]
        assert dict(zip(carrier.names, carrier.name_counts, strict=True)) == {
            word: words[word] for word in ("B6", "ZZ", "") if words[word]
        }
        assert carrier.unseen == words["B6"] + words["ZZ"] + words[""]
        flags = Counter(row[2] for row in here)
        rain = drained["rain", hour * HOUR]
        assert (rain.bins.tolist(), rain.nulls) == ([flags[False], flags[True]], flags[None])


def test_without_a_reference_there_are_nulls_and_moments_but_no_bins() -> None:
    one = partials({})
    one.add(*batch([(1.0, "AA", True, 0), (None, None, None, 0), (3.0, "UA", False, 0)]))
    delay, rain, carrier = sorted(one.drain(), key=lambda row: ("delay", "rain", "carrier").index(row.feature))
    assert (delay.nulls, delay.mean, delay.m2, delay.bins.tolist(), delay.reference) == (1, 2.0, 2.0, [], "")
    assert (rain.nulls, rain.mean) == (1, 0.5)
    assert (carrier.nulls, carrier.unseen, carrier.rows) == (1, 0, 3)


def test_event_times_far_apart_do_not_need_a_dense_table() -> None:
    one = partials()
    one.add(*batch([(1.0, "AA", True, 0), (2.0, "AA", True, 10**8), (3.0, "AA", True, -(10**7))]))
    assert [(row.pane // HOUR, row.min) for row in one.drain() if row.feature == "delay"] == [
        (-(10**7), 3.0),
        (0, 1.0),
        (10**8, 2.0),
    ]


def test_columns_with_more_categories_than_can_be_listed_have_none_unseen() -> None:
    reference = profile_column(pa.array([f"tail{i}" for i in range(5000)]))
    assert not reference.complete
    one = ColumnPartials([("tail", "categorical")], {"tail": reference}, HOUR)
    one.add(pa.record_batch({"tail": ["tail0", "N1", None]}), np.zeros(3, np.int64))
    (row,) = one.drain()
    assert (int(row.bins[-1]), row.unseen, row.nulls, row.names) == (1, 0, 1, [])


def test_an_endless_column_does_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock.profiles.categories._KEPT_KEYS", 100)
    one = ColumnPartials([("carrier", "categorical")], {"carrier": REFERENCES["carrier"]}, HOUR)
    for i in range(50):
        names = [f"new{i}-{j}" for j in range(30)] + ["AA"]
        one.add(pa.record_batch({"carrier": names}), np.zeros(31, np.int64))
    assert len(one._categories[0]._known) < 200
    (row,) = one.drain()
    assert (row.unseen, int(row.bins[0]), len(row.names)) == (1500, 50, 20)


def test_rows_come_back_from_arrow_as_they_were() -> None:
    one = partials()
    one.add(*batch([(1.0, "AA", True, 0), (None, "ZZ", None, 0)]))
    drained = one.drain()
    there = to_arrow(drained)
    assert there.schema == SCHEMA
    for back, row in zip(from_arrow(there), drained, strict=True):
        for name in SCHEMA.names:
            np.testing.assert_array_equal(getattr(back, name), getattr(row, name))
