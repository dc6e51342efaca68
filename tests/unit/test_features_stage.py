"""The features stage on a small chain of two entities: values against DuckDB, and what must never change them."""

from itertools import pairwise
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from penstock_features.stage import FeaturesStage, build

from penstock.envelope import EVENT_ID, EVENT_TIME, LABEL_KEY
from penstock.plan import Plan, PlanError
from penstock.records import NO_TIME, Partition, Result
from tests.unit.features_plan import HOUR, MINUTE, Log, events, plan

Visit = tuple[str | None, str, int, float | None, bool]
NEVER_LATE = 10 * HOUR
NAMES = (
    "customer_sum_10m",
    "customer_visits_1h",
    "customer_max_1h",
    "customer_last_1h",
    "shop_mean_1h",
    "shop_visits_1h",
)

visits = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "c", None]),
        st.sampled_from(["x", "y"]),
        st.integers(0, 3 * HOUR),
        st.one_of(st.none(), st.integers(0, 50).map(float)),
        st.booleans(),
    ),
    min_size=1,
    max_size=60,
)


def partitions(rows: list[Visit], place: int) -> list[int]:
    """Rows of one key are in one partition, as a keyed topic has them."""
    return [hash_of(row[place]) % 2 for row in rows]


def hash_of(key: Any) -> int:
    return sum(str(key).encode())


def run(stage: FeaturesStage, rows: pa.RecordBatch, keys: str, numbers: list[int], cuts: list[int]) -> list[Result]:
    """The rows through a stage, in batches that end at `cuts`."""
    log = Log("shops.input", keys)
    bounds = [0, *sorted(set(cuts)), len(rows)]
    return [
        stage.process(log.batch(rows.slice(low, high - low), numbers[low:high]))
        for low, high in pairwise(bounds)
        if high > low
    ]


def rows_of(results: list[Result], topic: str) -> pa.Table:
    return pa.Table.from_batches([out.rows for result in results for out in result.outputs if out.topic == topic])


def chain(given: Plan, rows: list[Visit], cuts: list[int]) -> tuple[list[Result], list[Result]]:
    first = run(build(given, "features.customer"), events(rows), "customer", partitions(rows, 0), cuts)
    passed = rows_of(first, "shops.by.shop").combine_chunks().to_batches()[0]
    return first, run(build(given, "features.shop"), passed, "shop", partitions(rows, 1), cuts)


def over(aggregate: str, key: str, tiles: int) -> str:
    """The aggregate of the key's last `tiles` tiles, of rows that are not behind the row itself in the log."""
    window = f"e.tile > r.tile - {tiles} AND e.tile <= r.tile"
    return f"(SELECT {aggregate} FROM log e WHERE e.{key} = r.{key} AND e.n <= r.n AND {window})"


DUCKDB = f"""
WITH log AS (SELECT *, (epoch_ms(_event_time) // {MINUTE}) AS tile, _origin_offset AS n FROM rows)
SELECT {over("sum(amount)", "customer", 10)},
    CASE WHEN customer IS NOT NULL THEN {over("count(*)", "customer", 60)} END,
    {over("max(amount)", "customer", 60)},
    {over("arg_max(amount, (_event_time, n)) FILTER (amount IS NOT NULL)", "customer", 60)},
    {over("avg(amount)", "shop", 60)},
    {over("count(*)", "shop", 60)}
FROM log r ORDER BY n
"""


@settings(max_examples=40, deadline=None)
@given(visits, st.lists(st.integers(1, 59), max_size=4))
def test_a_chain_of_two_entities_gives_what_duckdb_gives(rows: list[Visit], cuts: list[int]) -> None:
    first, second = chain(plan(NEVER_LATE), rows, [cut for cut in cuts if cut < len(rows)])
    table = pa.Table.from_batches([events(rows)])
    with duckdb.connect() as database:
        database.register("rows", table)
        wanted = dict(zip([f"e{n}" for n in range(len(rows))], database.execute(DUCKDB).fetchall(), strict=True))
    passed = rows_of(first, "shops.by.shop").to_pylist()
    assert [row[EVENT_ID] for row in passed] == list(wanted)
    for row in passed:
        assert [row[name] for name in NAMES[:4]] == pytest.approx(wanted[row[EVENT_ID]][:4])
    served = rows_of(second, "shops.features").to_pylist()
    assert [row[EVENT_ID] for row in served] == [f"e{n}" for n, row in enumerate(rows) if row[4]]
    for row in served:
        assert [row[name] for name in NAMES] == pytest.approx(wanted[row[EVENT_ID]])


