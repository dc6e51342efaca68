"""Windows computed again from the log that a features stage read, row by row in plain Python: the slow and obvious way.

The rule is design §5's. A row sees itself and every earlier row of its key in its partition's log, in the window/tile
newest tiles up to its own. What is late is judged by the largest event time before it in the log: a late row sees no
tile older than that watermark less window and lateness; where its own is older, the row sees itself alone.
"""

import math
from bisect import bisect_left, insort
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from tests.chaos.records import Place

RELATIVE, ABSOLUTE = 1e-9, 1e-6
EVERY_ROW = "*"
Find = Callable[[str], None]
Features = tuple[float | None, ...]


@dataclass(frozen=True)
class Aggregation:
    name: str
    column: str
    function: str
    window_ms: int
    tile_ms: int


@dataclass(frozen=True)
class View:
    """``reads``: the topic whose rows it aggregates by ``key``; ``topic``: its own, where it has one."""

    name: str
    reads: str
    key: str
    lateness_ms: int
    topic: str | None
    aggregations: tuple[Aggregation, ...]


@dataclass(slots=True)
class _Key:
    """What one key of one partition has brought so far: (event time, offset, values), in order of time."""

    rows: list[tuple[int, int, tuple[float | None, ...]]] = field(default_factory=list)


class Windows:
    """One view: ``read`` every row of its input in log order, then hold what was sent against it."""

    def __init__(self, view: View) -> None:
        self.view = view
        self._columns = list(dict.fromkeys(a.column for a in view.aggregations))
        self._keys: dict[tuple[int, Any], _Key] = {}
        self._watermark: dict[int, int] = {}
        self._by_origin: dict[Place, Features] = {}
        self._by_place: dict[Place, Features] = {}
        self._rows: dict[Place, tuple[str, int, Any]] = {}
        self.checked = self.late = 0

    def read(self, place: Place, origin: Place, row: Mapping[str, Any], *, copy: bool = False) -> None:
        """The row at ``place`` of the view's input. A ``copy`` of one before is a row of the log, and in no window."""
        partition, offset = place
        time = milliseconds(row["_event_time"])
        watermark = self._watermark.get(partition)
        self._watermark[partition] = time if watermark is None else max(watermark, time)
        if copy:
            return
        self.late += watermark is not None and time < watermark - self.view.lateness_ms
        key = row[self.view.key]
        if key is None:
            self._by_origin[origin] = (None,) * len(self.view.aggregations)
            return  # and the view's topic has no row of it
        values = tuple(1.0 if column == EVERY_ROW else number(row[column]) for column in self._columns)
        here = time, offset, values
        rows = self._keys.setdefault((partition, key), _Key()).rows
        insort(rows, here)
        found = tuple(self._window(rows, here, watermark, a) for a in self.view.aggregations)
        self._by_origin[origin] = self._by_place[place] = found
        self._rows[place] = row["_event_id"], time, key

    def _window(
        self,
        rows: list[tuple[int, int, tuple[float | None, ...]]],
        here: tuple[int, int, tuple[float | None, ...]],
        watermark: int | None,
        aggregation: Aggregation,
    ) -> float | None:
        time, tile_ms, window_ms = here[0], aggregation.tile_ms, aggregation.window_ms
        tile = time // tile_ms
        first = tile - window_ms // tile_ms + 1
        seen = [here]
        if watermark is None or time >= watermark - self.view.lateness_ms:
            oldest = first
        else:
            oldest = max(first, (watermark - window_ms - self.view.lateness_ms) // tile_ms)
        if oldest <= tile:
            low, high = (bisect_left(rows, (at * tile_ms,)) for at in (oldest, tile + 1))
            seen = rows[low:high]
        column = self._columns.index(aggregation.column)
        last = [values[column] for _, _, values in seen if values[column] is not None]
        return aggregate(aggregation.function, [value for value in last if value is not None])

    def sent(self, origin: Place, row: Mapping[str, Any], find: Find) -> None:
        """A row of a later topic of the chain, which carries the view's features on."""
        expected = self._by_origin.get(origin)
        if expected is not None:  # a row of nothing is told elsewhere
            self._compare(expected, row, find)

    def written(self, rows: Iterable[tuple[Place, Mapping[str, Any]]], dead: Collection[Place], find: Find) -> None:
        """The view's own topic: one row for each of its input that has a key, in the partition of the same number. One
        that is a ``dead`` letter of its stage may be missing: perhaps it was this row that the broker refused.
        """
        left = dict(self._by_place)
        for (partition, offset), row in rows:
            place = partition, row["_offset"]
            expected = left.pop(place, None)
            if expected is None:
                why = "a second time" if place in self._by_place else "of a row that its input does not have"
                find(f"{self.view.topic}/{partition}@{offset} is {why}: {place[0]}@{place[1]}")
                continue
            self._compare(expected, row, find)
            event = row["_event_id"], milliseconds(row["_event_time"]), row[self.view.key]
            if event != self._rows[place]:
                find(f"{self.view.topic}/{partition}@{offset} is of {event}, the log says {self._rows[place]}")
        for partition, offset in left.keys() - set(dead):
            find(f"{self.view.topic} has no row of {self.view.reads}/{partition}@{offset}")

    def _compare(self, expected: Features, row: Mapping[str, Any], find: Find) -> None:
        for aggregation, value in zip(self.view.aggregations, expected, strict=True):
            if aggregation.name not in row:
                continue  # a service need not take every feature
            self.checked += 1
            got = row[aggregation.name]
            same = (
                got is None
                if value is None
                else got is not None and math.isclose(got, value, rel_tol=RELATIVE, abs_tol=ABSOLUTE)
            )
            if not same:
                find(f"{aggregation.name} of {row.get('_event_id')} is {got}, the log says {value}")


def aggregate(function: str, values: list[float]) -> float | None:
    """``values``: those that are there, by event time and offset."""
    if function == "count":
        return len(values)
    if len(values) < (2 if function == "std" else 1):
        return None
    mean = math.fsum(values) / len(values)
    return {
        "sum": lambda: math.fsum(values),
        "mean": lambda: mean,
        "min": lambda: min(values),
        "max": lambda: max(values),
        "last": lambda: values[-1],
        "std": lambda: math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)),
    }[function]()


def number(value: Any) -> float | None:
    """Texts and the like can only be counted; NaN and infinity count as missing."""
    if value is None:
        return None
    if isinstance(value, bool | int | float):
        return float(value) if math.isfinite(value) else None
    return 0.0


def milliseconds(time: datetime | int) -> int:
    return time if isinstance(time, int) else round(time.timestamp() * 1000)
