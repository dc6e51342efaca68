"""The fraud pipeline: is this card transaction fraud. Synthetic, at any rate, for load and for the benchmarks.

``windows`` is the same pipeline with its six windowed columns alone and no model.
"""

from datetime import timedelta

from penstock.pipeline import Label, Model, Monitors, Pipeline

pipeline = Pipeline(
    name="fraud",
    event_id="event_id",
    timestamp="ts",
    feature_service="pipelines.fraud.features:card_fraud",
    label=Label(key="event_id", value="fraud", timestamp="reported_at", horizon=timedelta(hours=6)),
    model=Model(name="card_fraud"),
    monitors=Monitors(pane=timedelta(minutes=10), window=timedelta(hours=1), baseline="amount_spent"),
)

windows = pipeline.model_copy(
    update={
        "name": "fraud_windows",
        "feature_service": "pipelines.fraud.features:card_windows",
        "model": None,
        "label": None,
        "monitors": Monitors(),
    }
)
