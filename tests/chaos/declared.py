"""What a plan's JSON says that the verifier holds the topics to. Read as data: not a line of Penstock."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos.windows import Aggregation, View

DUPLICATE, PROBE = "duplicate", "probe"
"""Why an event is dropped that came before, and what `penstock doctor` sends into any pipeline."""


@dataclass(frozen=True)
class Declared:
    """``views``: whose windows are computed again; ``keys``: by topic, without the pipeline's name, the column that its
    records are keyed by; ``event_id``: the field of a raw event that names it; ``drops``: for what an event may be
    dropped. Without a plan nothing of it is known, and nothing is held to it."""

    views: tuple[View, ...] = ()
    keys: Mapping[str, str] = field(default_factory=dict)
    event_id: str | None = None
    drops: frozenset[str] | None = None

    @property
    def deduplicates(self) -> bool:
        return DUPLICATE in (self.drops or ())


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
        prefix, event = f"{said['pipeline']}.", said["event"]
        keys = {"events": event["key"]}
        for stage in said["stages"]:
            if stage["next_key"] is not None:
                (next_topic,) = (name for name in stage["outputs"] if name.startswith(f"{prefix}by."))
                keys[next_topic.removeprefix(prefix)] = stage["next_key"]
        drops = {PROBE} | ({said["when"]["otherwise"]} if said["when"] is not None else set())
        drops |= {DUPLICATE} if event["deduplicate_ms"] is not None else set()
    except (KeyError, TypeError) as error:
        raise ValueError(f"{plan} is no plan with views: {error!r}") from None
    return Declared(views, keys, event["event_id"], frozenset(drops))
