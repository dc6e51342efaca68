"""Reads a pipeline's ordinary Feast objects into what a plan holds: views with windows and tiles, on-demand functions,
and the feature service's columns in order.

This module imports feast, which takes seconds: only the compiler uses it. A pipeline may declare more than Penstock
computes, so whatever would not be computed as declared is an error here that names the object, the file and the mend.
"""

import importlib
import inspect
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from penstock.feast.fields import FEATURE_TYPES, field_types, is_readable
from penstock.feast.functions import function_path, source_of
from penstock.feast.stream_views import EventFields, ViewDefinition, read_view
from penstock.plan import AvroSchema, ColumnPlan, OnDemandPlan, PlanError, fingerprint, load_object

with warnings.catch_warnings():  # feast's own dependencies warn at import
    warnings.simplefilter("ignore")
    from feast import FeatureService, OnDemandFeatureView, RequestSource, StreamFeatureView


@dataclass(frozen=True, slots=True)
class Definitions:
    """``views`` in the order in which the service names them; ``columns``: the service's, in order; ``sources``:
    function path → source text, which hashes cover."""

    service: str
    views: tuple[ViewDefinition, ...]
    on_demand: tuple[OnDemandPlan, ...]
    columns: tuple[ColumnPlan, ...]
    sources: dict[str, str]


def read_definitions(path: str, event: AvroSchema, timestamp: str) -> Definitions:
    """The FeatureService behind ``module:name``, read against the event's schema. Raises ``PlanError``."""
    service = load_service(path)
    module = importlib.import_module(path.partition(":")[0])
    file = inspect.getsourcefile(module) or module.__name__
    return _Reader(module, EventFields(field_types(event), timestamp, file)).read(service)


def load_service(path: str) -> Any:
    """The FeatureService itself. Raises ``PlanError``."""
    with warnings.catch_warnings():
        # "Stream feature views are experimental" is known: to run them is what Penstock is for
        warnings.simplefilter("ignore", RuntimeWarning)
        service = load_object(path)
    if not isinstance(service, FeatureService):
        raise PlanError(f"feature_service {path!r} is a {type(service).__name__}, not a FeatureService of Feast")
    return service


