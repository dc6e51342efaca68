"""The broker goes away under load and comes back: workers say so, go on or start again, and the whole output is counted
anew. While it is away they end when they are told to.
"""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock.local.broker import EmbeddedBroker
from penstock.plan import Plan
from penstock.watchdog import LONGEST_STOP_S
from tests.integration.conftest import VERSION, Feed
from tests.integration.pipeline_world import ROOT, World, until

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(240)]

STAGES = ("ingest", "features.aircraft", "features.airport", "inference", "monitor", "features.feast", "monitor.merge")
PART = 800

Place = tuple[World, EmbeddedBroker]


@pytest.fixture(scope="module")
def place(flights_plan: Plan, flights_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """The pipeline's stages on a broker of their own, in small batches, so that there are many transactions."""
    here = Path.cwd()
    os.chdir(ROOT)  # workers import pipelines.flights from where they run
    folder = tmp_path_factory.mktemp("outage")
    try:
        with (
            EmbeddedBroker(folder / "broker") as broker,
            World(
                flights_plan, "outage", broker.bootstrap, folder, flights_models, VERSION, STAGES, max_batch_rows=64
            ) as world,
        ):
            yield world, broker
    finally:
        os.chdir(here)


def unready(world: World) -> bool:
    """Every worker says that it is not ready, for the broker does not answer."""
    for worker in world.supervisor.workers:
        worker.look()
    said = [worker.waiting_for.get("broker", "") for worker in world.supervisor.workers]
    return all(f"nothing was heard of Kafka at {world.bootstrap} for " in why for why in said)


def ready(world: World) -> bool:
    world.supervisor.check()
    for worker in world.supervisor.workers:
        worker.look()
    return all(worker.ready for worker in world.supervisor.workers)


def test_a_broker_that_sleeps_for_longer_than_sessions_and_transactions_last(place: Place, feed: Feed) -> None:
    world, broker = place
    world.send(feed.take(PART))
    world.finish()
    world.send(feed.take(PART))
    broker.pause()
    began = time.monotonic()
    try:
        until("every worker to miss the broker", lambda: unready(world), 14)
        time.sleep(max(0.0, began + 15 - time.monotonic()))
    finally:
        broker.resume()
    world.send(feed.take(PART))
    world.finish()
    until("every worker to be ready again", lambda: ready(world))
    world.check()


def test_a_broker_that_is_killed_and_comes_back_with_its_data(place: Place, feed: Feed) -> None:
    world, broker = place
    world.play(feed.take(PART))
    world.send(feed.take(PART))
    broker.kill()
    try:
        until("every worker to miss the broker", lambda: unready(world), 14)
        ended = {stage: len(world.worker(stage).restarts) for stage in ("ingest", "features.airport")}
        told = time.monotonic()
        for stage in ended:
            world.signal(stage, signal.SIGTERM)
        until(
            "workers that were told to stop to end",
            lambda: all(len(world.worker(stage).restarts) > before for stage, before in ended.items()),
            LONGEST_STOP_S + 5,
        )
        print(f"ended after {time.monotonic() - told:.1f} s")
    finally:
        broker.start()
    world.send(feed.take(PART))
    world.finish()
    until("every worker to be ready again", lambda: ready(world))
    world.check()
