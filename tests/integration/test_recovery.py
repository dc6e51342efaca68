"""A killed worker comes back from a snapshot and a little of the log; from damaged ones as if there were none.

That the windows are right afterwards is for ``test_windows_duckdb.py`` to say, which looks at the same pipeline.
"""

import re
import signal
import time
from pathlib import Path

import pytest

from tests.integration.conftest import Feed
from tests.integration.pipeline_world import World, until
from tests.integration.test_kill import kill_in_the_middle

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]

ASSIGNED = re.compile(r"assigned \S+/(\d+) from (\d+), live from (\d+)")


def snapshots(world: World, stage: str) -> list[Path]:
    return sorted((world.settings.state_dir / "snapshots" / world.plan.group(stage)).rglob("*.snapshot"))


def kill(world: World, stage: str) -> list[tuple[int, int]]:
    """Kills the stage; from where it has read again, and from where on it was live, by partition."""
    before, lines = world.restarts(stage), len(world.said(stage))
    world.signal(stage, signal.SIGKILL)
    world.wait_restarted(stage, before + 1)
    said = [line["message"] for line in world.said(stage)[lines:]]
    found = {int(m[1]): (int(m[2]), int(m[3])) for m in map(ASSIGNED.match, said) if m}
    assert len(found) == world.plan.partitions
    return list(found.values())


def settle(world: World, stage: str) -> None:
    """Returns when nothing is left to be written: none has come for three seconds."""

    def quiet() -> bool:
        try:
            written = [path.stat().st_mtime for path in snapshots(world, stage)]
        except FileNotFoundError:  # a newer one took its place just now
            return False
        return bool(written) and time.time() - max(written) > 3

    until("snapshots", quiet)


@pytest.mark.parametrize("stage", ["features.aircraft", "features.airport", "monitor"])
def test_a_killed_worker_replays_only_what_came_after_its_snapshots(world: World, feed: Feed, stage: str) -> None:
    world.play(feed.take(1500))
    settle(world, stage)
    spans = kill(world, stage)
    assert sum(live for _, live in spans) > 400
    assert sum(start for start, _ in spans) > 0  # without a snapshot the whole log is read, see below
    kill_in_the_middle(world, feed, stage, 40)
    world.finish()
    world.check()


def test_damaged_snapshots_are_passed_over_and_the_log_is_read(world: World, feed: Feed) -> None:
    stage = "features.aircraft"
    world.play(feed.take(500))
    settle(world, stage)
    world.signal(stage, signal.SIGSTOP)
    for path in snapshots(world, stage):
        path.write_bytes(path.read_bytes()[:-7])
    starts = kill(world, stage)
    assert {start for start, _ in starts} == {0}
    assert any("torn or was altered" in line["message"] for line in world.said(stage))
    world.play(feed.take(500))
    world.check()
