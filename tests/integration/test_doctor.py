"""`penstock doctor` on the flights pipeline with all its workers: well, and then with one thing broken at a time."""

import json
import shutil
import time
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ConfigSource,
    NewPartitions,
    ResourceType,
)
from typer.testing import CliRunner

from penstock.cli.app import app
from penstock.local.offsets import OffsetReader
from penstock.local.ports import free_port
from penstock.local.resolve import resolve_broker
from penstock.models.control_topic import promote, publish
from penstock.plan import Plan
from penstock.settings import Settings
from penstock.topics import admin_client, create_topics, topic_specs
from tests.integration.conftest import VERSION, Feed
from tests.integration.pipeline_world import ROOT, World, until

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(600)]

PIPELINE = "pipelines.flights.pipeline:pipeline"
SAID_OF_KAFKA = {
    "topics", "partitions", "topic settings", "retention", "message sizes", "replicas", "right to write",
    "right to read", "right to groups", "champion", "model", "profile", "clock", "open transactions", "lag", "probe",
}  # fmt: skip
HOUR_MS = 3_600_000


class Examined(NamedTuple):
    exit_code: int
    findings: list[dict[str, str]]
    output: str

    def of(self, verdict: str) -> list[dict[str, str]]:
        return [finding for finding in self.findings if finding["verdict"] == verdict]


