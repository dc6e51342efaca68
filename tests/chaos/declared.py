"""What a plan's JSON says that the verifier holds the topics to. Read as data: not a line of Penstock."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.chaos.windows import Aggregation, View

DUPLICATE, PROBE = "duplicate", "probe"
"""Why an event is dropped that came before, and what `penstock doctor` sends into any pipeline."""


@dataclass(frozen=True)
class Input:
    """A raw event or label: its schema and the field that holds its time. ``key`` and ``value``: a label's fields."""

    avro: Mapping[str, Any]
    timestamp: str
    key: str | None = None
    value: str | None = None


@dataclass(frozen=True)
class Model:
    """``columns``: what it reads of a features row, in order; ``texts``: those that are no numbers; ``threshold``: from
    which score on a binary one says 1, where its manifest does not say."""

    name: str
    task: str
    threshold: float
    fallback: float | None
    columns: tuple[str, ...]
    texts: frozenset[str]


@dataclass(frozen=True)
class Declared:
    """``views``: whose windows are computed again; ``keys``: by topic, without the pipeline's name, the column that its
    records are keyed by; ``event_id``: the field of a raw event that names it; ``drops``: for what an event may be
    dropped; ``made``: columns of NAME.features that are no event's own; ``baseline``: the one that outcomes carry.
    Without a plan nothing of it is known, and nothing is held to it."""

    views: tuple[View, ...] = ()
    keys: Mapping[str, str] = field(default_factory=dict)
    event_id: str | None = None
    drops: frozenset[str] | None = None
    event: Input | None = None
    label: Input | None = None
    model: Model | None = None
    made: frozenset[str] = frozenset()
    baseline: str | None = None
    deduplicate_ms: int | None = None

    @property
    def deduplicates(self) -> bool:
        return self.deduplicate_ms is not None


def declared(plan: Path) -> Declared:
    """Raises ValueError where the file holds no plan."""
    try:
        said = json.loads(plan.read_text("utf-8"))
        reads = {name: stage["inputs"][0]["topic"] for stage in said["stages"] for name in stage["views"]}
        views = tuple(
            View(
                view["name"],
                reads[view["name"]],
                view["key"],
                view["lateness_ms"],
                view["topic"],
                tuple(Aggregation(**aggregation) for aggregation in view["aggregations"]),
            )
            for view in said["views"]
        )
        event, label = said["event"], said["label"]
        drops = {PROBE} | ({said["when"]["otherwise"]} if said["when"] is not None else set())
        drops |= {DUPLICATE} if event["deduplicate_ms"] is not None else set()
        made = {a.name for view in views for a in view.aggregations}
        made |= {column["name"] for view in said["on_demand"] for column in view["outputs"]}
        return Declared(
            views,
            _keys(said),
            event["event_id"],
            frozenset(drops),
            Input(event["avro"], event["timestamp"]),
            None if label is None else Input(label["avro"], label["timestamp"], label["key"], label["value"]),
            _model(said),
            frozenset(made),
            said["monitors"]["baseline"],
            event["deduplicate_ms"],
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"{plan} is no plan with views: {error!r}") from None


def _keys(said: Mapping[str, Any]) -> dict[str, str]:
    prefix, keys = f"{said['pipeline']}.", {"events": said["event"]["key"]}
    for stage in said["stages"]:
        if stage["next_key"] is not None:
            (next_topic,) = (name for name in stage["outputs"] if name.startswith(f"{prefix}by."))
            keys[next_topic.removeprefix(prefix)] = stage["next_key"]
        elif stage["views"]:
            keys["features"] = next(view["key"] for view in said["views"] if view["name"] == stage["views"][0])
    return keys


def _model(said: Mapping[str, Any]) -> Model | None:
    if said["model"] is None:
        return None
    columns = said["service"]["columns"]
    texts = frozenset(column["name"] for column in columns if "string" in column["type"])
    names = tuple(column["name"] for column in columns)
    return Model(**{name: said["model"][name] for name in ("name", "task", "threshold", "fallback")},
                 columns=names, texts=texts)  # fmt: skip
