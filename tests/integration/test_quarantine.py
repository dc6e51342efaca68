"""`penstock quarantine` on a real broker's dead letters, and on what workers keep beside their snapshots."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer
from typer.testing import CliRunner

from penstock.cli.app import app
from penstock.journal.notes import Notes
from penstock.journal.stepping import KILLED
from penstock.local.resolve import BrokerHandle
from penstock.plan import Plan
from penstock.records import Partition
from penstock.settings import Settings
from penstock.snapshots.files import Store
from penstock.topics import admin_client, create_topics, topic_specs
from tests.onnx_models import plan as any_plan

pytestmark = pytest.mark.kafka


class Deployment:
    """A plan with its topics on a broker, and a folder of what its workers wrote down."""

    def __init__(self, plan: Plan, broker: BrokerHandle, folder: Path) -> None:
        self.plan, self.file = plan, folder / "plan.json"
        plan.save(self.file)
        self.store = Store(str(folder / "kept"), plan.group("inference"))
        self.notes = Notes(self.store)
        self._producer = Producer({"bootstrap.servers": broker.bootstrap})

    def partition(self, number: int = 0) -> Partition:
        return Partition(self.plan.topic("features").name, number)

    def died(self, offset: int, stage: str = "inference", reason: str = KILLED) -> None:
        facts = {
            "__connect.errors.topic": self.partition().topic,
            "__connect.errors.partition": "0",
            "__connect.errors.offset": str(offset),
            "__connect.errors.stage": stage,
            "penstock.reason": reason,
        }
        self._producer.produce(self.plan.topic("dead").name, b"", headers=list(facts.items()))
        assert self._producer.flush(30) == 0

    def run(self, command: str, *more: str) -> Any:
        found = CliRunner().invoke(app, ["quarantine", command, str(self.file), *more, "--json"])
        return json.loads(found.stdout) | {"exit_code": found.exit_code}

    def rows(self) -> list[tuple[int, int]]:
        return [(row["partition"], row["offset"]) for row in self.run("list")["rows"]]


@pytest.fixture
def shop(
    broker: BrokerHandle, kafka_topic_prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Deployment]:
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", broker.bootstrap)
    monkeypatch.setenv("PENSTOCK_SNAPSHOTS_URL", str(tmp_path / "kept"))
    one = any_plan(kafka_topic_prefix)
    plan = one.model_copy(update={"topics": tuple(t.model_copy(update={"partitions": 2}) for t in one.topics)})
    admin = admin_client(Settings())
    create_topics(admin, topic_specs(plan))
    yield Deployment(plan, broker, tmp_path)
    for deletion in admin.delete_topics([topic.name for topic in plan.topics]).values():
        deletion.result(30)


def test_rows_are_listed_by_their_places_and_lifted_where_they_are_no_dead_letters(shop: Deployment) -> None:
    assert shop.rows() == []
    shop.notes.quarantine(shop.partition(), "cluster/topic", frozenset({17, 4, 5}))
    shop.notes.quarantine(shop.partition(1), "cluster/topic", frozenset({9}))
    for name in ("journal.json", "0000000001.snapshot"):
        shop.store.put(shop.partition(), name, b"")
    shop.store.put(shop.partition(1), "0000000001.snapshot", b"")
    assert shop.rows() == [(0, 4), (0, 5), (0, 17), (1, 9)]
    shop.died(17)
    shop.died(4, reason="wrong type")
    shop.died(5, stage="monitor")
    place = f"{shop.partition()}@"

    refused = shop.run("lift", "inference", f"{place}4", f"{place}17")
    assert refused["exit_code"] == 1
    dead = shop.plan.topic("dead").name
    assert f"{place}17 is the dead letter {dead}/" in refused["error"]
    assert "Send it again with `penstock dead replay " in refused["error"]
    assert shop.rows() == [(0, 4), (0, 5), (0, 17), (1, 9)]

    lifted = shop.run("lift", "inference", f"{place}4", f"{place}5")
    assert [row["offset"] for row in lifted["lifted"]] == [4, 5]
    assert shop.rows() == [(0, 17), (1, 9)]
    assert shop.notes.quarantined(shop.partition(), "cluster/topic") == {17}
    kept = sorted(shop.store.names(shop.partition()))
    assert kept == ["journal.json", "quarantine.json"], "its snapshots lack what was lifted"
    assert "0000000001.snapshot" in shop.store.names(shop.partition(1))

    assert shop.run("lift", "inference", f"{place}17", "--anyway")["exit_code"] == 0
    assert shop.rows() == [(1, 9)]
    assert shop.notes.quarantined(shop.partition(), "cluster/topic") == frozenset()


def test_what_is_not_quarantined_or_cannot_be_read_is_a_line(shop: Deployment) -> None:
    strange = shop.run("lift", "inference", f"{shop.partition()}@1")
    assert strange["exit_code"] == 1
    assert "is not quarantined for inference; nothing is." in strange["error"]
    assert "has no stage 'nothing'" in shop.run("lift", "nothing", f"{shop.partition()}@1")["error"]
    shop.store.put(shop.partition(), "quarantine.json", b"{")
    damaged = shop.run("list")
    assert damaged["exit_code"] == 1
    assert "quarantine.json is no quarantine of this version of penstock. Move it away" in damaged["error"]
