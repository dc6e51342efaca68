"""How a worker starts and how it ends: soon, without feast, with what the environment says; on SIGTERM with everything
that it took in hand committed.
"""

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import pytest
from confluent_kafka import ConsumerGroupTopicPartitions
from confluent_kafka.admin import AdminClient

from penstock.local.ports import free_port
from penstock.local.resolve import BrokerHandle
from penstock.local.supervisor import OWN
from penstock.plan import Plan
from tests.integration.conftest import VERSION, Feed
from tests.integration.pipeline_world import ROOT, Arrivals, World, until

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]

SOON_S = 3.0
BARE = "import numba, pyarrow, confluent_kafka"
TIMES_BARE = 5.0
"""A quiet machine imports these in 0.6 s. On a busy one the bound grows with what the imports alone take."""
TRIES = 4
"""The other tests that run beside may load broker and processor at any moment: the best of a few starts is measured."""


@pytest.fixture(scope="module")
def idle(
    broker: BrokerHandle, flights_plan: Plan, flights_models: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    """Topics and a champion, and no worker yet."""
    folder = tmp_path_factory.mktemp("idle")
    with World(
        flights_plan, f"idle_{uuid4().hex[:8]}", broker.bootstrap, folder, flights_models, VERSION, stages=[]
    ) as world:
        yield world


class Started:
    """A worker by itself, as `penstock run` starts it."""

    def __init__(self, world: World, stage: str, log: Path, *flags: str, **environ: str) -> None:
        self.log, self.port = log, free_port()
        keep = {k: v for k, v in os.environ.items() if k not in OWN and not k.startswith("PENSTOCK_")}
        self.began = time.monotonic()
        with log.open("wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, *flags, "-m", "penstock", "run", stage, str(world.folder / "plan.json")],
                cwd=ROOT,
                stderr=err,
                env={
                    **keep,
                    "KAFKA_BOOTSTRAP_SERVERS": world.bootstrap,
                    "PENSTOCK_MODELS_URL": world.settings.models_url,
                    "PENSTOCK_STATE_DIR": str(world.settings.state_dir),
                    "PENSTOCK_METRICS_PORT": str(self.port),
                    **environ,
                },
            )

    def ready(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()[-4000:]
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", "/health/ready")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()

    def wait_ready(self) -> float:
        """Seconds from the start of the process."""
        until("a ready worker", self.ready, pause=0.02)
        return time.monotonic() - self.began


@contextmanager
def started(world: World, stage: str, log: Path, *flags: str, **environ: str) -> Iterator[Started]:
    worker = Started(world, stage, log, *flags, **environ)
    try:
        yield worker
    finally:
        if worker.process.poll() is None:
            worker.process.kill()
        worker.process.wait()


def bare_imports() -> float:
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", BARE], check=True, env={k: v for k, v in os.environ.items() if k not in OWN})
    return time.monotonic() - began


@pytest.mark.parametrize("stage", ["ingest", "features.aircraft", "inference", "monitor"])
def test_a_worker_is_ready_soon_and_imports_no_feast(idle: World, stage: str, tmp_path: Path) -> None:
    with started(idle, stage, tmp_path / "first.log", "-X", "importtime") as first:
        first.wait_ready()  # the caches of bytecode and numba are warm from here on
        first.process.send_signal(signal.SIGTERM)
        assert first.process.wait(30) == 0
    imported = {
        line.rpartition("|")[2].strip()
        for line in (tmp_path / "first.log").read_text().splitlines()
        if line.startswith("import time:")
    }
    assert {"penstock.worker", "pyarrow", "confluent_kafka"} <= imported
    assert not {name for name in imported if name.partition(".")[0] == "feast"}

    waited = []
    for n in range(TRIES):
        before = bare_imports()
        with started(idle, stage, tmp_path / f"again-{n}.log") as again:
            waited.append(again.wait_ready())
            again.process.send_signal(signal.SIGTERM)
            assert again.process.wait(30) == 0
        if waited[-1] < max(SOON_S, TIMES_BARE * max(before, bare_imports())):
            return
    pytest.fail(f"{stage} was ready after {waited} s")


def test_sigterm_commits_what_is_in_hand_and_the_next_start_goes_on_behind_it(
    idle: World, feed: Feed, tmp_path: Path
) -> None:
    sent = idle.send(feed.take(2000))
    total = sum(event.topic == "raw" for event in sent)
    events = Arrivals(idle.bootstrap, {idle.topic("events"): idle.plan.partitions})
    try:
        # batches of two rows take seconds for all of it
        with started(idle, "ingest", tmp_path / "first.log", PENSTOCK_MAX_BATCH_ROWS="2") as first:
            until("the first events", lambda: sum(events.look().values()), pause=0.0)
            first.process.send_signal(signal.SIGTERM)
            assert first.process.wait(30) == 0
    finally:
        events.close()
    done = committed(idle, "ingest")
    origins = [(row["_origin_partition"], row["_origin_offset"]) for row in idle.rows("events")]
    assert sorted(origins) == sorted((p, offset) for p, end in done.items() for offset in range(end))
    assert len(origins) < total, "it left in the middle, not at the end"
    stopped = [json.loads(line) for line in (tmp_path / "first.log").read_text().splitlines()]
    assert stopped[-1]["message"] == "stopped"

    with started(idle, "ingest", tmp_path / "second.log") as second:
        until("all events", lambda: len(idle.records("events")) >= total)
        second.process.send_signal(signal.SIGTERM)
        assert second.process.wait(30) == 0
    origins = [(row["_origin_partition"], row["_origin_offset"]) for row in idle.rows("events")]
    assert len(origins) == len(set(origins)) == total


def committed(world: World, stage: str) -> dict[int, int]:
    """Partition of the raw topic → committed offset."""
    group = world.plan.group(stage)
    admin = AdminClient({"bootstrap.servers": world.bootstrap})
    found = admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions(group)])[group].result(30)
    return {p.partition: p.offset for p in found.topic_partitions if p.topic == world.topic("raw") and p.offset >= 0}


def test_the_environment_names_slot_and_log_level_and_a_slot_is_held_once(idle: World, tmp_path: Path) -> None:
    own = {"PENSTOCK_SLOT": "3", "PENSTOCK_LOG_LEVEL": "INFO"}
    with started(idle, "features.airport", tmp_path / "holder.log", **own) as holder:
        holder.wait_ready()
        lines = [json.loads(line) for line in holder.log.read_text().splitlines()]
        assert {line["slot"] for line in lines} == {3}
        assert {line["stage"] for line in lines} == {"features.airport"}
        with started(idle, "features.airport", tmp_path / "second.log", **own) as second:
            assert second.process.wait(60) == 1
        (said,) = [json.loads(line) for line in second.log.read_text().splitlines()]
        assert f"is held by process {holder.process.pid}" in said["message"]
        assert "PENSTOCK_SLOT" in said["message"]
        assert holder.ready()
