"""The merge of partitions by event time, against a loop that takes one row at a time, and the running watermark."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.windows.merge import merge_order
from penstock.windows.watermark import NO_WATERMARK, running_watermark

partitions = st.lists(st.tuples(st.lists(st.integers(-20, 20), max_size=12), st.booleans()), max_size=5)


def one_at_a_time(times: list[list[int]], waiting: list[bool]) -> list[tuple[int, int]]:
    """(partition, row) in order: the partition whose head is smallest, until one that must be waited for is dry."""
    next_row = [0] * len(times)
    seen = [-100] * len(times)
    order: list[tuple[int, int]] = []
    while True:
        dry = [k for k in range(len(times)) if next_row[k] == len(times[k])]
        if any(waiting[k] for k in dry) or len(dry) == len(times):
            return order
        heads = [(max(seen[k], times[k][next_row[k]]), k) for k in range(len(times)) if k not in dry]
        at, k = min(heads)
        order.append((k, next_row[k]))
        seen[k] = at
        next_row[k] += 1


@settings(max_examples=300, deadline=None)
@given(partitions)
def test_the_merge_takes_the_earliest_head_and_stops_where_it_must_wait(case: list[tuple[list[int], bool]]) -> None:
    times = [rows for rows, _ in case]
    waiting = [wait for _, wait in case]
    flat = [(k, row) for k, rows in enumerate(times) for row in range(len(rows))]
    got = merge_order([np.array(rows, np.int64) for rows in times], waiting)
    assert [flat[index] for index in got] == one_at_a_time(times, waiting)


@given(st.lists(st.lists(st.integers(0, 30), min_size=1, max_size=10), min_size=1, max_size=4), st.data())
def test_more_rows_later_never_change_what_was_merged_before(times: list[list[int]], data: st.DataObject) -> None:
    """With all partitions waited for, the order is a function of the logs, not of how much of them was fetched when."""
    whole = one_at_a_time(times, [True] * len(times))
    fetched = [data.draw(st.integers(0, len(rows))) for rows in times]
    first = merge_order(
        [np.array(rows[:n], np.int64) for rows, n in zip(times, fetched, strict=True)], [True] * len(times)
    )
    owner = np.repeat(np.arange(len(times)), fetched)
    assert [int(owner[index]) for index in first] == [k for k, _ in whole][: len(first)]


def test_an_early_row_behind_a_late_one_keeps_its_place() -> None:
    order = merge_order([np.array([10, 3, 11]), np.array([5, 10, 12])], [False, False])
    assert order.tolist() == [3, 0, 1, 4, 2, 5]


def test_an_empty_partition_that_is_waited_for_stops_everything() -> None:
    rows = np.array([1, 2])
    assert merge_order([rows, np.array([], np.int64)], [False, True]).tolist() == []
    assert merge_order([rows, np.array([], np.int64)], [True, False]).tolist() == [0, 1]
    assert merge_order([], []).tolist() == []


def test_a_waiting_flag_is_needed_for_each_partition() -> None:
    with pytest.raises(ValueError, match="1 partitions but 2 waiting flags"):
        merge_order([np.array([1])], [True, False])


@given(st.lists(st.integers(-50, 50)), st.integers(-60, 60), st.data())
def test_the_watermark_is_the_largest_time_before_the_row_however_batches_are_cut(
    times: list[int], start: int, data: st.DataObject
) -> None:
    rows = np.array(times, np.int64)
    expected = [max([start, *times[:i]]) for i in range(len(times))]
    assert running_watermark(rows, start).tolist() == expected
    cut = data.draw(st.integers(0, len(times)))
    middle = max([start, *times[:cut]])
    assert [*running_watermark(rows[:cut], start), *running_watermark(rows[cut:], middle)] == expected


def test_a_partition_without_rows_has_a_watermark_older_than_any_event() -> None:
    assert running_watermark(np.array([-(2**50), 7])).tolist() == [NO_WATERMARK, -(2**50)]
    assert running_watermark(np.array([], np.int64)).tolist() == []
