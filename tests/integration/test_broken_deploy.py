"""A deploy that is broken from some moment on: the stage stops before it has drained its topic into the dead letters,
says why, and once it is mended everything else goes through.
"""

from pathlib import Path
from uuid import uuid4

import pytest

from penstock.breaker import TRIED_ROWS
from penstock.local.resolve import BrokerHandle
from penstock.plan import Plan
from tests.integration.conftest import VERSION, Feed
from tests.integration.pipeline_world import ROOT, World, until

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]

STAGE = "features.airport"
WINDOW, BATCH = 200, 64
RELEASE = """
from pathlib import Path
from pipelines.flights import functions

def departed(columns):
    if Path({flag!r}).exists():
        raise KeyError("dep_dealy")
    return functions.departed(columns)
"""


def test_a_broken_deploy_stops_with_few_dead_letters_and_all_else_goes_through_once_it_is_mended(
    broker: BrokerHandle,
    flights_plan: Plan,
    flights_models: Path,
    feed: Feed,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert flights_plan.when is not None
    flag = tmp_path / "broken"
    (tmp_path / "release.py").write_text(RELEASE.format(flag=str(flag)))
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))  # of the workers
    plan = flights_plan.model_copy(
        update={"when": flights_plan.when.model_copy(update={"function": "release:departed"})}
    )
    with World(
        plan,
        f"breaker_{uuid4().hex[:8]}",
        broker.bootstrap,
        tmp_path,
        flights_models,
        VERSION,
        max_batch_rows=BATCH,
        dead_letter_window_rows=WINDOW,
    ) as world:
        worker = world.worker(STAGE)

        def why() -> str | None:
            worker.look()
            return worker.waiting_for.get("dead letters")

        world.play(feed.take(600))
        assert world.records("dead") == []

        flag.touch()
        world.send(feed.take(3000))
        said = until("the stage to stop", why, pause=0.01)
        assert "of the last 2" in said  # 200 and the rest of a batch
        assert "rows became dead letters, most of them 'feature function failed'" in said
        until("what it did to be committed", lambda: len(world.records("dead")) > WINDOW * 0.9 - BATCH)
        assert len(world.records("dead")) <= WINDOW + BATCH + TRIED_ROWS  # the worker may have tried once
        until("the rest to wait before it", lambda: world.behind(STAGE) > 500)
        assert not worker.ready

        flag.unlink()
        world.ask_to_leave(STAGE)
        dead = len(world.records("dead"))
        world.wait_restarted(STAGE, 1)
        world.finish()
        assert why() is None
        counts = world.check()
        assert counts["dead"] == len(world.records("dead")) == dead <= WINDOW + BATCH + 2 * TRIED_ROWS