class _Reader:
    """Reads the objects that one service names."""

    def __init__(self, module: ModuleType, event: EventFields) -> None:
        self._module, self._event = module, event
        self._views: dict[str, ViewDefinition] = {}
        self._requested: dict[str, str] = {}
        """Field of a request source → that source."""

    def read(self, service: Any) -> Definitions:
        what = f"service {service.name!r}"
        objects = list(service._features)  # Feast keeps the objects nowhere else; its projections lack the aggregations
        for view in objects:
            self._check_named(view, what)
            if isinstance(view, StreamFeatureView):
                self._view(view)
        on_demand = {v.name: self._on_demand(v) for v in objects if isinstance(v, OnDemandFeatureView)}
        if not self._views:
            raise self._event.error(
                what, "takes no StreamFeatureView, so nothing says what events are keyed by. Add one"
            )
        self._check_keys()
        made = self._made(on_demand.values())
        columns = [
            ColumnPlan(name=name, type=["null", made[view.name][name]])
            for view in objects
            for name in ([field.name for field in view.projection.features] or list(made[view.name]))
        ]
        sources = {function.function: source_of(function.function) for function in on_demand.values()}
        views = tuple(self._views.values())
        return Definitions(service.name, views, tuple(on_demand.values()), tuple(columns), sources)

    def _check_named(self, view: Any, what: str) -> None:
        if isinstance(view, str):
            raise self._event.error(what, f"names {view!r} as a text. Give the view itself")
        if not isinstance(view, StreamFeatureView | OnDemandFeatureView):
            kind = type(view).__name__
            raise self._event.error(
                what,
                f"takes {view.name!r}, a {kind}. Penstock computes StreamFeatureViews and OnDemandFeatureViews",
            )
        if view.projection.join_key_map or view.projection.version_tag is not None:
            raise self._event.error(
                what, f"takes {view.name!r} with other join keys or a version. Take the view itself"
            )

    def _check_keys(self) -> None:
        for view in self._views.values():
            if view.key in self._requested:
                raise self._event.error(
                    f"field {view.key!r} of request source {self._requested[view.key]!r}",
                    f"is the join key of view {view.name!r}. Stock Feast takes a name as one of the two and could not "
                    "serve the service online. Leave the field out, or read it from another one",
                )

    def _made(self, on_demand: Iterable[OnDemandPlan]) -> dict[str, dict[str, str]]:
        """View → feature → Avro type. Every name is unique, because all of them become columns of one record."""
        made = {view.name: {c.name: c.type for c in view.columns} for view in self._views.values()}
        made |= {view.name: {c.name: c.type[1] for c in view.outputs} for view in on_demand}
        owner = dict.fromkeys(self._event.types, "the event")
        for view, features in made.items():
            for name in features:
                what = f"feature {name!r} of view {view!r}"
                if name.startswith("_"):
                    raise self._event.error(
                        what, "begins with an underscore, which is kept for the envelope. Rename it"
                    )
                if name in owner:
                    raise self._event.error(what, f"has the name of a column of {owner[name]}. Rename it")
                owner[name] = f"view {view!r}"
        return made

    def _view(self, view: Any) -> ViewDefinition:
        if view.name not in self._views:
            self._views[view.name] = read_view(view, self._event)
        return self._views[view.name]

    def _on_demand(self, view: Any) -> OnDemandPlan:
        what = f"on-demand view {view.name!r}"
        if view.mode != "python" or view.singleton:
            mode = "singleton" if view.singleton else view.mode
            raise self._event.error(what, f'is in {mode} mode. Use mode="python", which works on whole columns')
        if view.aggregations:
            raise self._event.error(what, "has aggregations. Put them into a StreamFeatureView")
        inputs: dict[str, None] = {}
        for source in view.sources:
            if isinstance(source, RequestSource):
                inputs |= dict.fromkeys(self._request_fields(source, what))
            elif isinstance(source, StreamFeatureView):
                made = self._view(source)  # windows that only an on-demand view reads are computed all the same
                inputs |= dict.fromkeys([f.name for f in source.projection.features] or [c.name for c in made.columns])
            else:
                kind = type(source).__name__
                raise self._event.error(
                    what, f"reads {source.name!r}, a {kind}. Give it RequestSources and StreamFeatureViews"
                )
        outputs = []
        for field in view.features:
            plain = FEATURE_TYPES.get(str(field.dtype))
            if plain is None:
                raise self._event.error(
                    what, f"gives {field.name!r} the type {field.dtype}. Penstock has {', '.join(FEATURE_TYPES)}"
                )
            outputs.append(ColumnPlan(name=field.name, type=["null", plain]))
        function = function_path(view.feature_transformation.udf, self._module, what)
        return OnDemandPlan(name=view.name, function=function, inputs=tuple(inputs), outputs=tuple(outputs))

    def _request_fields(self, source: Any, what: str) -> list[str]:
        for field in source.schema:
            self._requested[field.name] = source.name
            plain, wanted = self._event.types.get(field.name), FEATURE_TYPES.get(str(field.dtype))
            where = f"field {field.name!r} of request source {source.name!r}, which {what} reads,"
            if plain is None:
                raise self._event.error(where, f"is no field of the event. It has {', '.join(self._event.types)}")
            if wanted is None or not is_readable(plain, wanted):
                raise self._event.error(
                    where, f"is declared as {field.dtype}, and the event's is a {plain}. Declare what the event has"
                )
        return [field.name for field in source.schema]


def view_hash(view: ViewDefinition, event: AvroSchema, lateness_ms: int) -> str:
    """Of what the view's values depend on: the fields it reads, key, aggregations, tiles, lateness."""
    read = {view.key, *(a.column for a in view.aggregations)}
    fields = {field["name"]: field["type"] for field in event["fields"] if field["name"] in read}
    aggregations = [a.model_dump() for a in view.aggregations]
    return fingerprint({"fields": fields, "key": view.key, "aggregations": aggregations, "lateness_ms": lateness_ms})


def service_hash(definitions: Definitions, view_hashes: dict[str, str]) -> str:
    """Of what a model's inputs depend on: columns in order, the views' hashes, on-demand functions with source, inputs
    and outputs."""
    functions = [
        {
            "name": function.name,
            "inputs": function.inputs,
            "outputs": [column.model_dump() for column in function.outputs],
            "source": definitions.sources[function.function],
        }
        for function in definitions.on_demand
    ]
    columns = [column.model_dump() for column in definitions.columns]
    return fingerprint({"columns": columns, "views": view_hashes, "functions": functions})
