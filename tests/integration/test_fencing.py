"""A worker that does not know that it was replaced: a slot that is held twice, and a worker that slept for longer than
its session. Kafka tells the old one, it ends, and the whole output is counted anew.
"""

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from confluent_kafka import IsolationLevel, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from penstock.local.resolve import BrokerHandle
from penstock.plan import Plan
from penstock.settings import InvalidSettings, Settings
from penstock.transport.kafka import KafkaTransport
from tests.integration.conftest import VERSION, Feed
from tests.integration.pipeline_world import ROOT, World, until
from tests.integration.test_start import Started, started

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(600)]

STAGE = "features.aircraft"
"""It has windows to lose, and writes under another key."""
SESSION_MS = 4000
ENVIRON = {
    "PENSTOCK_SESSION_TIMEOUT_MS": str(SESSION_MS),
    "PENSTOCK_TRANSACTION_TIMEOUT_MS": "3000",
    "PENSTOCK_MAX_BATCH_ROWS": "32",
}


@pytest.fixture(scope="module")
def rest(
    broker: BrokerHandle, flights_plan: Plan, flights_models: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    """The pipeline with all workers but those of one stage."""
    here = Path.cwd()
    os.chdir(ROOT)  # workers import pipelines.flights from where they run
    others = [stage.name for stage in flights_plan.stages if stage.name != STAGE]
    folder = tmp_path_factory.mktemp("rest")
    try:
        with World(
            flights_plan, f"rest_{uuid4().hex[:8]}", broker.bootstrap, folder, flights_models, VERSION, stages=others
        ) as world:
            yield world
    finally:
        os.chdir(here)


def said(worker: Started) -> list[str]:
    """Errors of its log."""
    lines = [json.loads(line) for line in worker.log.read_text().splitlines() if line.startswith("{")]
    return [line["message"] for line in lines if line["level"] == "ERROR"]


def written(world: World) -> int:
    return len(world.records("by.airport"))


def test_the_older_of_two_holders_of_a_slot_ends_with_1_and_the_newer_goes_on(
    rest: World, feed: Feed, tmp_path: Path
) -> None:
    """Different state folders, as on two machines, where no file lock is seen."""
    with started(rest, STAGE, tmp_path / "older.log", PENSTOCK_STATE_DIR=str(tmp_path / "one"), **ENVIRON) as older:
        older.wait_ready()
        rest.play(feed.take(500))
        before = written(rest)
        assert before > 0
        with started(rest, STAGE, tmp_path / "newer.log", PENSTOCK_STATE_DIR=str(tmp_path / "two"), **ENVIRON) as newer:
            while older.process.poll() is None:  # it is never without work
                assert time.monotonic() - newer.began < 60
                rest.send(feed.take(20))
                time.sleep(0.05)
            assert older.process.returncode == 1
            assert said(older)[-1].startswith("fenced: ")
            newer.wait_ready()
            rest.finish()
            rest.play(feed.take(500))
            assert newer.ready()
            newer.process.send_signal(signal.SIGTERM)
            assert newer.process.wait(30) == 0
            assert said(newer) == []
    assert written(rest) > before
    rest.check()


def owners(world: World) -> dict[str, int]:
    """Member of the stage's group, by its name → how many partitions it has. What the broker says."""
    admin = AdminClient({"bootstrap.servers": world.bootstrap})
    group = world.plan.group(STAGE)
    found = admin.describe_consumer_groups([group], request_timeout=15)[group].result(30)
    return {member.group_instance_id: len(member.assignment.topic_partitions) for member in found.members}


def is_open(world: World) -> bool:
    """A transaction is open in what the stage writes: readers of committed rows see less than there is."""
    admin = AdminClient({"bootstrap.servers": world.bootstrap})
    places = [TopicPartition(world.topic("by.airport"), number) for number in range(world.plan.partitions)]
    ends = [
        {
            place: found.result(30).offset
            for place, found in admin.list_offsets(
                dict.fromkeys(places, OffsetSpec.latest()), isolation_level=level, request_timeout=15
            ).items()
        }
        for level in (IsolationLevel.READ_COMMITTED, IsolationLevel.READ_UNCOMMITTED)
    ]
    return ends[0] != ends[1]


def stop_in_the_middle(world: World, feed: Feed, worker: Started) -> None:
    """SIGSTOP while the worker, which commits seldom, has a transaction open; those of the others last for moments."""
    world.send(feed.take(400))
    looks, deadline = 0, time.monotonic() + 60
    while looks < 3:
        assert time.monotonic() < deadline, "it was never seen in the middle of its work"
        looks = looks + 1 if is_open(world) else 0
        time.sleep(0.3)
    worker.process.send_signal(signal.SIGSTOP)


@pytest.mark.parametrize(
    ("transaction_ms", "ended_by_the_broker"),
    [pytest.param(12_000, True, id="transaction aborted"), pytest.param(120_000, False, id="transaction open")],
)
def test_a_worker_that_slept_past_its_session_commits_nothing_that_another_has_taken_over(
    rest: World, feed: Feed, tmp_path: Path, transaction_ms: int, ended_by_the_broker: bool
) -> None:
    partitions, group = rest.plan.partitions, rest.plan.group(STAGE)
    slow = {
        "PENSTOCK_COMMIT_INTERVAL_MS": "8000",
        "PENSTOCK_TRANSACTION_TIMEOUT_MS": str(transaction_ms),
    }
    with (
        started(rest, STAGE, tmp_path / "0.log", PENSTOCK_SLOT="0", **ENVIRON | slow) as sleeper,
        started(rest, STAGE, tmp_path / "1.log", PENSTOCK_SLOT="1", **ENVIRON) as other,
    ):
        sleeper.wait_ready()
        other.wait_ready()
        shared = {f"{group}.0": partitions // 2, f"{group}.1": partitions // 2}
        until("each to have half", lambda: owners(rest) == shared, pause=0.2)
        rest.play(feed.take(300))
        stop_in_the_middle(rest, feed, sleeper)
        until("the other to have all", lambda: owners(rest) == {f"{group}.1": partitions}, pause=0.2)
        rest.send(feed.take(300))
        if ended_by_the_broker:
            rest.finish()  # the other has done all of it, the sleeper's share too
        else:
            until("the other to read it", lambda: rest.behind(STAGE) <= 2 * partitions, pause=0.2)
            assert is_open(rest)
        sleeper.process.send_signal(signal.SIGCONT)
        until(
            "the sleeper to be told",
            lambda: sleeper.process.poll() is not None or owners(rest) == shared,
            pause=0.2,
        )
        rest.play(feed.take(300))
        rest.check()
        if ended_by_the_broker:
            assert sleeper.process.wait(30) == 1
            assert said(sleeper)[-1].startswith("fenced: ")
        else:  # it knows itself what is no longer its own, or is told at its commit, and goes on
            assert sleeper.process.poll() is None
            assert all("UNKNOWN_MEMBER_ID" in line for line in said(sleeper))
        assert said(other) == []


def test_a_transaction_time_out_that_the_broker_does_not_allow_is_named_and_is_no_fencing(broker: BrokerHandle) -> None:
    settings = Settings(bootstrap_servers=broker.bootstrap, transaction_timeout_ms=99_999_999)
    with pytest.raises(InvalidSettings, match="PENSTOCK_TRANSACTION_TIMEOUT_MS=99999999 is more than the broker's"):
        KafkaTransport(settings, "shop.ingest", "ingest")
