"""How many predictions meet their label, counted in one pass over the log in plain Python.

A label meets every prediction of its key that waits in its partition, a prediction the label that waits; nothing that
waits meets anybody once the other side's event time is a horizon past it, or its own side's two.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from tests.chaos.windows import milliseconds

Clock = dict[str, float]


def joined(rows: Iterable[tuple[int, Mapping[str, Any]]], horizon_ms: int) -> int:
    """Pairs in rows of NAME.outcomes with their partitions, each partition's in log order."""
    met = 0
    clocks: dict[int, Clock] = defaultdict(lambda: {"prediction": -float("inf"), "label": -float("inf")})
    waiting: dict[tuple[int, str, str], list[int]] = defaultdict(list)
    for partition, row in rows:
        clock, kind, time = clocks[partition], row["kind"], milliseconds(row["event_time"])
        other = "label" if kind == "prediction" else "prediction"
        others = waiting[partition, row["label_key"], other]
        alive = [t for t in others if t >= clock[kind] - horizon_ms and t >= clock[other] - 2 * horizon_ms]
        if alive:
            n = len(alive) if kind == "label" else 1
            met += n
            others[:] = alive[:-n]  # the newest meets first
        else:
            waiting[partition, row["label_key"], kind].append(time)
        clock[kind] = max(clock[kind], time)
    return met