@pytest.fixture(scope="module")
def running(flights_plan: Plan, flights_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """The pipeline under its own name, for the command compiles it, and so on a broker of its own."""
    folder = tmp_path_factory.mktemp("doctor")
    models = folder / "models"
    shutil.copytree(flights_models, models)
    with (
        pytest.MonkeyPatch.context() as patch,
        resolve_broker(False, folder / "broker", environ={}) as broker,
    ):
        patch.chdir(ROOT)
        patch.setenv("KAFKA_BOOTSTRAP_SERVERS", broker.bootstrap)
        patch.setenv("PENSTOCK_MODELS_URL", str(models))
        with World(flights_plan, flights_plan.pipeline, broker.bootstrap, folder / "world", models, VERSION) as world:
            yield world


def doctor(*options: str) -> Examined:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # feast's own libraries are full of deprecated calls
        done = CliRunner().invoke(app, ["doctor", PIPELINE, "--json", "--timeout", "60", *options])
    assert isinstance(done.exception, SystemExit | None), done.exception
    return Examined(done.exit_code, json.loads(done.stdout)["findings"], done.output)


def test_a_healthy_pipeline_is_well_in_every_line_and_stays_as_it_was(running: World, feed: Feed) -> None:
    running.play(feed.take(400))
    watermarks = ingest_watermarks(running)
    for _ in range(2):  # the second one would see what the first one left behind
        found = doctor("--max-lag", "60")
        assert [each for each in found.findings if each["verdict"] != "ok"] == []
        assert {each["check"] for each in found.findings} == SAID_OF_KAFKA | {"broker", "schemas", "compatibility"}
        assert found.exit_code == 0
    assert ingest_watermarks(running) == watermarks
    look = OffsetReader(running.plan, running.settings).read()
    assert [sum(look.lag(stage).values()) for stage in running.plan.stages] == [0] * len(running.plan.stages)

    notes = [row for row in running.rows("dropped") if row["reason"] == "probe"]
    assert [note["stage"] for note in notes] == ["ingest"] * 2 * running.plan.partitions
    assert sorted(note["origin_partition"] for note in notes) == sorted([*range(running.plan.partitions)] * 2)
    origins = {(note["origin_partition"], note["origin_offset"]) for note in notes}
    assert not origins & {(row["_origin_partition"], row["_origin_offset"]) for row in running.rows("events")}
    assert running.rows("dead") == []
    verdict = running.verdict()
    assert verdict.ok, verdict.json()
    assert verdict.counts["raw"] == sum(event.topic == "raw" for event in running.events) + len(notes)


def ingest_watermarks(world: World) -> dict[int, int]:
    """By raw partition, as committed."""
    committed = OffsetReader(world.plan, world.settings).read().committed["ingest"]
    return {where.number: at.watermark for where, at in committed.items() if where.topic == world.topic("raw")}


def test_without_json_every_finding_is_a_line(running: World) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        done = CliRunner().invoke(app, ["doctor", PIPELINE, "--no-probe"])
    assert done.exit_code == 0, done.output
    lines = [line.split() for line in done.output.splitlines()]
    assert ["not", "looked", "at", "probe", "--no-probe"] in lines
    assert any(line[:2] == ["ok", "broker"] for line in lines)


@contextmanager
def altered(world: World, topic: str, setting: str, value: str) -> Iterator[None]:
    """A topic's setting for a while."""
    before = set_to(world, topic, setting, value)
    yield
    set_to(world, topic, setting, before)


def set_to(world: World, topic: str, setting: str, value: str) -> str:
    """Waits until it is in force, and returns what it was before."""
    admin = AdminClient({"bootstrap.servers": world.bootstrap})
    name = world.topic(topic)

    def now() -> str:
        (found,) = admin.describe_configs([ConfigResource(ResourceType.TOPIC, name)]).values()
        return str(found.result(30)[setting].value)

    before = now()
    entry = ConfigEntry(setting, value, ConfigSource.DYNAMIC_TOPIC_CONFIG, incremental_operation=AlterConfigOpType.SET)
    (asked,) = admin.incremental_alter_configs(
        [ConfigResource(ResourceType.TOPIC, name, incremental_configs=[entry])]
    ).values()
    asked.result(30)
    until(f"{setting} of {name}", lambda: now() == value)
    return before


def short_retention(world: World) -> AbstractContextManager[None]:
    return altered(world, "events", "retention.ms", str(HOUR_MS))


def small_messages(world: World) -> AbstractContextManager[None]:
    return altered(world, "dead", "max.message.bytes", "100000")


@contextmanager
def an_altered_byte(world: World) -> Iterator[None]:
    file = Path(world.settings.models_url) / "flight_delay" / VERSION / "model.onnx"
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    yield
    file.write_bytes(content)


@contextmanager
def no_champion(world: World) -> Iterator[None]:
    publish(world.settings, world.plan, "flight_delay", None)
    yield
    promote(world.settings, world.plan, VERSION)


@contextmanager
def a_hanging_transaction(world: World) -> Iterator[None]:
    """In a topic that no stage reads."""
    producer = Producer(
        {"bootstrap.servers": world.bootstrap, "transactional.id": "left-open", "transaction.timeout.ms": 600_000}
    )
    producer.init_transactions(30)
    producer.begin_transaction()
    producer.produce(world.topic("alerts"), b"x", partition=1)
    assert producer.flush(30) == 0
    time.sleep(1.5)  # older than the time-out below
    yield
    producer.abort_transaction(30)


BROKEN = [
    (short_retention, "retention", "flights.events keeps records for 3600000 ms", "--add-config retention.ms="),
    (small_messages, "message sizes", "flights.dead takes messages of 100000 bytes", "max.message.bytes="),
    (an_altered_byte, "model", "model.onnx has sha256", f"penstock model verify flight_delay {VERSION}"),
    (no_champion, "champion", "nobody serves flight_delay", "penstock model promote var/flights/plan.json "),
    (a_hanging_transaction, "open transactions", "flights.alerts/1 has a transaction open", "--start-offset"),
]


@pytest.mark.parametrize(("broken", "check", "seen", "mend"), BROKEN, ids=[case[1] for case in BROKEN])
def test_what_is_broken_fails_in_its_own_line_with_its_mend(
    running: World, monkeypatch: pytest.MonkeyPatch, broken: Any, check: str, seen: str, mend: str
) -> None:
    monkeypatch.setenv("PENSTOCK_TRANSACTION_TIMEOUT_MS", "1000")
    state: AbstractContextManager[None] = broken(running)
    with state:
        found = doctor("--no-probe")
    assert [each["check"] for each in found.of("fail")] == [check], found.output
    (failed,) = found.of("fail")
    assert seen in failed["seen"]
    assert mend in failed["mend"]
    assert found.exit_code == 1


def test_a_stage_that_nobody_works_on_fails_with_its_lag_and_gets_no_probe(running: World, feed: Feed) -> None:
    running.supervisor.stop()
    running.send(feed.take(200))
    admin = AdminClient({"bootstrap.servers": running.bootstrap})
    groups = [running.plan.group(stage.name) for stage in running.plan.stages]

    def deserted() -> bool:  # who leaves by SIGTERM keeps its membership for the session
        return not any(answer.result(30).members for answer in admin.describe_consumer_groups(groups).values())

    until("empty groups", deserted)
    found = doctor()
    (failed,) = found.of("fail")
    assert failed["check"] == "lag"
    assert failed["seen"].startswith("ingest: ")
    assert failed["seen"].endswith("nobody works on it")
    assert failed["mend"].startswith("start penstock run ingest ")
    assert {each["seen"].split(":")[0] for each in found.of("warn")} == {
        stage.name for stage in running.plan.stages if stage.name != "ingest"
    }
    (unseen,) = found.of("not looked at")
    assert (unseen["check"], unseen["seen"]) == ("probe", "no ingest worker would read it")
    assert found.exit_code == 1
    with no_champion(running):
        (waiting,) = [each for each in doctor("--no-probe").findings if each["seen"].startswith("inference: ")]
    assert "its workers wait for a model and read nothing before: see champion" in waiting["seen"]
    assert waiting["mend"].startswith("penstock model promote var/flights/plan.json ")


def test_a_topic_of_other_partitions_fails_in_its_own_line(running: World) -> None:
    admin = AdminClient({"bootstrap.servers": running.bootstrap})
    name = running.topic("alerts")
    (asked,) = admin.create_partitions([NewPartitions(name, 5)]).values()
    asked.result(30)
    until("five partitions", lambda: len(admin.list_topics(timeout=10).topics[name].partitions) == 5)
    (failed,) = [each for each in doctor("--no-probe").of("fail") if each["check"] != "lag"]
    assert failed["check"] == "partitions"
    assert failed["seen"] == "flights.alerts has 5 partitions, the plan 4"
    assert "make the topic anew" in failed["mend"]


def test_a_topic_that_is_gone_fails_in_its_own_line_and_is_asked_for_nothing_more(running: World) -> None:
    admin = admin_client(Settings(bootstrap_servers=running.bootstrap))
    for deletion in admin.delete_topics([running.topic("alerts"), running.topic("raw")]).values():
        deletion.result(30)
    until("no topic", lambda: running.topic("raw") not in admin.list_topics(timeout=10).topics)
    found = doctor()
    (failed,) = [each for each in found.of("fail") if each["check"] != "lag"]
    assert failed["check"] == "topics"
    assert failed["seen"] == "flights.raw, flights.alerts are missing"
    assert failed["mend"] == "make it with `penstock topics var/flights/plan.json --create`"
    assert {each["check"]: each["seen"] for each in found.of("not looked at")} == {"probe": "flights.raw is missing"}
    create_topics(admin, topic_specs(running.plan))  # what is there at the end is deleted then


def test_a_broker_that_is_away_is_one_line_within_the_time(flights_plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", f"127.0.0.1:{free_port()}")
    began = time.monotonic()
    found = doctor("--timeout", "2")
    assert time.monotonic() - began < 30
    (failed,) = found.of("fail")
    assert failed["check"] == "broker"
    assert "no answer from 127.0.0.1" in failed["seen"]
    assert "KAFKA_BOOTSTRAP_SERVERS" in failed["mend"]
    assert {each["check"] for each in found.of("not looked at")} == SAID_OF_KAFKA
    assert {each["check"] for each in found.of("ok")} == {"schemas", "compatibility"}
    assert found.exit_code == 1


def test_a_pipeline_that_is_none_ends_with_status_2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    done = CliRunner().invoke(app, ["doctor", "pipelines.flights.pipeline:nothing", "--json"])
    assert done.exit_code == 2
    assert "has no 'nothing'" in json.loads(done.stdout)["error"]
