"""Compiles a pipeline's folder into the plan that workers start from: schemas, Feast definitions, functions, topics,
stages.

The plan is a function of the folder alone: the same files give the same bytes and the same hash, wherever and whenever
they are compiled.
"""

from datetime import timedelta
from typing import Literal

from penstock.compiling.folder import PipelineFolder, open_folder
from penstock.compiling.topics import chain, has_topic, stages, topics, value_schemas
from penstock.compiling.versions import schemas_in_force
from penstock.feast.definitions import Definitions, read_definitions, service_hash, view_hash
from penstock.plan import (
    FORMAT,
    EventPlan,
    LabelPlan,
    ModelPlan,
    MonitorPlan,
    Plan,
    PlanError,
    SchemaPlan,
    ServicePlan,
    ViewPlan,
    WhenPlan,
    load_function,
)
from penstock.schemas.registry import Registry
from penstock.windows.layout import key_bytes

__all__ = ["compile_pipeline"]


def compile_pipeline(
    source: str, lock: Literal["extend", "require"] = "require", registry: Registry | None = None
) -> Plan:
    """The plan of the pipeline behind the import string ``source`` (``pipelines.flights.pipeline:pipeline``).

    ``lock``: schemas that ``schemas.lock`` beside the pipeline lacks are appended to it, or are an error. With a
    ``registry`` ids are that registry's. Raises ``PlanError``, naming the object, the file and the mend.
    """
    folder = open_folder(source)
    pipeline = folder.pipeline
    definitions = read_definitions(folder.import_string(pipeline.feature_service), folder.event, pipeline.timestamp)
    values, known = schemas_in_force(folder, value_schemas(folder, definitions), lock, registry)
    views = _views(folder, definitions)
    service = ServicePlan(
        name=definitions.service,
        columns=definitions.columns,
        hash=service_hash(definitions, {view.name: view.hash for view in views}),
    )
    _check_baseline(folder, service)
    return Plan(
        format=FORMAT,
        pipeline=pipeline.name,
        source=source,
        partitions=pipeline.partitions,
        lateness_ms=_ms(pipeline.lateness),
        event=_event(folder, definitions, values["raw"]),
        label=_label(folder, values.get("labels")),
        when=_when(folder),
        topics=tuple(topics(folder, values)),
        stages=tuple(stages(folder, definitions, values)),
        views=views,
        on_demand=definitions.on_demand,
        service=service,
        model=None if pipeline.model is None else ModelPlan(**pipeline.model.model_dump()),
        monitors=_monitors(folder),
        feature_store=folder.feature_store,
        schemas=known,
    )


def _views(folder: PipelineFolder, definitions: Definitions) -> tuple[ViewPlan, ...]:
    lateness = _ms(folder.pipeline.lateness)
    entities = chain(definitions)
    return tuple(
        ViewPlan(
            name=view.name,
            entity=view.entity,
            key=view.key,
            aggregations=view.aggregations,
            lateness_ms=lateness,
            ttl_ms=view.ttl_ms,
            online=view.online,
            offline=view.offline,
            topic=f"{folder.pipeline.name}.view.{view.name}" if has_topic(view) else None,
            upstream=tuple(v.name for v in definitions.views if entities.index(v.entity) < entities.index(view.entity)),
            hash=view_hash(view, folder.event, lateness),
            key_bytes=key_bytes(view.aggregations, {a.window_ms: a.tile_ms for a in view.aggregations}, lateness),
        )
        for view in definitions.views
    )


def _event(folder: PipelineFolder, definitions: Definitions, value: SchemaPlan) -> EventPlan:
    pipeline = folder.pipeline
    return EventPlan(
        avro=value.avro,
        id=value.id,
        subject=value.subject,
        event_id=pipeline.event_id,
        timestamp=pipeline.timestamp,
        key=definitions.views[0].key,
        max_bytes=pipeline.max_event_bytes,
        future_ms=_ms(pipeline.future),
        deduplicate_ms=None if pipeline.deduplicate is None else _ms(pipeline.deduplicate),
    )


def _label(folder: PipelineFolder, value: SchemaPlan | None) -> LabelPlan | None:
    label = folder.pipeline.label
    if label is None or value is None:
        return None
    return LabelPlan(
        avro=value.avro,
        id=value.id,
        subject=value.subject,
        key=label.key,
        value=label.value,
        timestamp=label.timestamp,
        horizon_ms=_ms(label.horizon),
    )


def _when(folder: PipelineFolder) -> WhenPlan | None:
    when = folder.pipeline.predict_when
    if when is None:
        return None
    path = folder.import_string(when.function)
    load_function(path)
    return WhenPlan(function=path, otherwise=when.otherwise)


def _monitors(folder: PipelineFolder) -> MonitorPlan:
    monitors = folder.pipeline.monitors
    if monitors.window % monitors.pane:
        raise PlanError(
            f"{folder.source!r}: a monitoring window of {monitors.window} is not made of panes of {monitors.pane}. "
            "Choose a divisor"
        )
    plain = monitors.model_dump(exclude={"pane", "window", "idle"})
    return MonitorPlan(pane_ms=_ms(monitors.pane), window_ms=_ms(monitors.window), idle_ms=_ms(monitors.idle), **plain)


def _check_baseline(folder: PipelineFolder, service: ServicePlan) -> None:
    baseline = folder.pipeline.monitors.baseline
    if baseline is not None and baseline not in {column.name for column in service.columns}:
        raise PlanError(
            f"{folder.source!r}: baseline {baseline!r} is no column of the service {service.name!r}. "
            f"It has {', '.join(column.name for column in service.columns)}"
        )


def _ms(duration: timedelta) -> int:
    return duration // timedelta(milliseconds=1)
