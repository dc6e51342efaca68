"""The job that other stream processors were given, as a pipeline: per transaction the count, sum and largest amount of
its card in the last hour.
"""

from penstock.pipeline import Pipeline

pipeline = Pipeline(
    name="cards", event_id="event_id", timestamp="ts", feature_service="bench.cards.features:card_hour_windows"
)
