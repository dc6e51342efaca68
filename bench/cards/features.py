"""One view, one window of an hour in 60 tiles, three aggregations, and the amount itself. Nothing goes to Feast,
so the features topic is all that is written.
"""

from datetime import timedelta
from pathlib import Path

from feast import Entity, FeatureService, Field, FileSource, KafkaSource, RequestSource, StreamFeatureView
from feast.aggregation import Aggregation
from feast.data_format import AvroFormat, ParquetFormat
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Float64, Int64, String
from feast.value_type import ValueType

HOUR = timedelta(hours=1)

card = Entity(name="card", join_keys=["card_id"], value_type=ValueType.STRING)

transactions = KafkaSource(
    name="transactions",
    kafka_bootstrap_servers="localhost:9092",
    topic="cards.events",
    timestamp_field="ts",
    message_format=AvroFormat(Path(__file__).with_name("event.avsc").read_text()),
    batch_source=FileSource(
        name="card_hour_history",
        path="../../var/cards/offline/card_hour",
        timestamp_field="_event_time",
        file_format=ParquetFormat(),
    ),
)

card_hour = StreamFeatureView(
    name="card_hour",
    entities=[card],
    source=transactions,
    schema=[
        Field(name="card_id", dtype=String),
        Field(name="count_1h", dtype=Int64),
        Field(name="sum_1h", dtype=Float64),
        Field(name="max_1h", dtype=Float64),
    ],
    aggregations=[
        Aggregation(column="amount", function="count", time_window=HOUR, name="count_1h"),
        Aggregation(column="amount", function="sum", time_window=HOUR, name="sum_1h"),
        Aggregation(column="amount", function="max", time_window=HOUR, name="max_1h"),
    ],
    mode="python",
    timestamp_field="ts",
    online=False,
    offline=False,
)

event = RequestSource(name="card_event", schema=[Field(name="amount", dtype=Float64)])


@on_demand_feature_view(  # type: ignore[untyped-decorator]  # feast ships no types
    sources=[event], schema=[Field(name="amount_now", dtype=Float64)], mode="python"
)
def amounts(inputs: dict[str, object]) -> dict[str, object]:
    from bench.cards import functions

    return {name: column.tolist() for name, column in functions.amounts(inputs).items()}


card_hour_windows = FeatureService(name="card_hour_windows", features=[card_hour, amounts])
