"""The compiled pipeline: everything a worker needs, as one JSON file. Workers load it and nothing else, because
importing Feast takes seconds and hundreds of megabytes.

Each view and the feature service carry a hash of their own (schema, windows, columns, function source): state belongs
to a view's hash, a model to the service's. The plan's own hash only names the deployment.
"""

import hashlib
import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

FORMAT: Final = 2
"""Rises with what a worker expects of a plan: its fields, and the columns of the envelope."""

AvroSchema = dict[str, Any]


class PlanError(Exception):
    """A plan that cannot be loaded or does not hold what a worker needs; the message names the mend."""


class Planned(BaseModel):
    """A part of the plan: immutable, and an unknown field means another version wrote it."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class SchemaPlan(Planned):
    """The schema in force of one topic's values; ``id`` is the one of the registry in force."""

    subject: str
    id: int
    avro: AvroSchema


class TopicPlan(Planned):
    """A topic that ``penstock topics`` makes and checks. ``value`` is None for topics that hold foreign bytes (raw,
    dead) or no Avro (replayed).
    """

    name: str
    value: SchemaPlan | None = None
    partitions: int
    compacted: bool = False


class ColumnPlan(Planned):
    """A column with its Avro type, e.g. ``double`` or ``["null", "double"]``."""

    name: str
    type: Any


class AggregationPlan(Planned):
    """One windowed aggregation of an event's column. ``tile_ms`` divides ``window_ms``."""

    name: str
    column: str
    function: Literal["count", "sum", "mean", "min", "max", "std", "last"]
    window_ms: int
    tile_ms: int


class ViewPlan(Planned):
    """One StreamFeatureView: windows of ``aggregations`` per value of the event's column ``key``.

    ``topic`` is None when the view is written neither online nor offline. ``upstream`` names the views of earlier
    stages in the chain. ``hash`` covers what the values depend on. ``key_bytes``: memory of one key's windows, its name
    not counted.
    """

    name: str
    entity: str
    key: str
    aggregations: tuple[AggregationPlan, ...]
    lateness_ms: int
    ttl_ms: int | None = None
    online: bool = True
    offline: bool = True
    topic: str | None = None
    upstream: tuple[str, ...] = ()
    hash: str
    key_bytes: int


class OnDemandPlan(Planned):
    """A vectorised function over columns: ``function`` is ``module:name`` of a module that imports no feast."""

    name: str
    function: str
    inputs: tuple[str, ...]
    outputs: tuple[ColumnPlan, ...]


class ServicePlan(Planned):
    """The FeatureService: the model's columns, in order."""

    name: str
    columns: tuple[ColumnPlan, ...]
    hash: str


class EventPlan(Planned):
    """What ingest has to know of an event. ``schema`` is the declared one, without the envelope. ``deduplicate_ms``:
    the horizon in which the first features stage looks for copies; None where it does not."""

    avro: AvroSchema
    id: int
    subject: str
    event_id: str | None
    timestamp: str
    key: str
    max_bytes: int
    future_ms: int
    deduplicate_ms: int | None = None


class LabelPlan(Planned):
    """What ingest and monitor have to know of a label."""

    avro: AvroSchema
    id: int
    subject: str
    key: str
    value: str
    timestamp: str
    horizon_ms: int


class WhenPlan(Planned):
    """``function`` maps dict of numpy columns to bool[n]; rows where it is false are dropped as ``otherwise``."""

    function: str
    otherwise: str


class ModelPlan(Planned):
    name: str
    task: Literal["binary", "regression"]
    threshold: float
    fallback: float | None


class MonitorPlan(Planned):
    pane_ms: int
    window_ms: int
    idle_ms: int
    psi: float
    js: float
    null_rate: float
    minimum_rows: int
    baseline: str | None


class InputPlan(Planned):
    """A topic that a stage reads. ``raw`` values are JSON or Avro told apart by the frame, ``avro`` ones always framed
    Avro. ``event_time`` names the decoded column that holds the event's time. ``value`` is the reader's schema.
    """

    topic: str
    format: Literal["raw", "avro"]
    value: SchemaPlan
    event_time: str
    max_bytes: int | None = None
    future_ms: int = 0


class StagePlan(Planned):
    """One group of workers, ``PIPELINE.NAME``.

    ``kind`` (before the dot of the name) finds the service. ``rekeys``: it writes under another key, so the loop merges
    its partitions by event time. ``views`` are computed here; ``last`` stages of the chain also compute the on-demand
    views and write the service's columns.
    """

    name: str
    inputs: tuple[InputPlan, ...]
    outputs: tuple[str, ...]
    rekeys: bool = False
    entity: str | None = None
    views: tuple[str, ...] = ()
    last: bool = False
    next_key: str | None = None

    @property
    def kind(self) -> str:
        return self.name.split(".", 1)[0]


