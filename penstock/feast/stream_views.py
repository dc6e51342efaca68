"""Reads one StreamFeatureView into what the window kernel computes. What Feast accepts and the kernel would compute
otherwise than declared is an error that names view, file and mend.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, get_args

from penstock.feast.fields import FEATURE_TYPES, NUMBERS, last_type
from penstock.plan import AggregationPlan, ColumnPlan, PlanError
from penstock.windows.spec import EVERY_ROW, AggregationFunction, tile_ms

with warnings.catch_warnings():  # feast's own dependencies warn at import
    warnings.simplefilter("ignore")
    from feast import KafkaSource

FUNCTIONS: tuple[str, ...] = get_args(AggregationFunction)
"""The aggregations that the window kernel computes."""


@dataclass(frozen=True, slots=True)
class EventFields:
    """What views are read against: the event's fields with their plain types, and the file of the definitions, for
    messages."""

    types: dict[str, str]
    timestamp: str
    file: str

    def error(self, what: str, why: str) -> PlanError:
        return PlanError(f"{what} in {self.file} {why}")


@dataclass(frozen=True, slots=True)
class ViewDefinition:
    """A StreamFeatureView. ``columns``: its features with their types, in the view's order."""

    name: str
    entity: str
    key: str
    aggregations: tuple[AggregationPlan, ...]
    columns: tuple[ColumnPlan, ...]
    ttl_ms: int | None
    online: bool
    offline: bool


def read_view(view: Any, event: EventFields) -> ViewDefinition:
    """Raises ``PlanError``."""
    what = f"view {view.name!r}"
    _check_source(view, event, what)
    if view.udf is not None or view.feature_transformation is not None:
        raise event.error(
            what, "has a function of its own. Keep the aggregations, and put the function into an on-demand view"
        )
    if not view.aggregations:
        raise event.error(
            what, "has no aggregations, so there is nothing to compute. Give it one, or leave the view out"
        )
    entity, key = _entity(view, event, what)
    aggregations = tuple(_aggregation(a, view, event, what) for a in view.aggregations)
    return ViewDefinition(
        name=view.name,
        entity=entity,
        key=key,
        aggregations=aggregations,
        columns=_columns(view, aggregations, event, what),
        ttl_ms=_ms(view.ttl) or None,
        online=view.online,
        offline=view.offline,
    )


def _check_source(view: Any, event: EventFields, what: str) -> None:
    if not isinstance(view.stream_source, KafkaSource):
        kind = type(view.stream_source).__name__
        raise event.error(what, f"reads a {kind}. Give it a KafkaSource with a batch_source")
    if view.batch_source is None:
        raise event.error(
            what, "has a KafkaSource without batch_source, so its history has no place. Give it a FileSource"
        )
    if view.timestamp_field and view.timestamp_field != event.timestamp:
        raise event.error(
            what,
            f"has timestamp_field {view.timestamp_field!r}, and the pipeline's timestamp is {event.timestamp!r}. "
            "Name the same field in both",
        )


def _entity(view: Any, event: EventFields, what: str) -> tuple[str, str]:
    if len(view.entities) != 1:
        raise event.error(
            what, f"has the entities {view.entities}. A view is keyed by exactly one; make one view for each"
        )
    if len(view.join_keys) != 1:
        raise event.error(what, f"has no Field for the join key of entity {view.entities[0]!r}. Add it to the schema")
    key = view.join_keys[0]
    plain = event.types.get(key)
    if plain is None:
        raise event.error(
            what, f"is keyed by {key!r}, which is no field of the event. Name the join key as the event does"
        )
    if plain not in ("string", "int", "long", "enum"):
        raise event.error(what, f"is keyed by {key!r}, a {plain}. A key is a string or an integer")
    return view.entities[0], key


def _aggregation(aggregation: Any, view: Any, event: EventFields, what: str) -> AggregationPlan:
    window, slide = aggregation.time_window, aggregation.slide_interval
    name = aggregation.resolved_name(window)
    where = f"aggregation {name!r} of {what}"
    if aggregation.function not in FUNCTIONS:
        raise event.error(where, f"has the function {aggregation.function!r}. Penstock computes {', '.join(FUNCTIONS)}")
    if not window:
        raise event.error(where, "has no time_window. Give it one, e.g. timedelta(hours=1)")
    _check_column(aggregation.column, aggregation.function, event, where)
    try:
        tile = tile_ms(_ms(window), _ms(slide) or None, _ms(view.tiling_hop_size) or None)
    except ValueError as error:
        raise event.error(where, f"cannot be cut into tiles: {error}") from None
    return AggregationPlan(
        name=name, column=aggregation.column, function=aggregation.function, window_ms=_ms(window), tile_ms=tile
    )


def _check_column(column: str, function: str, event: EventFields, where: str) -> None:
    if function == "count" and column == EVERY_ROW:
        return
    plain = event.types.get(column)
    if plain is None:
        raise event.error(
            where, f"aggregates {column!r}, which is no field of the event. It has {', '.join(event.types)}"
        )
    if function != "count" and plain not in NUMBERS:
        raise event.error(
            where,
            f"takes the {function} of {column!r}, which is of type {plain}. Only numbers have one; count takes any",
        )


def _columns(
    view: Any, aggregations: Sequence[AggregationPlan], event: EventFields, what: str
) -> tuple[ColumnPlan, ...]:
    tiles: dict[int, int] = {}
    types: dict[str, str] = {}
    for a in aggregations:
        if tiles.setdefault(a.window_ms, a.tile_ms) != a.tile_ms:
            raise event.error(
                what,
                f"cuts windows of {a.window_ms} ms into tiles of {tiles[a.window_ms]} ms and of {a.tile_ms} ms. "
                "Give aggregations of one window the same slide_interval",
            )
        if a.name in types:
            raise event.error(what, f"has two aggregations called {a.name!r}. Give one of them a name")
        types[a.name] = _type_of(a, event)
    declared = {field.name: FEATURE_TYPES.get(str(field.dtype)) for field in view.features}
    for name, plain in declared.items():
        if name not in types:
            raise event.error(
                what,
                f"declares {name!r}, which no aggregation computes. Name an aggregation so, or take the Field out",
            )
        if plain != types[name]:
            wanted = {"long": "Int64", "double": "Float64", "boolean": "Bool"}[types[name]]
            raise event.error(what, f"declares {name!r} as something it is not. Give the Field the dtype {wanted}")
    forgotten = [name for name in types if declared and name not in declared]
    if forgotten:
        raise event.error(
            what, f"computes {forgotten[0]!r}, which its schema lacks, so Feast would not know it. Add the Field"
        )
    return tuple(ColumnPlan(name=a.name, type=types[a.name]) for a in aggregations)


def _type_of(aggregation: AggregationPlan, event: EventFields) -> str:
    if aggregation.function == "count":
        return "long"
    return last_type(event.types[aggregation.column]) if aggregation.function == "last" else "double"


def _ms(duration: timedelta | None) -> int:
    return 0 if duration is None else duration // timedelta(milliseconds=1)