@settings(max_examples=25, deadline=None)
@given(visits, st.lists(st.integers(1, 59), max_size=6))
def test_results_do_not_depend_on_where_batches_were_cut(rows: list[Visit], cuts: list[int]) -> None:
    whole = chain(plan(), rows, [])
    parts = chain(plan(), rows, [cut for cut in cuts if cut < len(rows)])
    for results, again, topics in zip(
        whole, parts, (("shops.by.shop", "shops.view.customer_habits"), ("shops.features",)), strict=True
    ):
        for topic in topics:
            assert rows_of(results, topic).to_pylist() == rows_of(again, topic).to_pylist()
        assert sum(result.late for result in results) == sum(result.late for result in again)


@settings(max_examples=25, deadline=None)
@given(visits, st.integers(0, 60))
def test_a_replay_emits_nothing_and_leaves_the_windows_as_they_were(rows: list[Visit], cut: int) -> None:
    cut = min(cut, len(rows))
    numbers, table = partitions(rows, 0), events(rows)
    steady = run(build(plan(), "features.customer"), table, "customer", numbers, [cut] if 0 < cut < len(rows) else [])
    restarted, log = build(plan(), "features.customer"), Log("shops.events", "customer")
    if cut:
        assert restarted.process(log.batch(table.slice(0, cut), numbers[:cut], replay=True)) == Result()
    if cut < len(rows):
        after = restarted.process(log.batch(table.slice(cut), numbers[cut:]))
        wanted = rows_of(steady, "shops.by.shop").slice(cut)
        assert rows_of([after], "shops.by.shop").to_pylist() == wanted.to_pylist()


@settings(max_examples=15, deadline=None)
@given(visits, visits)
def test_a_snapshot_goes_on_where_the_state_was(before: list[Visit], after: list[Visit]) -> None:
    def process(stage: FeaturesStage, log: Log, rows: list[Visit]) -> list[Any]:
        result = stage.process(log.batch(events(rows), [0] * len(rows)))
        return rows_of([result], "shops.by.shop").to_pylist()

    stage, log = build(plan(), "features.customer"), Log("shops.events", "customer")
    process(stage, log, before)
    partition = Partition("shops.events", 0)
    moved = build(plan(), "features.customer")
    moved.restore(partition, stage.snapshot(partition))
    batch = log.batch(events(after), [0] * len(after))
    assert rows_of([moved.process(batch)], "shops.by.shop").equals(rows_of([stage.process(batch)], "shops.by.shop"))


def test_a_released_partition_starts_empty_again() -> None:
    stage = build(plan(), "features.customer")
    for _ in range(2):
        log = Log("shops.events", "customer")
        result = stage.process(log.batch(events([("a", "x", 0, 5.0, True)]), [1]))
        assert rows_of([result], "shops.by.shop")["customer_visits_1h"].to_pylist() == [1]
        stage.release(Partition("shops.events", 1))


def test_rows_go_on_under_the_next_entitys_key_and_the_last_stage_keeps_its_own() -> None:
    rows: list[Visit] = [("a", "x", 0, 1.0, True), (None, "y", 1, 2.0, True)]
    first, second = chain(plan(), rows, [])
    (passed,) = [out for out in first[0].outputs if out.topic == "shops.by.shop"]
    (served,) = [out for out in second[0].outputs if out.topic == "shops.features"]
    assert passed.keys.to_pylist() == ["x", "y"]
    assert served.keys.to_pylist() == [b"x", b"y"]
    assert served.rows.column(LABEL_KEY).to_pylist() == ["e0", "e1"]


def test_a_null_key_has_null_features_and_no_row_of_its_view() -> None:
    rows: list[Visit] = [(None, "x", 0, 1.0, True), ("a", "x", 1, 2.0, True), (None, "x", 2, 4.0, True)]
    first, _ = chain(plan(), rows, [])
    (view,) = [out for out in first[0].outputs if out.topic == "shops.view.customer_spend"]
    assert view.source.tolist() == [1]
    assert view.keys.to_pylist() == [b"a"]
    assert rows_of(first, "shops.by.shop")["customer_visits_1h"].to_pylist() == [None, 1, None]


def test_an_event_that_is_not_predicted_feeds_the_windows_and_is_dropped_with_the_reason() -> None:
    rows: list[Visit] = [("a", "x", 0, 1.0, False), ("a", "x", 1, 2.0, True)]
    _, second = chain(plan(), rows, [])
    assert [(row, why.kind) for row, why in second[0].dropped.items()] == [(0, "not paid")]
    assert rows_of(second, "shops.features")["shop_visits_1h"].to_pylist() == [2]
    assert rows_of(second, "shops.view.shop_spend")["shop_visits_1h"].to_pylist() == [1, 2]


def test_a_function_that_raises_costs_its_own_rows_and_counts_no_window_twice() -> None:
    rows: list[Visit] = [("a", "x", n, -1.0 if n in (3, 11) else 1.0, n != 5) for n in range(16)]
    _, second = chain(plan(), rows, [])
    (result,) = second
    assert sorted(result.rejects) == [3, 11]
    assert {why.kind for why in result.rejects.values()} == {"feature function failed"}
    assert "-1.0" not in next(iter(result.rejects.values())).message, "a reason must not quote a row"
    assert sorted(result.dropped) == [5]
    (served,) = [out for out in result.outputs if out.topic == "shops.features"]
    assert served.source.tolist() == [n for n in range(16) if n not in (3, 5, 11)]
    assert served.rows.column("shop_visits_1h").to_pylist() == [n + 1 for n in served.source.tolist()]


