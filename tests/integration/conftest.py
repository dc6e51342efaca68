"""One flights pipeline for all integration tests that need one: compiled, trained and started once."""

import os
import warnings
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from uuid import uuid4

import pytest

from penstock.local.resolve import BrokerHandle
from penstock.models.manifest import Manifest
from penstock.models.registry import ModelRegistry
from penstock.plan import Plan
from pipelines.flights import data
from pipelines.flights.replay import Message, Replay
from tests.integration.pipeline_world import ROOT, World

VERSION = "1.0.0"


@pytest.fixture(scope="session")
def flights_plan() -> Plan:
    """The flights pipeline, its windows closing soon enough for a test to see the alerts."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # feast's own libraries are full of deprecated calls
        from penstock.compiling import compile_pipeline

        plan = compile_pipeline("pipelines.flights.pipeline:pipeline")
    day = 86_400_000
    quick = {"pane_ms": day // 4, "window_ms": day, "idle_ms": 2000, "minimum_rows": 300}
    return plan.model_copy(update={"monitors": plan.monitors.model_copy(update=quick)})


@pytest.fixture(scope="session")
def flights_data() -> data.Flights:
    return data.load(ROOT / "var/data")


@pytest.fixture(scope="session")
def flights_models(flights_plan: Plan, flights_data: data.Flights, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry with a model of four weeks, made by the pipeline's own training."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the libraries that convert the model
        from pipelines.flights import train

        rows = train.training_set(flights_plan, flights_data.between("2013-02-22", "2013-03-22"))
        files, metrics, codes = train.fit(flights_plan, rows, VERSION)
    folder = tmp_path_factory.mktemp("models")
    manifest = Manifest.of(flights_plan, VERSION, files, metrics=metrics, data_hash="0" * 64, codes=codes)
    ModelRegistry(str(folder)).register(manifest, files)
    return folder


class Feed:
    """The log of the pipeline from April on, a little of it at a time: no test sends what another has sent."""

    def __init__(self, plan: Plan, flights: data.Flights) -> None:
        assert plan.label is not None
        replay = Replay(flights.between("2013-04-01", "2013-07-01"), (plan.event.id, plan.label.id), broken=0)
        self._messages = (message for chunk in replay.chunks() for message in chunk)

    def take(self, count: int) -> list[Message]:
        """The next ``count`` events and labels, in the order in which they became known."""
        found = list(islice(self._messages, count))
        assert len(found) == count, "the feed is used up"
        return found


@pytest.fixture(scope="session")
def feed(flights_plan: Plan, flights_data: data.Flights) -> Feed:
    return Feed(flights_plan, flights_data)


@pytest.fixture(scope="session")
def world(
    broker: BrokerHandle, flights_plan: Plan, flights_models: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    """The whole pipeline with all its workers, running. Small batches, so that there are many transactions, and
    snapshots often, so that every kill is followed by a restart from one."""
    here = Path.cwd()
    os.chdir(ROOT)  # workers import pipelines.flights from where they run
    try:
        with World(
            flights_plan,
            f"flights_{uuid4().hex[:8]}",
            broker.bootstrap,
            tmp_path_factory.mktemp("world"),
            flights_models,
            VERSION,
            max_batch_rows=64,
            snapshot_interval_s=0.5,
        ) as running:
            yield running
    finally:
        os.chdir(here)