class Plan(Planned):
    """One deployment of one pipeline."""

    format: Literal[2]
    pipeline: str
    source: str
    partitions: int
    lateness_ms: int
    event: EventPlan
    label: LabelPlan | None
    when: WhenPlan | None
    topics: tuple[TopicPlan, ...]
    stages: tuple[StagePlan, ...]
    views: tuple[ViewPlan, ...]
    on_demand: tuple[OnDemandPlan, ...]
    service: ServicePlan
    model: ModelPlan | None
    monitors: MonitorPlan
    feature_store: str | None = None
    schemas: dict[int, AvroSchema] = {}
    """Every schema of the pipeline's lock by id, older versions too: what a worker resolves writers' ids with before it
    asks a registry.
    """

    @property
    def hash(self) -> str:
        return fingerprint(self.model_dump(mode="json"))

    def topic(self, suffix: str) -> TopicPlan:
        """The topic ``PIPELINE.SUFFIX``."""
        return self.named(f"{self.pipeline}.{suffix}")

    def named(self, name: str) -> TopicPlan:
        for topic in self.topics:
            if topic.name == name:
                return topic
        raise PlanError(
            f"plan of {self.pipeline!r} has no topic {name!r}; it has {', '.join(t.name for t in self.topics)}"
        )

    def stage(self, name: str) -> StagePlan:
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise PlanError(
            f"plan of {self.pipeline!r} has no stage {name!r}; it has {', '.join(s.name for s in self.stages)}"
        )

    def view(self, name: str) -> ViewPlan:
        for view in self.views:
            if view.name == name:
                return view
        raise PlanError(
            f"plan of {self.pipeline!r} has no view {name!r}; it has {', '.join(v.name for v in self.views)}"
        )

    def group(self, stage: str) -> str:
        """The consumer group of a stage's workers."""
        return f"{self.pipeline}.{stage}"

    def keyed(self, stage: str) -> dict[str, int]:
        """This plan's topics of a stage, read or written, in which keys are looked for in their partitions, and how
        many these are. Topics that users write are not among them: ingest gives their rows keys of its own."""
        keyed = {source.topic for each in self.stages for source in each.inputs if source.format != "raw"}
        mine = self.stage(stage)
        used = keyed & {*(source.topic for source in mine.inputs), *mine.outputs}
        return {topic.name: topic.partitions for topic in self.topics if topic.name in used}

    def save(self, path: Path) -> None:
        """Raises ``PlanError`` where no file can be written."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(self.model_dump_json(indent=1))
        except OSError as error:
            raise PlanError(
                f"the plan cannot be written to {path}: {error.strerror}. Name a file that you may write to"
            ) from None

    @staticmethod
    def load(path: Path) -> "Plan":
        """Raises ``PlanError`` when the file is missing, was written by another version, or is damaged."""
        try:
            return Plan.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            raise PlanError(f"no plan at {path}. Make it with `penstock plan PIPELINE --out {path}`") from None
        except OSError as error:
            raise PlanError(f"{path} is no plan that can be read: {error.strerror}") from None
        except ValidationError as error:
            first = error.errors()[0]
            where = ": ".join(filter(None, (str(path), ".".join(str(part) for part in first["loc"]))))
            raise PlanError(f"{where}: {first['msg']}. Compile the plan again with this version of penstock") from None


def fingerprint(value: Any) -> str:
    """sha256 of the canonical JSON of ``value``, 16 hex digits."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def load_object(path: str, example: str = "pipelines.flights.pipeline:pipeline") -> Any:
    """The object behind ``module:name``, of which ``example`` is one for people. Raises ``PlanError`` naming what is
    missing, or the line that is no Python."""
    module_name, _, attribute = path.partition(":")
    if not attribute:
        raise PlanError(f"{path!r} is not of the form module:name, e.g. {example}")
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and module_name.startswith(error.name):
            raise PlanError(
                f"{path!r}: no module {error.name!r} on the path. Run from the folder that holds it"
            ) from None
        raise
    except SyntaxError as error:
        raise PlanError(f"{error.filename}:{error.lineno}: {error.msg}. Mend that line, for {path!r}") from None
    for part in attribute.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise PlanError(f"{path!r}: module {module_name!r} has no {part!r}") from None
    return found


def load_function(path: str, example: str = "pipelines.flights.functions:departed") -> Callable[..., Any]:
    """The function behind ``module:name``."""
    found = load_object(path, example)
    if not callable(found):
        raise PlanError(f"{path!r} is a {type(found).__name__}, not a function")
    return found  # type: ignore[no-any-return]  # callable() narrows to an untyped object
