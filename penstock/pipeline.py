"""What a person writes: one ``Pipeline(...)`` per folder. Declaring it imports nothing heavy; ``penstock plan``
compiles the folder (schemas, Feast definitions, functions) into the JSON plan that workers start from.
"""

from datetime import timedelta
from importlib.util import find_spec
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,62}$")]


class Declared(BaseModel):
    """A declaration: immutable, and a mistyped field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Label(Declared):
    """The late truth about an event, as it arrives on ``NAME.labels``.

    ``schema_file`` is relative to the pipeline's folder; ``key`` names the field that exists in the event *and* in the
    label and joins them; ``value`` is the label's field that holds the outcome; ``timestamp`` when it became known;
    ``horizon`` how long a prediction waits for its label.
    """

    schema_file: str = "label.avsc"
    key: str
    value: str
    timestamp: str
    horizon: timedelta


class When(Declared):
    """Which events are predicted: ``function`` (``functions:departed``) maps the event's columns (dict of numpy arrays)
    to bool[n]; the others feed the windows and are then dropped with ``otherwise`` as the reason."""

    function: str
    otherwise: str


class Model(Declared):
    """The model behind the predictions: ``models/NAME/VERSION`` in the registry.

    ``task``: binary gives one score in [0, 1], a label at ``threshold`` and a confidence max(p, 1 - p); regression
    gives the score alone. ``fallback`` answers in the model's place when it raises or returns NaN (None: such rows are
    dead letters).
    """

    name: Name
    task: Literal["binary", "regression"] = "binary"
    threshold: float = 0.5
    fallback: float | None = None


class Monitors(Declared):
    """What is watched, in event time: partial profiles per ``pane``, merged into windows of ``window`` that close by
    watermark or after ``idle`` of wall-clock silence. ``baseline`` names a service column whose own ranking the model
    has to beat (AUC).
    """

    pane: timedelta = timedelta(hours=1)
    window: timedelta = timedelta(days=1)
    idle: timedelta = timedelta(seconds=30)
    psi: float = 0.2
    js: float = 0.1
    null_rate: float = 0.05
    minimum_rows: int = 500
    baseline: str | None = None


class Pipeline(Declared):
    """One streaming ML system.

    ``timestamp`` and ``event_id`` name fields of the event (no ``event_id``: raw topic-partition-offset is it).
    ``deduplicate`` drops an event whose ``event_id`` came before on its entity's partition, until event time there is
    that much past the newest event with that id (None: every record counts). It costs some 200 bytes of memory and
    three times the id for each event of that time.
    ``feature_service`` is ``features:OBJECT``, the Feast FeatureService whose columns the model reads. The entity of
    the first view keys ``NAME.events``; further entities are chained in the order in which the service names their
    views. ``lateness`` is how far an event may lag behind its partition's newest and still be counted; ``future`` how
    far an event time may lie ahead of its arrival before it is a dead letter; ``max_event_bytes`` is checked before
    anything is decoded.
    """

    name: Name
    event_schema: str = "event.avsc"
    event_id: str | None = None
    deduplicate: timedelta | None = Field(default=None, ge=timedelta(milliseconds=1))
    timestamp: str
    feature_service: str
    label: Label | None = None
    predict_when: When | None = None
    model: Model | None = None
    monitors: Monitors = Monitors()
    partitions: int = Field(default=4, ge=1, le=1024)
    lateness: timedelta = timedelta(minutes=10)
    future: timedelta = timedelta(minutes=5)
    max_event_bytes: int = Field(default=1_000_000, ge=64)


def train_module(source: str) -> str | None:
    """The module ``train`` beside the pipeline that the import string ``source`` names; None where it has none."""
    package = source.partition(":")[0].rpartition(".")[0]
    try:
        there = bool(package) and find_spec(f"{package}.train") is not None
    except ModuleNotFoundError:
        there = False
    return f"{package}.train" if there else None