def test_a_batch_in_which_every_function_call_fails_is_all_rejects() -> None:
    _, second = chain(plan(), [("a", "x", n, -1.0, True) for n in range(5)], [])
    assert sorted(second[0].rejects) == list(range(5))
    assert len(rows_of(second, "shops.features")) == 0


def test_nan_and_infinity_of_a_function_are_null_and_whole_numbers_stay_whole() -> None:
    rows: list[Visit] = [("a", "x", 0, 0.0, True), (None, "x", 1, 3.0, True), ("a", "x", 2, 3.0, True)]
    _, second = chain(plan(), rows, [])
    served = rows_of(second, "shops.features")
    assert served["share"].to_pylist() == [None, None, 1.0]
    assert served["visits_squared"].to_pylist() == [1, None, 4]


def test_a_late_row_is_counted_and_lands_in_its_own_tile() -> None:
    rows: list[Visit] = [
        ("a", "x", 0, 1.0, True),
        ("a", "x", 20 * MINUTE, 2.0, True),
        ("a", "x", 12 * MINUTE, 4.0, True),
        ("a", "x", 21 * MINUTE, 8.0, True),
    ]
    first, _ = chain(plan(5 * MINUTE), rows, [])
    assert first[0].late == 1
    assert rows_of(first, "shops.by.shop")["customer_sum_10m"].to_pylist() == [1.0, 2.0, 4.0, 14.0]


def test_a_partition_without_a_watermark_has_no_late_rows() -> None:
    log, stage = Log("shops.events", "customer"), build(plan(), "features.customer")
    batch = log.batch(events([("a", "x", 0, 1.0, True)]), [0])
    batch.watermark[:] = NO_TIME
    assert stage.process(batch).late == 0


def test_a_refused_batch_changes_no_window() -> None:
    log, stage = Log("shops.events", "customer"), build(plan(), "features.customer")
    stage.process(log.batch(events([("a", "x", HOUR, 1.0, True), ("b", "x", 0, 1.0, True)]), [0, 1]))
    wrong = log.batch(events([("b", "x", HOUR, 1.0, True), ("a", "x", 0, 1.0, True)]), [1, 0])
    wrong.watermark[1] = 0
    with pytest.raises(ValueError, match="watermark"):
        stage.process(wrong)
    right = log.batch(events([("b", "x", HOUR, 1.0, True)]), [1])
    assert rows_of([stage.process(right)], "shops.by.shop")["customer_visits_1h"].to_pylist() == [1]


def test_the_input_is_left_as_it_was() -> None:
    rows = events([("b", "x", 0, 1.0, True), ("a", "y", 1, None, False), ("b", "x", 2, 3.0, True)])
    before = rows.to_pylist()
    batch = Log("shops.events", "customer").batch(rows, [1, 0, 1])
    arrays = [batch.partition, batch.offset, batch.event_time, batch.watermark]
    kept = [array.copy() for array in arrays]
    build(plan(), "features.customer").process(batch)
    assert rows.to_pylist() == before
    assert all(np.array_equal(array, copy) for array, copy in zip(arrays, kept, strict=True))


def test_how_far_back_the_state_reaches_is_window_lateness_and_tile() -> None:
    assert build(plan(5 * MINUTE), "features.shop").reach("shops.by.shop") == HOUR + 5 * MINUTE + MINUTE


def test_a_service_column_that_nothing_computes_is_refused_at_the_start() -> None:
    made = plan()
    lost = made.model_copy(update={"on_demand": ()})
    with pytest.raises(PlanError, match="'share'"):
        build(lost, "features.shop")


def test_the_state_says_what_it_holds() -> None:
    stage = build(plan(), "features.customer")
    stage.process(Log("s", "customer").batch(events([("a", "x", 0, 1.0, True), ("b", "x", 1, 1.0, True)]), [0, 1]))
    sizes = stage.sizes()
    assert {name: keys for name, (_, keys) in sizes.items()} == {"customer_spend": 2, "customer_habits": 2}
    assert all(size > 0 for size, _ in sizes.values())


def test_events_of_one_time_keep_the_order_of_the_log() -> None:
    rows: list[Visit] = [("a", "x", 7, float(n), True) for n in range(5)]
    first, _ = chain(plan(), rows, [2])
    assert rows_of(first, "shops.by.shop")["customer_last_1h"].to_pylist() == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert rows_of(first, "shops.view.customer_spend")[EVENT_TIME].cast(pa.int64()).to_pylist() == [7] * 5
