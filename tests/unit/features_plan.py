"""A small pipeline's plan, written by hand: shops are visited by customers, windows per customer and then per shop."""

from typing import Any

import numpy as np
import pyarrow as pa

from penstock import envelope
from penstock.plan import (
    FORMAT,
    AggregationPlan,
    ColumnPlan,
    EventPlan,
    InputPlan,
    LabelPlan,
    MonitorPlan,
    OnDemandPlan,
    Plan,
    SchemaPlan,
    ServicePlan,
    StagePlan,
    TopicPlan,
    ViewPlan,
    WhenPlan,
)
from penstock.records import Batch, column
from penstock.windows.watermark import NO_WATERMARK, running_watermark

MINUTE, HOUR = 60_000, 3_600_000
DECLARED: list[dict[str, Any]] = [
    {"name": "visit_id", "type": "string"},
    {"name": "customer", "type": ["null", "string"], "default": None},
    {"name": "shop", "type": "string"},
    {"name": "amount", "type": ["null", "double"], "default": None},
    {"name": "paid", "type": "boolean"},
]
OPTIONAL = {"double": ["null", "double"], "long": ["null", "long"]}
EVENTS = {"type": "record", "name": "Visit", "fields": [*envelope.FIELDS, *DECLARED]}

CUSTOMER = (("customer_sum_10m", "amount", "sum", 10 * MINUTE), ("customer_visits_1h", "visit_id", "count", HOUR))
CUSTOMER_MORE = (("customer_max_1h", "amount", "max", HOUR), ("customer_last_1h", "amount", "last", HOUR))
SHOP = (("shop_mean_1h", "amount", "mean", HOUR), ("shop_visits_1h", "visit_id", "count", HOUR))


def paid(columns: Any) -> Any:
    return np.asarray(columns["paid"], dtype=bool)


def share(columns: Any) -> dict[str, Any]:
    """Of the customer's sum, and where the amount is negative an exception: a function that some rows break."""
    amount = np.asarray(columns["amount"], dtype=np.float64)
    if (amount < 0).any():
        raise ValueError(f"amount {amount.min()} is negative")
    of = np.asarray(columns["customer_sum_10m"], dtype=np.float64)
    return {"share": amount / of, "visits_squared": np.asarray(columns["customer_visits_1h"], dtype=np.float64) ** 2}


def view(name: str, entity: str, aggregations: tuple[tuple[str, str, str, int], ...], lateness_ms: int) -> ViewPlan:
    return ViewPlan(
        name=name,
        entity=entity,
        key=entity,
        aggregations=tuple(
            AggregationPlan(name=n, column=column, function=function, window_ms=window, tile_ms=MINUTE)  # type: ignore[arg-type]
            for n, column, function, window in aggregations
        ),
        lateness_ms=lateness_ms,
        topic=f"shops.view.{name}",
        hash=name,
        key_bytes=8,
    )


def schema(topic: str, fields: list[dict[str, Any]], number: int) -> SchemaPlan:
    name = topic.replace(".", "_")
    return SchemaPlan(subject=f"{topic}-value", id=number, avro={"type": "record", "name": name, "fields": fields})


def nullable(view: ViewPlan) -> list[dict[str, Any]]:
    kinds = {a.name: "long" if a.function == "count" else "double" for a in view.aggregations}
    return [{"name": name, "type": OPTIONAL[kind], "default": None} for name, kind in kinds.items()]


def view_schema(view: ViewPlan, number: int) -> SchemaPlan:
    head = [envelope.FIELDS[0], envelope.FIELDS[3], {"name": "_offset", "type": "long"}]
    key = {"name": view.key, "type": "string"}
    assert view.topic is not None
    return schema(view.topic, [*head, key, *nullable(view)], number)


