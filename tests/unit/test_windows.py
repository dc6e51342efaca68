"""Window values against DuckDB and against a plain model, and what must never change them: cuts, restarts, eviction."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.windows import state as state_module
from penstock.windows.kernel import unpack
from penstock.windows.ring import rings
from penstock.windows.spec import ViewSpec
from penstock.windows.state import WindowState
from penstock.windows.watermark import running_watermark

FUNCTIONS = ("count", "sum", "mean", "min", "max", "std", "last")
Row = tuple[str | None, int, float | None]


def view(windows: dict[int, int], lateness_ms: int, functions: Sequence[str] = FUNCTIONS) -> ViewSpec:
    """A view over column x; `windows` maps window to tile."""
    return ViewSpec.model_validate(
        {
            "name": "card",
            "key": "card_id",
            "aggregations": [
                {"column": "x", "function": function, "window_ms": window, "name": f"{function}_{window}"}
                for window in windows
                for function in functions
            ],
            "tile_ms": windows,
            "lateness_ms": lateness_ms,
        }
    )


def apply(state: WindowState, rows: Sequence[Row], first_offset: int = 0) -> list[tuple[Any, ...]]:
    """One batch; returns a tuple per row: the aggregations in order, then late."""
    times = np.array([time for _, time, _ in rows], np.int64)
    values = np.array([0.0 if value is None else value for *_, value in rows], np.float64)
    valid = np.array([value is not None for *_, value in rows], np.bool_)
    result = state.update(
        pa.array([key for key, *_ in rows], pa.string()),
        times,
        running_watermark(times, state.watermark),
        np.arange(first_offset, first_offset + len(rows)),
        {"x": (values, valid)},
    )
    columns = [column.to_pylist() for column in result.columns]
    return list(zip(*columns, result.late.tolist(), strict=True)) if columns else []


def model(spec: ViewSpec, rows: Sequence[Row]) -> list[tuple[Any, ...]]:
    """What design says, in plain Python: every row folds the tiles of its window afresh, oldest first."""
    results = []
    for i, (key, time, _) in enumerate(rows):
        before = [earlier for _, earlier, _ in rows[:i]]
        late = bool(before) and time < max(before) - spec.lateness_ms
        out: list[Any] = []
        for aggregation in spec.aggregations:
            tile_ms = spec.tile_ms[aggregation.window_ms]
            oldest = -math.inf
            if before:
                oldest = (max(before) - aggregation.window_ms - spec.lateness_ms) // tile_ms
            newest = time // tile_ms
            tiles: dict[int, list[tuple[int, int, float]]] = {}
            for j, (other, at, value) in enumerate(rows[: i + 1]):
                tile = at // tile_ms
                in_window = newest - aggregation.window_ms // tile_ms < tile <= newest
                if other == key and value is not None and in_window and (tile >= oldest or j == i):
                    tiles.setdefault(tile, []).append((at, j, value))
            if key is None:
                out.append(None)
            else:
                out.append(fold(aggregation.function, [tiles[tile] for tile in sorted(tiles)]))
        results.append((*out, late))
    return results


def fold(function: str, tiles: list[list[tuple[int, int, float]]]) -> float | int | None:
    n = 0
    total, mean, m2 = 0.0, 0.0, 0.0
    for tile in tiles:
        tile_n, tile_mean, tile_m2, tile_sum = 0, 0.0, 0.0, 0.0
        for _, _, value in tile:
            tile_n += 1
            tile_sum = value if tile_n == 1 else tile_sum + value
            delta = value - tile_mean
            tile_mean = value if tile_n == 1 else tile_mean + delta / tile_n
            tile_m2 = 0.0 if tile_n == 1 else tile_m2 + delta * (value - tile_mean)
        if n == 0:
            total, mean, m2 = tile_sum, tile_mean, tile_m2
        else:
            total += tile_sum
            delta = tile_mean - mean
            m2 = m2 + tile_m2 + delta * delta * n * tile_n / (n + tile_n)
            mean = mean + delta * tile_n / (n + tile_n)
        n += tile_n
    rows = [row for tile in tiles for row in tile]
    if function == "count":
        return n
    if n == 0 or (function == "std" and n < 2):
        return None
    return {
        "sum": total,
        "mean": total / n,
        "min": min(value for *_, value in rows),
        "max": max(value for *_, value in rows),
        "std": math.sqrt(m2 / max(n - 1, 1)),
        "last": max(rows)[2],
    }[function]


def numbers(row: tuple[Any, ...]) -> list[float]:
    return [math.nan if value is None else value for value in row]


@st.composite
def logs(draw: st.DrawFn) -> list[Row]:
    """Event times that mostly advance, step back across tiles and beyond the lateness, and sometimes leap."""
    n = draw(st.integers(1, 60))
    steps = draw(st.lists(st.integers(-90, 60) | st.sampled_from([0, 1, 400, 3000, -700]), min_size=n, max_size=n))
    keys = draw(st.lists(st.sampled_from(["a", "a", "b", "ключ", "", None]), min_size=n, max_size=n))
    value = st.floats(-1e6, 1e6, allow_subnormal=False) | st.integers(-3, 3).map(float) | st.none()
    values = draw(st.lists(value, min_size=n, max_size=n))
    times = np.cumsum(np.array(steps, np.int64)) - 500
    return list(zip(keys, times.tolist(), values, strict=True))


# 3, 60 and 130 tiles: rings of one word and of several; lateness that is no multiple of the tile
WINDOWS = {30: 10, 600: 10, 1300: 10, 400: 100}


@settings(max_examples=80, deadline=None)
@given(rows=logs(), lateness=st.sampled_from([0, 7, 25, 300]))
def test_every_row_gets_the_bits_of_a_model_that_folds_the_window_afresh(rows: list[Row], lateness: int) -> None:
    spec = view(WINDOWS, lateness)
    assert apply(WindowState(spec), rows) == model(spec, rows)


@settings(max_examples=60, deadline=None)
@given(rows=logs(), lateness=st.sampled_from([0, 7, 25, 300]))
def test_window_values_are_those_of_sql_on_the_same_log(rows: list[Row], lateness: int) -> None:
    spec = view({600: 10, 400: 100}, lateness)
    got = apply(WindowState(spec), rows)
    log = pa.table(
        {
            "i": pa.array(range(len(rows)), pa.int64()),
            "k": pa.array([key for key, *_ in rows], pa.string()),
            "t": pa.array([time for _, time, _ in rows], pa.int64()),
            "x": pa.array([value for *_, value in rows], pa.float64()),
        }
    )
    with duckdb.connect() as sql:
        sql.register("log", log)
        for number, (window, tile) in enumerate(spec.tile_ms.items()):
            expected = sql.execute(
                """
                WITH seen AS (
                    SELECT *, max(t) OVER (ORDER BY i ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS watermark,
                           floor(t / $tile::DOUBLE)::BIGINT AS tile
                    FROM log
                ), judged AS (
                    SELECT *, coalesce(floor((watermark - $horizon) / $tile::DOUBLE)::BIGINT, -1000000) AS oldest,
                           coalesce(t < watermark - $lateness, false) AS late
                    FROM seen
                )
                SELECT count(e.x), sum(e.x), avg(e.x), min(e.x), max(e.x),
                       CASE WHEN count(e.x) > 1 THEN stddev_samp(e.x) END,
                       arg_max(e.x, struct_pack(t := e.t, i := e.i)) FILTER (e.x IS NOT NULL),
                       any_value(r.late)
                FROM judged r LEFT JOIN judged e
                  ON e.k = r.k AND e.i <= r.i AND e.tile <= r.tile AND e.tile > r.tile - $tiles
                     AND (e.i = r.i OR e.tile >= r.oldest)
                GROUP BY r.i ORDER BY r.i
                """,
                {"tile": tile, "horizon": window + lateness, "lateness": lateness, "tiles": window // tile},
            ).fetchall()
            for (key, *_), row, sql_row in zip(rows, got, expected, strict=True):
                values = row[number * len(FUNCTIONS) : (number + 1) * len(FUNCTIONS)]
                if key is None:
                    assert set(values) == {None}
                else:
                    assert numbers(values) == pytest.approx(numbers(sql_row[:-1]), rel=1e-9, abs=1e-5, nan_ok=True)
                assert row[-1] == sql_row[-1]


@settings(max_examples=100, deadline=None)
@given(rows=logs(), data=st.data())
def test_results_do_not_depend_on_where_batches_are_cut(rows: list[Row], data: st.DataObject) -> None:
    spec = view(WINDOWS, 25)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(rows)), max_size=8)))
    state = WindowState(spec)
    pieces = []
    for start, stop in zip([0, *cuts], [*cuts, len(rows)], strict=True):
        pieces += apply(state, rows[start:stop], start)
    assert pieces == apply(WindowState(spec), rows)


@settings(max_examples=100, deadline=None)
@given(rows=logs(), more=logs(), lateness=st.sampled_from([0, 25]))
def test_a_replay_of_what_can_still_count_gives_the_same_bits(rows: list[Row], more: list[Row], lateness: int) -> None:
    spec = view({30: 10, 600: 10}, lateness)
    state = WindowState(spec)
    apply(state, rows)
    start = next(i for i, (_, time, _) in enumerate(rows) if time >= state.watermark - spec.history_ms)
    again = WindowState(spec)
    apply(again, rows[start:], start)

    assert again.snapshot().equals(state.snapshot(), check_metadata=True)
    assert apply(again, more, len(rows)) == apply(state, more, len(rows))


@settings(max_examples=60, deadline=None)
@given(rows=logs(), more=logs())
def test_a_restored_snapshot_goes_on_with_the_same_bits(rows: list[Row], more: list[Row]) -> None:
    spec = view(WINDOWS, 25)
    state = WindowState(spec)
    apply(state, rows)
    restored = WindowState.restore(spec, state.snapshot())

    assert restored.watermark == state.watermark
    assert restored.snapshot().equals(state.snapshot(), check_metadata=True)
    assert apply(restored, more, len(rows)) == apply(state, more, len(rows))


def test_a_late_event_lands_in_its_own_tile_and_sees_the_window_as_of_its_own_time() -> None:
    state = WindowState(view({60: 10}, lateness_ms=100, functions=["count", "sum"]))
    rows: list[Row] = [("a", 5, 1.0), ("a", 65, 10.0), ("a", 15, 100.0), ("a", 66, 1000.0)]
    assert apply(state, rows) == [
        (1, 1.0, False),
        (1, 10.0, False),  # tiles 1 … 6: the first event has left
        (2, 101.0, False),  # tiles -4 … 1: the event of tile 6 is not there yet
        (3, 1110.0, False),
    ]


def test_an_event_older_than_the_lateness_is_marked_and_gets_what_is_left() -> None:
    state = WindowState(view({60: 10}, lateness_ms=20, functions=["count"]))
    apply(state, [("a", 12, 1.0), ("a", 42, 1.0), ("a", 110, 1.0)])
    # watermark 110: tiles before (110 - 80) // 10 = 3 are gone
    assert apply(state, [("a", 90, 1.0)], 3) == [(2, False)]
    assert apply(state, [("a", 55, 1.0)], 4) == [(2, True)]  # tile 1 has gone, tile 4 has not
    assert apply(state, [("a", 29, 1.0)], 5) == [(1, True)]  # its own tile has gone: it sees itself alone
    assert apply(state, [("a", 29, 1.0)], 6) == [(1, True)]


def test_another_key_of_the_partition_moves_the_watermark_and_expires_tiles() -> None:
    rows: list[Row] = [("a", 5, 1.0), ("b", 500, 1.0), ("a", 6, 1.0)]
    assert apply(WindowState(view({60: 10}, 0, ["count"])), rows)[2] == (1, True)
    assert apply(WindowState(view({60: 10}, 500, ["count"])), rows)[2] == (2, False)


def test_a_null_key_has_null_features_and_no_row_in_the_state() -> None:
    state = WindowState(view({60: 10}, 0))
    assert apply(state, [(None, 5, 1.0), (None, 6, 2.0)]) == [(None,) * 7 + (False,)] * 2
    assert state.key_count == 0
    assert state.watermark == 6


def test_null_values_are_not_counted_and_no_values_are_null_except_the_count() -> None:
    state = WindowState(view({60: 10}, 0))
    assert apply(state, [("a", 5, None), ("a", 6, 3.0), ("a", 7, None)]) == [
        (0, None, None, None, None, None, None, False),
        (1, 3.0, 3.0, 3.0, 3.0, None, 3.0, False),
        (1, 3.0, 3.0, 3.0, 3.0, None, 3.0, False),
    ]


def test_last_is_the_newest_by_event_time_and_then_by_offset() -> None:
    state = WindowState(view({60: 10}, 100, ["last"]))
    rows: list[Row] = [("a", 5, 1.0), ("a", 5, 2.0), ("a", 4, 3.0), ("a", 25, 4.0), ("a", 19, 5.0), ("a", 26, None)]
    assert [last for last, _ in apply(state, rows)] == [1.0, 2.0, 2.0, 4.0, 5.0, 4.0]


def test_count_of_the_key_or_of_star_counts_rows_and_types_follow_the_columns() -> None:
    spec = ViewSpec.model_validate(
        {
            "name": "card",
            "key": "card_id",
            "aggregations": [
                {"column": "*", "function": "count", "window_ms": 60, "name": "rows"},
                {"column": "card_id", "function": "count", "window_ms": 60, "name": "keys", "column_type": "string"},
                {"column": "n", "function": "last", "window_ms": 60, "name": "last_n", "column_type": "int64"},
                {"column": "n", "function": "sum", "window_ms": 60, "name": "sum_n", "column_type": "int64"},
                {"column": "on", "function": "last", "window_ms": 60, "name": "last_on", "column_type": "bool"},
            ],
            "tile_ms": {60: 1},
            "lateness_ms": 0,
        }
    )
    ones = np.ones(2)
    columns = {"n": (ones * 7, np.array([True, False])), "on": (ones, np.array([True, True]))}
    times = np.array([5, 6])
    rows = WindowState(spec).update(pa.array(["a", "a"]), times, running_watermark(times), np.arange(2), columns)
    assert [str(column.type) for column in rows.columns] == ["int64", "int64", "int64", "double", "bool"]
    assert [column.to_pylist() for column in rows.columns] == [[1, 2], [1, 2], [7, 7], [7.0, 7.0], [True, True]]


def test_dead_keys_leave_the_state_and_results_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = view({60: 10}, 20)
    rows: list[Row] = [(f"k{i % 7 + i // 50}", i * 3, float(i)) for i in range(2000)]
    never = apply(WindowState(spec), rows)
    monkeypatch.setattr(state_module, "SWEEP_FROM", 10)
    state = WindowState(spec)
    evicting = [row for start in range(0, 2000, 13) for row in apply(state, rows[start : start + 13], start)]
    assert evicting == never
    assert state.key_count < 30 < len({key for key, *_ in rows})


def test_the_state_grows_over_many_keys() -> None:
    spec = view({60: 10}, 0, ["count", "sum"])
    state = WindowState(spec)
    keys = [f"card-{i:06d}" for i in range(20_000)]
    for round_ in (1, 2, 3):
        got = apply(state, [(key, 5, float(i)) for i, key in enumerate(keys)], round_ * 20_000)
        assert got == [(round_, round_ * float(i), False) for i in range(20_000)]
    assert state.key_count == 20_000


def test_dictionary_keys_give_what_plain_keys_give() -> None:
    spec = view({60: 10}, 0, ["count"])
    plain = pa.array(["a", None, "b", "a", "a"])
    times = np.array([1, 2, 3, 4, 15])
    columns = {"x": (np.ones(5), np.ones(5, np.bool_))}
    forms = [
        plain,
        plain.dictionary_encode(),
        plain.dictionary_encode(null_encoding="encode"),
        plain.cast("large_string"),
    ]
    forms.append(pa.concat_arrays([pa.array(["zz"]), plain])[1:])
    unused = pa.array(["never", "b", "a"])
    forms.append(pa.DictionaryArray.from_arrays(pa.array([2, None, 1, 2, 2], pa.int8()), unused))
    for keys in forms:
        state = WindowState(spec)
        rows = state.update(keys, times, running_watermark(times), np.arange(5), columns)
        assert rows.columns[0].to_pylist() == [1, None, 1, 2, 3]
        assert state.key_count == 2


def test_wrong_input_is_refused_with_its_name() -> None:
    state = WindowState(view({60: 10}, 0, ["count"]))
    one, column = np.array([5]), {"x": (np.ones(1), np.ones(1, np.bool_))}
    state.update(pa.array(["a"]), one, running_watermark(one), one, column)
    with pytest.raises(ValueError, match="watermark behind event times"):
        state.update(pa.array(["a"]), one, np.array([4]), one, column)
    with pytest.raises(ValueError, match="2 keys for 1 rows"):
        state.update(pa.array(["a", "b"]), one, one, one, column)
    with pytest.raises(ValueError, match="aggregates 'x'"):
        state.update(pa.array(["a"]), one, one, one, {})
    with pytest.raises(TypeError, match="keys of a window are strings"):
        state.update(pa.array([1]), one, one, one, column)


def test_a_snapshot_of_another_definition_is_refused() -> None:
    snapshot = WindowState(view({60: 10}, 0)).snapshot()
    with pytest.raises(ValueError, match="another definition"):
        WindowState.restore(view({60: 10}, 5), snapshot)


def test_a_snapshot_holds_the_tiles_that_have_values_and_nothing_for_the_others() -> None:
    few, many = WindowState(view({600: 10}, 0, ["sum"])), WindowState(view({600: 10}, 0, ["sum"]))
    apply(few, [(f"k{i}", 600, 1.0) for i in range(100)])
    apply(many, [(f"k{i}", time, 1.0) for time in range(0, 600, 10) for i in range(100)])
    words = [len(state.snapshot().column("ring_0").combine_chunks().values) for state in (few, many)]
    header, cell = 2, 2  # newest tile and bitmap; count and sum
    assert words == [100 * (header + cell), 100 * (header + 60 * cell)]


def test_a_snapshot_may_come_in_pieces_and_without_any_row() -> None:
    spec = view({60: 10}, 0)
    state = WindowState(spec)
    assert WindowState.restore(spec, state.snapshot()).snapshot().equals(state.snapshot(), check_metadata=True)
    apply(state, [(f"k{i % 7}", i, float(i)) for i in range(50)])
    whole = state.snapshot()
    pieces = pa.concat_tables([whole.slice(start, 3) for start in range(0, whole.num_rows, 3)])
    assert pieces.column("ring_0").num_chunks > 1
    assert WindowState.restore(spec, pieces).snapshot().equals(whole, check_metadata=True)


@pytest.mark.parametrize("change", [lambda row: row[:-1], lambda row: [*row, 0], lambda row: row[:1]])
def test_a_row_of_a_snapshot_that_is_not_as_long_as_it_says_is_refused(
    change: Callable[[list[int]], list[int]],
) -> None:
    spec = view({60: 10}, 0, ["sum"])
    state = WindowState(spec)
    apply(state, [("a", 5, 1.0), ("b", 15, 2.0)])
    whole = state.snapshot()
    at = whole.schema.get_field_index("ring_0")
    first, second = whole.column("ring_0").to_pylist()
    harmed = whole.set_column(
        at, whole.schema.field(at), pa.array([first, change(second)], whole.schema.field(at).type)
    )
    with pytest.raises(ValueError, match="not of this window's form"):
        WindowState.restore(spec, harmed)


@pytest.mark.parametrize("starts", [[0, 4, 400], [0, 5, 4], [-4, 0, 4]])
def test_rows_of_a_snapshot_that_lie_outside_of_it_are_refused(starts: list[int]) -> None:
    (ring,) = rings(view({60: 10}, 0, ["sum"]))
    rows = np.zeros((2, ring.layout.width), np.int64)
    assert not unpack(np.ones(8, np.int64), np.array(starts, np.int64), ring.numbers, rows)


def test_an_empty_batch_changes_nothing() -> None:
    state = WindowState(view({60: 10}, 0))
    before = state.snapshot()
    assert apply(state, []) == []
    assert state.snapshot().equals(before, check_metadata=True)


def test_read_only_and_strided_columns_are_taken_as_they_come_from_arrow() -> None:
    spec = view({60: 10}, 0, ["count", "sum"])
    times = pa.array([1, 2, 3]).to_numpy()
    assert not times.flags.writeable
    strided = np.arange(6.0)[::2]
    valid = np.broadcast_to(np.True_, 3)
    rows = WindowState(spec).update(
        pa.array(["a"] * 3), times, running_watermark(times), pa.array([0, 1, 2]).to_numpy(), {"x": (strided, valid)}
    )
    assert rows.columns[1].to_pylist() == [0.0, 2.0, 6.0]
