"""What the model knows about a card transaction, in Feast's own language: two views of one card, four windows, and one
on-demand view. ``card_windows`` names the six windowed columns alone, for the benchmarks.
"""

from datetime import timedelta
from pathlib import Path

from feast import Entity, FeatureService, Field, FileSource, KafkaSource, RequestSource, StreamFeatureView
from feast.aggregation import Aggregation
from feast.data_format import AvroFormat, ParquetFormat
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Bool, Float64, Int64, String
from feast.value_type import ValueType

MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)

card = Entity(name="card", join_keys=["card_id"], value_type=ValueType.STRING)


def transactions(view: str) -> KafkaSource:
    """The stream of valid transactions, with the history that Penstock writes for ``view`` as its batch source."""
    return KafkaSource(
        name=f"transactions_of_{view}",
        kafka_bootstrap_servers="localhost:9092",
        topic="fraud.events",
        timestamp_field="ts",
        message_format=AvroFormat(Path(__file__).with_name("event.avsc").read_text()),
        batch_source=FileSource(
            name=f"{view}_history",
            path=f"../../var/fraud/offline/{view}",
            timestamp_field="_event_time",
            file_format=ParquetFormat(),
        ),
    )


card_activity = StreamFeatureView(
    name="card_activity",
    entities=[card],
    source=transactions("card_activity"),
    schema=[
        Field(name="card_id", dtype=String),
        Field(name="transactions_10m", dtype=Int64),
        Field(name="spent_10m", dtype=Float64),
        Field(name="transactions_1h", dtype=Int64),
    ],
    aggregations=[
        Aggregation(column="amount", function="count", time_window=10 * MINUTE, name="transactions_10m"),
        Aggregation(column="amount", function="sum", time_window=10 * MINUTE, name="spent_10m"),
        Aggregation(column="amount", function="count", time_window=HOUR, name="transactions_1h"),
    ],
    mode="python",
    timestamp_field="ts",
    online=True,
    offline=True,
)

card_amounts = StreamFeatureView(
    name="card_amounts",
    entities=[card],
    source=transactions("card_amounts"),
    schema=[
        Field(name="card_id", dtype=String),
        Field(name="max_amount_6h", dtype=Float64),
        Field(name="mean_amount_1d", dtype=Float64),
        Field(name="std_amount_1d", dtype=Float64),
    ],
    aggregations=[
        Aggregation(column="amount", function="max", time_window=6 * HOUR, name="max_amount_6h"),
        Aggregation(column="amount", function="mean", time_window=DAY, name="mean_amount_1d"),
        Aggregation(column="amount", function="std", time_window=DAY, name="std_amount_1d"),
    ],
    mode="python",
    timestamp_field="ts",
    online=True,
    offline=True,
)

event = RequestSource(
    name="transaction_event",
    schema=[
        Field(name="amount", dtype=Float64),
        Field(name="country", dtype=String),
        Field(name="present", dtype=Bool),
    ],
)


@on_demand_feature_view(  # type: ignore[untyped-decorator]  # feast ships no types
    sources=[event, card_amounts],
    schema=[
        Field(name="amount_spent", dtype=Float64),
        Field(name="amount_over_mean", dtype=Float64),
        Field(name="card_present", dtype=Int64),
        Field(name="abroad", dtype=Int64),
    ],
    mode="python",
)
def spending(inputs: dict[str, object]) -> dict[str, object]:
    from pipelines.fraud import functions

    return {name: column.tolist() for name, column in functions.spending(inputs).items()}


card_windows = FeatureService(name="card_windows", features=[card_activity, card_amounts])
card_fraud = FeatureService(name="card_fraud", features=[card_activity, card_amounts, spending])
