"""Partials merged into windows: each counts once however often it comes; windows close by event time or silence."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from penstock_monitor import windows as module
from penstock_monitor.windows import Window, Windows

from penstock.profiles.rows import OUTCOME, ProfileRow

HOUR = 3_600_000
DAY = 24 * HOUR


def partial(hour: int, feature: str = "x", values: tuple[float, ...] = (1.0,), **more: object) -> ProfileRow:
    at = np.array(values)
    fields = {"bins": np.array([len(at), 0], np.int64), "n": len(at), "mean": float(at.mean())}
    fields |= {"m2": float(((at - at.mean()) ** 2).sum()), "min": float(at.min()), "max": float(at.max())}
    return ProfileRow(feature, "numeric", hour * HOUR, HOUR, model="m", rows=len(at), **{**fields, **more})  # type: ignore[arg-type]


def windows(grace: int = 2 * HOUR) -> Windows:
    return Windows(DAY, grace, 3 * DAY)


@settings(max_examples=80, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 70), st.sampled_from("xy"), st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=5).map(tuple)
        ),
        max_size=40,
    ),
    st.data(),
)
def test_a_log_that_is_read_again_from_anywhere_gives_the_same_windows(log: list, data: st.DataObject) -> None:
    """Crashes: the windows saved so far are loaded, and the log is delivered again from some earlier offset."""
    rows = [(partial(hour, feature, values), 3, offset) for offset, (hour, feature, values) in enumerate(log)]
    once = windows()
    once.add(rows)
    crashing, saved = windows(), {}
    position = 0
    for _ in range(data.draw(st.integers(0, 5))):
        stop = data.draw(st.integers(position, len(rows)))
        for key, window in crashing.add(rows[position:stop]).changed.items():
            saved[key] = window.save()
        crashing = windows()
        crashing.load(saved.values())
        position = data.draw(st.integers(0, stop))
    crashing.add(rows[position:])
    assert len(crashing) == len(once)
    for row, *_ in rows:
        key = Window("m", "", row.feature, "numeric", "", row.pane // DAY * DAY, 0).key
        one, other = once[key], crashing[key]
        assert (one.rows, one.n, one.bins.tolist(), one.min, one.max) == (
            other.rows,
            other.n,
            other.bins.tolist(),
            other.min,
            other.max,
        )
        assert one.m2 == pytest.approx(other.m2, abs=1e-6)


@given(st.lists(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=9).map(tuple), min_size=1, max_size=8))
def test_moments_of_partials_are_those_of_all_values(parts: list[tuple[float, ...]]) -> None:
    merged = windows()
    merged.add((partial(1, values=values), 0, offset) for offset, values in enumerate(parts))
    values = np.array([x for part in parts for x in part])
    window = merged["m||x||0"]
    assert (window.n, window.min, window.max) == (len(values), values.min(), values.max())
    assert window.mean == pytest.approx(values.mean(), abs=1e-6)
    assert window.m2 == pytest.approx(((values - values.mean()) ** 2).sum(), rel=1e-9, abs=1e-2)


def test_a_partial_that_is_delivered_twice_is_told_apart_from_a_new_one() -> None:
    merged = windows()
    assert len(merged.add([(partial(1), 0, 5), (partial(1), 0, 5), (partial(1), 0, 6)]).rows) == 2
    assert merged["m||x||0"].rows == 2


def test_a_window_closes_when_the_watermark_is_past_its_end_and_the_grace() -> None:
    merged = windows(grace=2 * HOUR)
    # partials of one source may run ahead of all others: they close nothing
    merged.add([(partial(23), 0, 0), (partial(24 * 30), 0, 1)])
    merged.watermark = 26 * HOUR - 1
    assert merged.due(stopped=False) == []
    merged.watermark += 1
    (due,) = merged.due(stopped=False)
    assert (due.start, due.end) == (0, DAY)
    merged.close([due])
    assert merged.due(stopped=False) == []


def test_outcomes_stay_open_for_the_horizon() -> None:
    merged = windows(grace=0)
    merged.add([(partial(1), 0, 0), (partial(1, OUTCOME), 1, 0)])
    merged.watermark = 4 * DAY - 1
    assert [window.feature for window in merged.due(stopped=False)] == ["x"]
    merged.watermark = 4 * DAY
    assert [window.feature for window in merged.due(stopped=False)] == ["x", OUTCOME]


def test_a_stream_that_stopped_closes_everything_and_a_later_partial_opens_its_whole_family_again() -> None:
    merged = windows()
    merged.add([(partial(1), 0, 0), (partial(1, "y"), 0, 1), (partial(1, OUTCOME), 0, 2)])
    merged.close(merged.due(stopped=True))
    assert merged.due(stopped=True) == []
    merged.add([(partial(2), 0, 3)])
    assert [(window.feature, window.rows) for window in merged.due(stopped=True)] == [("x", 2), ("y", 1)]


def test_what_the_watermark_closed_is_counted_further_and_not_judged_again() -> None:
    merged = windows()
    merged.add([(partial(1), 0, 0)])
    merged.watermark = 2 * DAY
    merged.close(merged.due(stopped=False))
    added = merged.add([(partial(2), 0, 1), (partial(2, "y"), 0, 2), (partial(24), 0, 3)])
    assert (added.late, merged["m||x||0"].rows) == (2, 2)
    back = windows()
    back.load(window.save() for window in added.changed.values())
    for one in (merged, back):
        assert [window.start for window in one.due(stopped=True)] == [DAY]


def test_a_stop_that_ends_before_the_watermark_has_passed_settles_nothing() -> None:
    merged = windows()
    merged.add([(partial(1), 0, 0)])
    merged.close(merged.due(stopped=True))
    merged.watermark = 2 * DAY
    assert [window.rows for window in merged.due(stopped=False)] == [1]
    merged.close(merged.due(stopped=False))
    assert merged.add([(partial(2), 0, 1)]).late == 1


def test_counts_in_the_bins_of_two_references_are_not_added() -> None:
    merged = windows()
    merged.add([(partial(1, reference="r1"), 0, 0), (partial(1, reference="r2"), 0, 1)])
    assert [merged[f"m||x|{name}|0"].rows for name in ("r1", "r2")] == [1, 1]


def test_counts_of_other_bins_under_the_same_reference_are_left_out() -> None:
    merged = windows()
    added = merged.add([(partial(1), 0, 0), (partial(1, bins=np.array([1, 2, 3])), 0, 1), (partial(1), 0, 2)])
    assert (added.left_out, merged["m||x||0"].bins.tolist()) == (1, [2, 0])


def test_windows_beyond_those_that_are_kept_are_forgotten_and_do_not_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEPT_WINDOWS", 3)
    merged = windows()
    merged.add([(partial(1), 0, 0), (partial(24 * 5), 0, 1)])
    assert [window.start for window in merged.forget()] == [0]
    assert merged.add([(partial(1), 0, 0)]).left_out == 1
    assert len(merged) == 1


def test_a_window_comes_back_from_its_bytes() -> None:
    merged = windows()
    merged.add([(partial(1, names=["a", "b"], name_counts=[3, 1], positives=np.arange(4)), 2, 7)])
    window = merged["m||x||0"]
    window.over, window.alerted, window.judged = ["drift"], ["drift"], 1
    back = Window.load(window.save())
    assert back.save() == window.save()
    assert (back.applied, back.names, back.positives.tolist(), back.over) == (
        {2: 7},
        {"a": 3, "b": 1},
        [0, 1, 2, 3],
        ["drift"],
    )
