"""The windows in the features, against SQL on the very log that the features stages read. DuckDB knows of no batches,
tiles in memory or restarts: it sees a table of events in log order.
"""

from typing import Any

import duckdb
import pyarrow as pa
import pytest

from penstock.plan import AggregationPlan
from tests.integration.conftest import Feed
from tests.integration.pipeline_world import World

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]

SQL = {
    "count": "count(e.x)",
    "sum": "sum(e.x)",
    "mean": "avg(e.x)",
    "min": "min(e.x)",
    "max": "max(e.x)",
    "std": "CASE WHEN count(e.x) > 1 THEN stddev_samp(e.x) END",
    "last": "arg_max(e.x, struct_pack(t := e.t, o := e.o)) FILTER (e.x IS NOT NULL)",
}
WINDOW = """
    SELECT r.id, {aggregate}
    FROM log r JOIN log e
      ON e.k = r.k AND e.o <= r.o AND e.t // {tile} <= r.t // {tile} AND e.t // {tile} > r.t // {tile} - {tiles}
    WHERE r.id IN (SELECT id FROM asked)
    GROUP BY r.id
"""


@pytest.fixture(scope="module", autouse=True)
def played(world: World, feed: Feed) -> None:
    world.play(feed.take(3000))


def log_of(world: World, suffix: str, key: str, column: str) -> pa.Table:
    """A topic as a table: event id, key, event time in ms, place in the log, value."""
    rows = []
    watermark: dict[int, float] = {}
    for message in world.records(suffix):
        row = world.schemas.decode(message.value())
        time = round(row["_event_time"].timestamp() * 1000)
        newest = watermark.get(message.partition(), time)
        # so that no tile had to be given up, and SQL needs no rule for rows that come too late
        assert time >= newest - world.plan.lateness_ms
        watermark[message.partition()] = max(newest, time)
        value = row[column]
        rows.append(
            {
                "id": row["_event_id"],
                "k": row[key],
                "t": time,
                "o": message.offset(),
                "x": value if isinstance(value, float | None) else 1.0,
            }
        )
    schema = pa.schema(
        [("id", pa.string()), ("k", pa.string()), ("t", pa.int64()), ("o", pa.int64()), ("x", pa.float64())]
    )
    return pa.Table.from_pylist(rows, schema)


def in_sql(log: pa.Table, asked: pa.Table, aggregation: AggregationPlan) -> dict[str, Any]:
    question = WINDOW.format(
        aggregate=SQL[aggregation.function],
        tile=aggregation.tile_ms,
        tiles=aggregation.window_ms // aggregation.tile_ms,
    )
    with duckdb.connect() as sql:
        sql.register("log", log)
        sql.register("asked", asked)
        return dict(sql.execute(question).fetchall())


@pytest.mark.parametrize(
    ("view", "suffix", "key"), [("aircraft_delays", "events", "tailnum"), ("airport_delays", "by.airport", "origin")]
)
def test_every_window_in_the_features_is_that_of_sql_on_the_log(world: World, view: str, suffix: str, key: str) -> None:
    features = {row["_event_id"]: row for row in world.rows("features")}
    newest = sorted(features, key=lambda flight: features[flight]["_event_time"])[-1500:]
    asked = pa.table({"id": newest})
    plan = world.plan.view(view)
    logs = {a.column: log_of(world, suffix, key, a.column) for a in plan.aggregations}
    without_key = 0
    for aggregation in plan.aggregations:
        expected = in_sql(logs[aggregation.column], asked, aggregation)
        for flight in newest:
            got = features[flight][aggregation.name]
            if flight not in expected:  # without a tail number
                without_key += 1
                assert got is None
            elif expected[flight] is None:
                assert got is None, (flight, aggregation.name, got)
            else:
                assert got == pytest.approx(expected[flight], rel=1e-9, abs=1e-6), (flight, aggregation.name)
    assert without_key < 0.05 * len(newest) * len(plan.aggregations)
