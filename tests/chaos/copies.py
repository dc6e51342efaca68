"""De-duplication (docs/adr/0011), judged from the log of NAME.events and the notes of what was dropped.

The rule, row by row: a row is a copy if a row before it in its partition has the same event id and an event time no
older than the watermark behind the row less the horizon; one that is sent again for the id's first raw record is none.
"""

import re
from collections.abc import Mapping

from tests.chaos.carried import Row, milliseconds
from tests.chaos.records import Find, Place, at

FIRST = re.compile(r"/(\d+)@(\d+)$")
"""How the note of a dropped copy ends: the raw record that came before."""


class Copies:
    """Takes the notes, then NAME.events, and judges at the end. ``horizon_ms``: None where the plan does not
    de-duplicate, or there is none."""

    def __init__(self, pipeline: str, horizon_ms: int | None, find: Find) -> None:
        self._raw, self._horizon, self._find = f"{pipeline}.raw", horizon_ms, find
        self._dropped: dict[Place, tuple[str | None, Place | None]] = {}
        self._ids: dict[Place, str] = {}
        self._watermark: dict[int, int] = {}
        self._newest: dict[tuple[int, str], tuple[int, Place]] = {}
        self._copies: dict[Place, Place] = {}
        self._again: set[Place] = set()

    def __contains__(self, origin: Place) -> bool:
        """Whether the raw record at ``origin`` was dropped as a copy."""
        return origin in self._dropped

    def dropped(self, origin: Place, event_id: str | None, message: str) -> None:
        """A note that says "duplicate"."""
        first = FIRST.search(message)
        self._dropped[origin] = event_id, None if first is None else (int(first[1]), int(first[2]))

    def passed(self, partition: int, row: Row, origin: Place) -> None:
        """A row of NAME.events that its stage decoded, in log order."""
        event_id = row["_event_id"]
        if self._dropped:
            self._ids[origin] = event_id
        if self._horizon is None:
            return
        time = milliseconds(row["_event_time"])
        watermark = self._watermark[partition] = max(time, self._watermark.get(partition, time))
        oldest = watermark - self._horizon
        newest, first = self._newest.get((partition, event_id), (oldest - 1, origin))
        replayed = self._replayed(row.get("_replays"))
        if replayed is not None:
            self._again.add(origin)
        if newest >= oldest:
            self._newest[partition, event_id] = max(newest, time), first
            if replayed != first:
                self._copies[origin] = first
        elif time >= oldest:
            self._newest[partition, event_id] = time, replayed or origin

    def _replayed(self, said: str | None) -> Place | None:
        topic, _, place = (said or "").rpartition("/")
        found = re.fullmatch(r"(\d{1,9})@(\d{1,18})", place)
        return (int(found[1]), int(found[2])) if found and topic == self._raw else None

    def judge(self, fates: Mapping[Place, int]) -> None:
        """A dropped copy names the event that it is one of, and that one met with something else; what is no copy was
        not dropped, and what is one was."""
        for origin, (event_id, first) in self._dropped.items():
            what = f"raw{at(origin)} was dropped as a duplicate"
            if first is None:
                self._find("unattributed", f"{what} of nothing")
            elif self._ids.get(first) != event_id or self._ids.get(origin) != event_id:
                self._find("lost", f"{what} of raw{at(first)}, which is another event or none")
            elif first in self._dropped or not fates.get(first):
                self._find("lost", f"{what} of raw{at(first)}, which did not get through either")
            elif self._horizon is not None and origin not in self._copies and origin not in self._again:
                # of one that is sent again, a worker without a snapshot may know a later row as the first
                self._find("lost", f"{what}, and no event of its id is within the horizon before it")
        for origin, first in self._copies.items():
            if origin not in self._dropped:
                self._find("duplicated", f"raw{at(origin)} is a copy of raw{at(first)} within the horizon, not dropped")
