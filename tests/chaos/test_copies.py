"""The verifier's copies: the rule of docs/adr/0011 by hand and as the product tells them, and a copy that got through
or an event that was dropped as one is found.
"""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from penstock_features.duplicates import Seen

from tests.chaos.copies import Copies
from tests.chaos.test_carried import PLAN, SCHEMAS, Whole, log, models
from tests.chaos.test_verify import headers_of
from tests.chaos.verify import verify

__all__ = ["log", "models"]  # fixtures

HORIZON = 100
Row = tuple[str, int, int | None]
"""Id, event time, and of which row before it is a replay."""


def told(rows: list[Row], dropped: dict[int, int]) -> list[str]:
    """The kinds of findings where the rows at ``dropped`` were dropped as copies of these."""
    found: list[str] = []
    copies = Copies("t", HORIZON, lambda kind, what: found.append(kind))
    for row, first in dropped.items():
        copies.dropped((0, row), rows[row][0], f"came before, as t.raw/0@{first}")
    for place, (event_id, time, replayed) in enumerate(rows):
        replays = None if replayed is None else f"t.raw/0@{replayed}"
        copies.passed(0, {"_event_id": event_id, "_event_time": time, "_replays": replays}, (0, place))
    copies.judge(Counter({(0, place): 1 for place in range(len(rows))}))
    return found


def test_a_copy_within_the_horizon_is_dropped() -> None:
    assert told([("a", 0, None), ("a", 100, None)], {1: 0}) == []
    assert told([("a", 0, None), ("a", 100, None)], {}) == ["duplicated"]


def test_what_comes_a_horizon_later_counts_again() -> None:
    assert told([("a", 0, None), ("a", 101, None)], {}) == []
    assert told([("a", 0, None), ("a", 101, None)], {1: 0}) == ["lost"]
    assert told([("a", 0, None), ("b", 101, None), ("a", 0, None)], {}) == []


def test_a_dropped_copy_keeps_its_id_in_mind() -> None:
    rows: list[Row] = [("a", 0, None), ("a", 90, None), ("a", 180, None)]
    assert told(rows, {1: 0, 2: 0}) == []
    assert told(rows, {1: 0}) == ["duplicated"]


def test_the_first_ones_replay_passes_and_another_does_not() -> None:
    rows: list[Row] = [("a", 0, None), ("a", 0, 0), ("a", 0, 0)]
    assert told(rows, {}) == []
    assert told([("a", 0, None), ("b", 0, None), ("a", 0, 1)], {}) == ["duplicated"]
    assert told([("a", 0, None), ("b", 0, None), ("a", 0, 1)], {2: 0}) == []


def test_a_worker_that_knows_a_later_row_as_the_first_may_drop_the_replay() -> None:
    assert told([("a", 0, None), ("a", 0, 0)], {1: 0}) == []


def test_an_event_that_is_dropped_as_a_copy_of_another_id_is_lost() -> None:
    assert told([("a", 0, None), ("b", 0, None)], {1: 0}) == ["lost"]


@pytest.mark.parametrize(("horizon_ms", "found"), [(None, {}), (179_999, {}), (180_000, {"duplicated": 1})])
def test_a_copy_that_went_through_the_pipeline_is_found(
    horizon_ms: int | None, found: dict[str, int], log: Whole, models: Path
) -> None:
    log.add_event(4, 1.0, "a", 0.1, event_id="e1")  # e1 is of three minutes before
    plan = replace(PLAN, deduplicate_ms=horizon_ms)
    assert verify("t", SCHEMAS, log, plan, models).findings == found


def test_a_copy_that_was_never_decoded_could_not_be_dropped(log: Whole) -> None:
    log.add_event(4, 1.0, "a", 0.1, event_id="e1")
    for suffix in ("by.shop", "features", "predictions"):
        log.drop(suffix, 4)
    log.drop("outcomes", 8)
    event, why = log.topics["t.events"][4], headers_of("t.events", 0, 4, "features.card", (0, 4))
    why = [(name, b"killed the worker" if name == "penstock.reason" else value) for name, value in why]
    log.add("dead", event.key, event.value, headers=why)
    assert verify("t", SCHEMAS, log, replace(PLAN, deduplicate_ms=HORIZON * 10_000)).findings == {}


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 400), st.integers(0, 8)), min_size=1, max_size=40),
)
def test_they_are_those_of_the_product(drawn: list[tuple[str, int, int]]) -> None:
    rows: list[Row] = [(i, t, r if r < place else None) for place, (i, t, r) in enumerate(drawn)]
    rows = [(i, t, r if r is not None and r % 3 == 0 else None) for i, t, r in rows]
    n = len(rows)
    times = np.array([time for _, time, _ in rows], np.int64)
    watermark = np.r_[np.int64(-(2**60)), np.maximum.accumulate(times)[:-1]]
    ids = pa.array([event_id for event_id, _, _ in rows], pa.string())
    origins = np.zeros(n, np.int64), np.arange(n)
    replayed = (
        np.array([-1 if r is None else 0 for *_, r in rows], np.int64),
        np.array([-1 if r is None else r for *_, r in rows], np.int64),
    )
    firsts = Seen(HORIZON).firsts(ids, times, watermark, origins, replayed)
    dropped = {} if firsts is None else {row: int(first[1]) for row, first in enumerate(firsts) if first[0] >= 0}
    copies = Copies("t", HORIZON, lambda kind, what: None)
    for place, (event_id, time, of) in enumerate(rows):
        replays = None if of is None else f"t.raw/0@{of}"
        copies.passed(0, {"_event_id": event_id, "_event_time": time, "_replays": replays}, (0, place))
    assert {row: first for (_, row), (_, first) in copies._copies.items()} == dropped
