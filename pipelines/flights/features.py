"""What the model knows about a departure, in Feast's own language; ``feast apply`` accepts this file unchanged.

Two entities in a chain: windows of delays per aircraft, then per origin airport. A window holds the event itself and
everything earlier of its key, in event time. No worker ever loads this module, because it imports feast: the plan is
compiled from it, and each on-demand view stands for the function of its name in ``functions``. Stock Feast runs a view
from its source text alone, hence the imports inside.
"""

from datetime import timedelta
from pathlib import Path

from feast import Entity, FeatureService, Field, FileSource, KafkaSource, RequestSource, StreamFeatureView
from feast.aggregation import Aggregation
from feast.data_format import AvroFormat, ParquetFormat
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Float64, Int64, String
from feast.value_type import ValueType

HOUR, DAY = timedelta(hours=1), timedelta(days=1)

aircraft = Entity(name="aircraft", join_keys=["tailnum"], value_type=ValueType.STRING, description="a tail number")
airport = Entity(
    name="airport", join_keys=["origin"], value_type=ValueType.STRING, description="the airport of departure"
)


def departures(view: str) -> KafkaSource:
    """The stream of valid departures, with the history that Penstock writes for ``view`` as its batch source."""
    return KafkaSource(
        name=f"departures_of_{view}",
        kafka_bootstrap_servers="localhost:9092",
        topic="flights.events",
        timestamp_field="timestamp",
        message_format=AvroFormat(Path(__file__).with_name("event.avsc").read_text()),
        batch_source=FileSource(
            name=f"{view}_history",
            path=f"../../var/flights/offline/{view}",
            timestamp_field="_event_time",
            file_format=ParquetFormat(),
        ),
    )


def over(window: timedelta, slide: timedelta, column: str, function: str, name: str) -> Aggregation:
    return Aggregation(column=column, function=function, time_window=window, slide_interval=slide, name=name)


aircraft_delays = StreamFeatureView(
    name="aircraft_delays",
    entities=[aircraft],
    source=departures("aircraft_delays"),
    schema=[
        Field(name="tailnum", dtype=String),
        Field(name="aircraft_delay_mean_6h", dtype=Float64),
        Field(name="aircraft_departures_1d", dtype=Int64),
        Field(name="aircraft_delay_sum_1d", dtype=Float64),
        Field(name="aircraft_delay_max_1d", dtype=Float64),
        Field(name="aircraft_delay_mean_7d", dtype=Float64),
        Field(name="aircraft_delay_last_7d", dtype=Float64),
    ],
    aggregations=[
        over(6 * HOUR, HOUR / 4, "dep_delay", "mean", "aircraft_delay_mean_6h"),
        over(DAY, HOUR, "dep_delay", "count", "aircraft_departures_1d"),
        over(DAY, HOUR, "dep_delay", "sum", "aircraft_delay_sum_1d"),
        over(DAY, HOUR, "dep_delay", "max", "aircraft_delay_max_1d"),
        over(7 * DAY, 6 * HOUR, "dep_delay", "mean", "aircraft_delay_mean_7d"),
        over(7 * DAY, 6 * HOUR, "dep_delay", "last", "aircraft_delay_last_7d"),
    ],
    mode="python",
    timestamp_field="timestamp",
    online=True,
    offline=True,
)

airport_delays = StreamFeatureView(
    name="airport_delays",
    entities=[airport],
    source=departures("airport_delays"),
    schema=[
        Field(name="origin", dtype=String),
        Field(name="airport_delay_mean_1h", dtype=Float64),
        Field(name="airport_delay_std_1h", dtype=Float64),
        Field(name="airport_delay_max_1h", dtype=Float64),
        Field(name="airport_delay_mean_6h", dtype=Float64),
        Field(name="airport_departures_6h", dtype=Int64),
        Field(name="airport_flights_6h", dtype=Int64),
    ],
    aggregations=[
        over(HOUR, HOUR / 12, "dep_delay", "mean", "airport_delay_mean_1h"),
        over(HOUR, HOUR / 12, "dep_delay", "std", "airport_delay_std_1h"),
        over(HOUR, HOUR / 12, "dep_delay", "max", "airport_delay_max_1h"),
        over(6 * HOUR, HOUR / 4, "dep_delay", "mean", "airport_delay_mean_6h"),
        over(6 * HOUR, HOUR / 4, "dep_delay", "count", "airport_departures_6h"),
        over(6 * HOUR, HOUR / 4, "flight_id", "count", "airport_flights_6h"),
    ],
    mode="python",
    timestamp_field="timestamp",
    online=True,
    offline=True,
)

# without `origin`: stock Feast takes a name as a join key or as request data, never as both
event = RequestSource(
    name="departure_event",
    schema=[
        Field(name="flight_id", dtype=String),
        Field(name="dep_delay", dtype=Float64),
        Field(name="sched_hour", dtype=Int64),
        Field(name="sched_dow", dtype=Int64),
        Field(name="carrier", dtype=String),
        Field(name="dest", dtype=String),
        Field(name="distance", dtype=Float64),
        Field(name="temp", dtype=Float64),
        Field(name="dewp", dtype=Float64),
        Field(name="wind_speed", dtype=Float64),
        Field(name="precip", dtype=Float64),
        Field(name="pressure", dtype=Float64),
        Field(name="visib", dtype=Float64),
    ],
)


@on_demand_feature_view(  # type: ignore[untyped-decorator]  # feast ships no types
    sources=[event],
    schema=[
        Field(name="departure_delay", dtype=Float64),
        Field(name="hour_of_day", dtype=Int64),
        Field(name="day_of_week", dtype=Int64),
        Field(name="airline", dtype=String),
        Field(name="departure_airport", dtype=String),
        Field(name="destination", dtype=String),
        Field(name="distance_miles", dtype=Float64),
    ],
    mode="python",
)
def departure(inputs: dict[str, object]) -> dict[str, object]:
    from pipelines.flights import functions

    return {name: column.tolist() for name, column in functions.departure(inputs).items()}


@on_demand_feature_view(  # type: ignore[untyped-decorator]  # feast ships no types
    sources=[event],
    schema=[
        Field(name="temperature", dtype=Float64),
        Field(name="dew_point_spread", dtype=Float64),
        Field(name="wind", dtype=Float64),
        Field(name="precipitation", dtype=Float64),
        Field(name="air_pressure", dtype=Float64),
        Field(name="visibility", dtype=Float64),
    ],
    mode="python",
)
def weather(inputs: dict[str, object]) -> dict[str, object]:
    from pipelines.flights import functions

    return {name: column.tolist() for name, column in functions.weather(inputs).items()}


@on_demand_feature_view(  # type: ignore[untyped-decorator]  # feast ships no types
    sources=[event, aircraft_delays, airport_delays],
    schema=[
        Field(name="aircraft_earlier_delay_1d", dtype=Float64),
        Field(name="delay_beyond_airport_1h", dtype=Float64),
        Field(name="airport_cancelled_share_6h", dtype=Float64),
    ],
    mode="python",
)
def knock_on(inputs: dict[str, object]) -> dict[str, object]:
    from pipelines.flights import functions

    return {name: column.tolist() for name, column in functions.knock_on(inputs).items()}


flight_delay = FeatureService(
    name="flight_delay",
    features=[departure, weather, aircraft_delays, airport_delays, knock_on],
)