def plan(lateness_ms: int = 5 * MINUTE, feature_store: str | None = None) -> Plan:
    """customer (two views) → shop (one view) → the service's columns, the label's key and two on-demand columns."""
    views = (
        view("customer_spend", "customer", CUSTOMER, lateness_ms),
        view("customer_habits", "customer", CUSTOMER_MORE, lateness_ms),
        view("shop_spend", "shop", SHOP, lateness_ms),
    )
    upstream = nullable(views[0]) + nullable(views[1])
    columns = [
        ColumnPlan(name=field["name"], type=field["type"])
        for field in [*upstream, *nullable(views[2]), {"name": "share", "type": OPTIONAL["double"]}]
    ] + [ColumnPlan(name="visits_squared", type=OPTIONAL["long"])]
    events = SchemaPlan(subject="shops.events-value", id=1, avro=EVENTS)
    by_shop = schema("shops.by.shop", [*envelope.FIELDS, *DECLARED, *upstream], 2)
    label_key = {"name": envelope.LABEL_KEY, "type": ["null", "string"]}
    features = schema(
        "shops.features",
        [*envelope.FIELDS, label_key, *({"name": c.name, "type": c.type, "default": None} for c in columns)],
        3,
    )
    view_schemas = [view_schema(view, 4 + number) for number, view in enumerate(views)]
    view_topics = [str(view.topic) for view in views]
    stages = (
        StagePlan(
            name="features.customer",
            inputs=(InputPlan(topic="shops.events", format="avro", value=events, event_time=envelope.EVENT_TIME),),
            outputs=(*view_topics[:2], "shops.by.shop"),
            rekeys=True,
            entity="customer",
            views=("customer_spend", "customer_habits"),
            next_key="shop",
        ),
        StagePlan(
            name="features.shop",
            inputs=(InputPlan(topic="shops.by.shop", format="avro", value=by_shop, event_time=envelope.EVENT_TIME),),
            outputs=(view_topics[2], "shops.features"),
            entity="shop",
            views=("shop_spend",),
            last=True,
        ),
        StagePlan(
            name="features.feast",
            inputs=tuple(
                InputPlan(topic=topic, format="avro", value=value, event_time=envelope.EVENT_TIME)
                for topic, value in zip(view_topics, view_schemas, strict=True)
            ),
            outputs=(),
        ),
    )
    values = {"shops.events": events, "shops.by.shop": by_shop, "shops.features": features}
    values |= dict(zip(view_topics, view_schemas, strict=True))
    declared = {"type": "record", "name": "Visit", "fields": DECLARED}
    return Plan(
        format=FORMAT,
        pipeline="shops",
        source="tests",
        partitions=2,
        lateness_ms=lateness_ms,
        event=EventPlan(
            avro=declared,
            id=0,
            subject="shops.raw-value",
            event_id="visit_id",
            timestamp="at",
            key="customer",
            max_bytes=10_000,
            future_ms=0,
        ),
        label=LabelPlan(
            avro=declared,
            id=0,
            subject="shops.labels-value",
            key="visit_id",
            value="paid",
            timestamp="at",
            horizon_ms=HOUR,
        ),
        when=WhenPlan(function=f"{__name__}:paid", otherwise="not paid"),
        topics=tuple(TopicPlan(name=name, value=value, partitions=2) for name, value in values.items()),
        stages=stages,
        views=views,
        on_demand=(
            OnDemandPlan(
                name="share",
                function=f"{__name__}:share",
                inputs=("amount", "customer_sum_10m", "customer_visits_1h"),
                outputs=(
                    ColumnPlan(name="share", type=OPTIONAL["double"]),
                    ColumnPlan(name="visits_squared", type=OPTIONAL["long"]),
                ),
            ),
        ),
        service=ServicePlan(name="spending", columns=tuple(columns), hash="spending"),
        model=None,
        monitors=MonitorPlan(
            pane_ms=HOUR, window_ms=HOUR, idle_ms=HOUR, psi=1, js=1, null_rate=1, minimum_rows=1, baseline=None
        ),
        feature_store=feature_store,
        schemas={value.id: value.avro for value in values.values()},
    )


def events(rows: list[tuple[str | None, str, int, float | None, bool]], first: int = 0) -> pa.RecordBatch:
    """(customer, shop, event time, amount, paid) as `shops.events` has them."""
    numbers = range(first, first + len(rows))
    times = pa.array([at for _, _, at, _, _ in rows], pa.timestamp("ms"))
    return pa.RecordBatch.from_pydict(
        {
            envelope.EVENT_ID: [f"e{number}" for number in numbers],
            envelope.ORIGIN_PARTITION: pa.array([0] * len(rows), pa.int32()),
            envelope.ORIGIN_OFFSET: pa.array(list(numbers), pa.int64()),
            envelope.EVENT_TIME: times,
            envelope.INGEST_TIME: times,
            envelope.TRACEPARENT: pa.nulls(len(rows), pa.string()),
            envelope.REPLAYS: pa.nulls(len(rows), pa.string()),
            "visit_id": [f"e{number}" for number in numbers],
            "customer": pa.array([customer for customer, *_ in rows], pa.string()),
            "shop": pa.array([shop for _, shop, *_ in rows], pa.string()),
            "amount": pa.array([amount for *_, amount, _ in rows], pa.float64()),
            "paid": pa.array([paid for *_, paid in rows], pa.bool_()),
        }
    )


class Log:
    """Turns rows into batches as the loop does: offsets and watermarks by partition, wherever batches are cut."""

    def __init__(self, topic: str, key: str) -> None:
        self._topic, self._key = topic, key
        self._offset: dict[int, int] = {}
        self._watermark: dict[int, int] = {}

    def batch(self, rows: pa.RecordBatch, partitions: list[int], *, replay: bool = False) -> Batch:
        partition = np.array(partitions, np.int32)
        times = rows.column(envelope.EVENT_TIME).cast(pa.int64()).to_numpy()
        offset, watermark = np.empty(len(rows), np.int64), np.empty(len(rows), np.int64)
        for number in set(partitions):
            places = np.flatnonzero(partition == number)
            start, newest = self._offset.get(number, 0), self._watermark.get(number, NO_WATERMARK)
            offset[places] = np.arange(start, start + len(places))
            watermark[places] = running_watermark(times[places], newest)
            self._offset[number] = start + len(places)
            self._watermark[number] = max(newest, int(times[places].max()))
        keys = column([None if key is None else str(key).encode() for key in rows.column(self._key).to_pylist()])
        return Batch(self._topic, rows, keys, partition, offset, times, times, watermark, replay)
