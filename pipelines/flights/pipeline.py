"""The flights pipeline: will this flight arrive 15 minutes late or more, said when it leaves the gate."""

from datetime import timedelta

from penstock.pipeline import Label, Model, Monitors, Pipeline, When

pipeline = Pipeline(
    name="flights",
    event_id="flight_id",
    timestamp="timestamp",
    feature_service="pipelines.flights.features:flight_delay",
    predict_when=When(function="pipelines.flights.functions:departed", otherwise="no departure"),
    label=Label(key="flight_id", value="late", timestamp="landed_at", horizon=timedelta(days=2)),
    model=Model(name="flight_delay"),
    # a day at these airports is too noisy to alarm on; hourly panes of a year are more than Faust merges in a minute
    monitors=Monitors(pane=timedelta(days=1), window=timedelta(days=7), baseline="departure_delay"),
    lateness=timedelta(days=2),
)
