"""Every topic of a pipeline with the schema of its values, and every stage with what it reads and writes."""

from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any

from penstock import envelope
from penstock.compiling.folder import PipelineFolder
from penstock.feast.definitions import Definitions
from penstock.feast.stream_views import ViewDefinition
from penstock.plan import AvroSchema, InputPlan, SchemaPlan, StagePlan, TopicPlan
from penstock.schemas.files import shared_schemas

Schemas = dict[str, AvroSchema]
SHARED = {
    "predictions": "prediction",
    "outcomes": "outcome",
    "dropped": "dropped",
    "control": "control",
    "profiles": "profile",
    "alerts": "alert",
}
"""Topic → file of the shared schemas."""

_TIME = {"type": "long", "logicalType": "timestamp-millis"}
_MILLISECOND = timedelta(milliseconds=1)


def chain(definitions: Definitions) -> list[str]:
    """The entities in the order in which events pass them: that of their first view."""
    return list(dict.fromkeys(view.entity for view in definitions.views))


def has_topic(view: ViewDefinition) -> bool:
    """The view is written somewhere, so its rows need a topic."""
    return view.online or view.offline


def value_schemas(folder: PipelineFolder, definitions: Definitions) -> Schemas:
    """Topic suffix → the schema of its values, in the order in which the lock gets new ones. Of ``raw`` and ``labels``
    it is the declared one: what a producer of framed Avro writes."""
    name, event = folder.pipeline.name, folder.event
    found: Schemas = {"raw": event}
    if folder.label is not None:
        found["labels"] = folder.label
    fields: list[dict[str, Any]] = [*envelope.FIELDS, *(_kept(field) for field in event["fields"])]
    found["events"] = _record(name, "events", fields)
    entities = chain(definitions)
    for entity, following in zip(entities, [*entities[1:], None], strict=True):
        views = [view for view in definitions.views if view.entity == entity]
        for view in views:
            if has_topic(view):
                found[f"view.{view.name}"] = _record(name, f"view.{view.name}", _view_fields(view, event))
        fields = [*fields, *(_nullable(c.name, c.type) for view in views for c in view.columns)]
        if following is not None:
            found[f"by.{following}"] = _record(name, f"by.{following}", fields)
    label = [_nullable(envelope.LABEL_KEY, "string")] if folder.label is not None else []
    service = [{"name": c.name, "type": c.type, "default": None} for c in definitions.columns]
    found["features"] = _record(name, "features", [*envelope.FIELDS, *label, *service])
    shared = shared_schemas()
    return found | {suffix: shared[file] for suffix, file in SHARED.items() if _is_used(suffix, folder)}


def _is_used(suffix: str, folder: PipelineFolder) -> bool:
    if suffix in ("predictions", "control"):
        return folder.pipeline.model is not None
    return suffix != "outcomes" or folder.label is not None


def topics(folder: PipelineFolder, values: dict[str, SchemaPlan]) -> Iterator[TopicPlan]:
    """All topics; ``values``: suffix → schema in force."""
    name, partitions = folder.pipeline.name, folder.pipeline.partitions
    for suffix, value in values.items():
        foreign = suffix in ("raw", "labels")
        yield TopicPlan(
            name=f"{name}.{suffix}",
            value=None if foreign else value,
            partitions=partitions,
            compacted=suffix == "control",
        )
    yield TopicPlan(name=f"{name}.dead", partitions=partitions)
    yield TopicPlan(name=f"{name}.replayed", partitions=partitions, compacted=True)


def stages(folder: PipelineFolder, definitions: Definitions, values: dict[str, SchemaPlan]) -> Iterator[StagePlan]:
    """The stages in the order in which a row passes them, workers beside the loop included."""
    pipeline = folder.pipeline
    name = pipeline.name

    def read(suffix: str, event_time: str = envelope.EVENT_TIME) -> InputPlan:
        return InputPlan(topic=f"{name}.{suffix}", format="avro", value=values[suffix], event_time=event_time)

    def raw(suffix: str, event_time: str) -> InputPlan:
        largest, future = pipeline.max_event_bytes, pipeline.future // _MILLISECOND
        source = read(suffix, event_time)
        return source.model_copy(update={"format": "raw", "max_bytes": largest, "future_ms": future})

    def write(*suffixes: str) -> tuple[str, ...]:
        return tuple(f"{name}.{suffix}" for suffix in suffixes if suffix in values)

    inputs = [raw("raw", pipeline.timestamp)]
    if pipeline.label is not None:
        inputs.append(raw("labels", pipeline.label.timestamp))
    yield StagePlan(name="ingest", inputs=tuple(inputs), outputs=write("events", "outcomes"), rekeys=True)
    yield from _feature_stages(definitions, read, write)
    if pipeline.model is not None:
        yield StagePlan(name="inference", inputs=(read("features"),), outputs=write("predictions", "outcomes"))
    times = {"features": envelope.EVENT_TIME, "predictions": "event_time", "outcomes": "event_time"}
    watched = tuple(read(suffix, event_time) for suffix, event_time in times.items() if suffix in values)
    yield StagePlan(name="monitor", inputs=watched, outputs=write("profiles"))
    yield StagePlan(name="monitor.merge", inputs=(read("profiles", "pane"),), outputs=write("alerts"))


def _feature_stages(
    definitions: Definitions, read: Callable[[str], InputPlan], write: Callable[..., tuple[str, ...]]
) -> Iterator[StagePlan]:
    entities = chain(definitions)
    keys = {view.entity: view.key for view in definitions.views}
    source = "events"
    for place, entity in enumerate(entities):
        views = [view for view in definitions.views if view.entity == entity]
        following = entities[place + 1] if place + 1 < len(entities) else None
        onward = "features" if following is None else f"by.{following}"
        yield StagePlan(
            name=f"features.{entity}",
            inputs=(read(source),),
            outputs=write(*(f"view.{view.name}" for view in views), onward),
            rekeys=following is not None,
            entity=entity,
            views=tuple(view.name for view in views),
            last=following is None,
            next_key=None if following is None else keys[following],
        )
        source = onward
    stored = tuple(read(f"view.{view.name}") for view in definitions.views if has_topic(view))
    if stored:
        yield StagePlan(name="features.feast", inputs=stored, outputs=())


def _view_fields(view: ViewDefinition, event: AvroSchema) -> list[dict[str, Any]]:
    key = next(field for field in event["fields"] if field["name"] == view.key)
    plain = next(branch for branch in key["type"] if branch != "null") if isinstance(key["type"], list) else key["type"]
    return [
        {"name": envelope.EVENT_ID, "type": "string"},
        {"name": envelope.EVENT_TIME, "type": _TIME},
        {
            "name": "_offset",
            "type": "long",
            "doc": "of the row that the stage read: of two rows the one of later event time, then offset, wins",
        },
        {"name": view.key, "type": plain},
        *(_nullable(column.name, column.type) for column in view.columns),
    ]


def _kept(field: dict[str, Any]) -> dict[str, Any]:
    """A declared field as it travels on: what ingest has checked (ranges, patterns) stays behind."""
    return {word: field[word] for word in ("name", "type", "default", "doc") if word in field}


def _nullable(name: str, plain: Any) -> dict[str, Any]:
    return {"name": name, "type": ["null", plain], "default": None}


def _record(pipeline: str, suffix: str, fields: Sequence[dict[str, Any]]) -> AvroSchema:
    words = suffix.replace(".", "_").split("_")
    title = "".join(word.capitalize() for word in words)
    return {"type": "record", "name": title, "namespace": f"penstock.{pipeline}", "fields": list(fields)}
