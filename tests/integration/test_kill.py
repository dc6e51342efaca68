"""Kill -9 of each service in the middle of its stream: the supervisor starts it again, and the whole output is counted
anew. A worker is stopped first and killed only if it is seen to have work left, so that no kill falls into a pause.
"""

import signal
import time
from collections import Counter
from typing import Any

import orjson
import pyarrow.parquet as pq
import pytest

from tests.conftest import read_all_committed
from tests.integration.conftest import Feed
from tests.integration.pipeline_world import World, until

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]

PART = 1500
WORK = {
    "ingest": 40,
    "features.aircraft": 40,
    "features.airport": 40,
    "inference": 40,
    "monitor": 40,
}
"""Stage → records that must be left to read when it is killed; markers alone are fewer."""

SECONDLY = {"monitor", "features.feast"}
"""What commits once a second goes from everything to nothing at once: unread and uncommitted is its middle."""


def kill_in_the_middle(world: World, feed: Feed, stage: str, left: int) -> None:
    """Sends until the stage was killed with at least ``left`` records unread."""
    before = world.restarts(stage)
    for _ in range(5):
        world.send(feed.take(PART))
        start, deadline = world.behind(stage), time.monotonic() + 20
        while time.monotonic() < deadline:
            world.signal(stage, signal.SIGSTOP)
            behind = world.behind(stage)
            if left <= behind < max(start, left + 1) or (stage in SECONDLY and behind >= left):
                world.signal(stage, signal.SIGKILL)
                world.wait_restarted(stage, before + 1)
                return
            world.signal(stage, signal.SIGCONT)
            if behind < left and start > left:
                break
            start = max(start, behind)
            time.sleep(0.01)
        world.finish()
    raise AssertionError(f"{stage} was never seen in the middle of its work")


@pytest.mark.parametrize("stage", sorted(WORK))
def test_a_killed_stage_loses_and_doubles_nothing(world: World, feed: Feed, stage: str) -> None:
    kill_in_the_middle(world, feed, stage, WORK[stage])
    world.finish()
    world.check()
    assert any(line.startswith(f"{stage}.0 ended with exit code 137") for line in world.heard), world.heard
    if stage == "monitor":
        until("the monitor's counts", lambda: profiled(world) == expected_profiles(world), 60, pause=0.5)


def test_a_killed_features_writer_leaves_each_row_once(world: World, feed: Feed) -> None:
    stage = "features.feast"
    kill_in_the_middle(world, feed, stage, 40)
    world.finish()
    until("the writer to read all", lambda: world.behind(stage) == 0, pause=0.2)
    world.ask_to_leave(stage)  # the rows of the last minute are in no file before
    for view in ("aircraft_delays", "airport_delays"):
        history = pq.read_table(world.folder / "feast/var/flights/offline" / view)
        assert Counter(history["_event_id"].to_pylist()) == Counter(
            row["_event_id"] for row in world.rows(f"view.{view}")
        )


def test_a_killed_merge_counts_each_profile_once(world: World, feed: Feed) -> None:
    stage = "monitor.merge"
    before = world.restarts(stage)
    world.send(feed.take(PART))
    windows = merged(world)
    until("the merge to take up some of it", lambda: merged(world) != windows)
    world.signal(stage, signal.SIGKILL)
    world.finish()
    world.wait_restarted(stage, before + 1)
    until("the monitor's counts", lambda: profiled(world) == expected_profiles(world), 60, pause=0.5)

    def settled() -> bool:
        return merged(world) == by_window(world)

    until("the windows of one pass over the profiles", settled, 60, pause=0.5)


def profiled(world: World) -> dict[str, int]:
    rows: Counter[str] = Counter()
    for profile in world.rows("profiles"):
        rows[profile["feature"]] += profile["rows"]
    return {name: rows[name] for name in ("departure_delay", "_score", "_outcome")}


def expected_profiles(world: World) -> dict[str, int]:
    keys: dict[str, set[str]] = {"prediction": set(), "label": set()}
    for row in world.rows("outcomes"):
        keys[row["kind"]].add(row["label_key"])
    return {
        "departure_delay": len(world.records("features")),
        "_score": len(world.records("predictions")),
        "_outcome": len(keys["prediction"] & keys["label"]),
    }


Window = tuple[str, str, str, str, int]


def by_window(world: World) -> dict[Window, tuple[int, int]]:
    """One pass over the committed profiles: rows and nulls of each window."""
    length = world.plan.monitors.window_ms
    found: dict[Window, tuple[int, int]] = {}
    for row in world.rows("profiles"):
        pane = round(row["pane"].timestamp() * 1000)
        key = (row["model"], row["version"], row["feature"], row["reference"], pane // length * length)
        rows, nulls = found.get(key, (0, 0))
        found[key] = rows + row["rows"], nulls + row["nulls"]
    return found


def merged(world: World) -> dict[Window, tuple[int, int]]:
    """What the merge holds, from the changelog of its table: the last value of every key."""
    topic = f"{world.plan.group('monitor.merge')}-windows-changelog"
    newest: dict[bytes, Any] = {m.key(): m.value() for m in read_all_committed(world.bootstrap, topic)}
    found = {}
    for value in newest.values():
        if value is not None:
            w = orjson.loads(value)
            found[w["model"], w["version"], w["feature"], w["reference"], w["start"]] = w["rows"], w["nulls"]
    return found
