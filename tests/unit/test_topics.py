"""Topics on a real broker: made as the plan needs them, and every difference told with its mend."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka.admin import NewPartitions, NewTopic
from typer.testing import CliRunner

from penstock.cli.app import app
from penstock.local.resolve import BrokerHandle
from penstock.plan import (
    FORMAT,
    AggregationPlan,
    EventPlan,
    InputPlan,
    LabelPlan,
    MonitorPlan,
    Plan,
    SchemaPlan,
    ServicePlan,
    StagePlan,
    TopicPlan,
    ViewPlan,
)
from penstock.settings import Settings
from penstock.topics import (
    DAY_MS,
    WEEK_MS,
    Admin,
    BrokerUnavailable,
    admin_client,
    check_topics,
    create_topics,
    history_ms,
    topic_specs,
)

HOUR_MS = 3_600_000


def plan_of(name: str, window_ms: int = HOUR_MS, horizon_ms: int = 0, max_bytes: int = 1_000_000) -> Plan:
    """A plan with a raw, a dead, an events and a control topic of two partitions."""
    schema = {"type": "record", "name": "E", "fields": [{"name": "at", "type": "long"}]}
    raw = InputPlan(
        topic=f"{name}.raw", format="raw", value=SchemaPlan(subject="s", id=1, avro=schema), event_time="at"
    )
    view = ViewPlan(
        name="v",
        entity="e",
        key="k",
        aggregations=(
            AggregationPlan(name="n", column="at", function="count", window_ms=window_ms, tile_ms=window_ms // 60),
        ),
        lateness_ms=2 * HOUR_MS,
        hash="",
        key_bytes=8,
    )
    label = LabelPlan(avro=schema, id=1, subject="s", key="k", value="v", timestamp="at", horizon_ms=horizon_ms)
    return Plan(
        format=FORMAT,
        pipeline=name,
        source="here:pipeline",
        partitions=2,
        lateness_ms=2 * HOUR_MS,
        event=EventPlan(
            avro=schema,
            id=1,
            subject="s",
            event_id=None,
            timestamp="at",
            key="k",
            max_bytes=max_bytes,
            future_ms=HOUR_MS,
        ),
        label=label if horizon_ms else None,
        when=None,
        topics=tuple(
            TopicPlan(name=f"{name}.{suffix}", partitions=2, compacted=suffix == "control")
            for suffix in ("raw", "dead", "events", "control")
        ),
        stages=(StagePlan(name="ingest", inputs=(raw,), outputs=(f"{name}.events",)),),
        views=(view,),
        on_demand=(),
        service=ServicePlan(name="s", columns=(), hash=""),
        model=None,
        monitors=MonitorPlan(
            pane_ms=1, window_ms=1, idle_ms=1, psi=1, js=1, null_rate=1, minimum_rows=1, baseline=None
        ),
    )


def test_retention_reaches_back_past_the_longest_window_and_the_lateness() -> None:
    plan = plan_of("p", window_ms=30 * DAY_MS)
    assert history_ms(plan) == 30 * DAY_MS + 30 * DAY_MS // 60 + 2 * HOUR_MS + HOUR_MS
    assert {spec.retention_ms for spec in topic_specs(plan)} == {history_ms(plan) + DAY_MS}


def test_retention_covers_what_the_label_join_may_read_again() -> None:
    assert history_ms(plan_of("p", horizon_ms=20 * DAY_MS)) == 3 * 20 * DAY_MS + 3 * HOUR_MS


def test_retention_covers_the_horizon_of_copies_before_the_longest_window() -> None:
    plan = plan_of("p", window_ms=30 * DAY_MS)
    copies = plan.model_copy(update={"event": plan.event.model_copy(update={"deduplicate_ms": DAY_MS})})
    assert history_ms(copies) == history_ms(plan) + DAY_MS


def test_short_windows_still_keep_a_week() -> None:
    assert {spec.retention_ms for spec in topic_specs(plan_of("p"))} == {WEEK_MS}


@pytest.mark.parametrize("largest", [64, 1_000_000, 20_000_000])
def test_the_dead_topic_takes_64_kib_more_than_the_input(largest: int) -> None:
    limits = {spec.name: spec.max_message_bytes for spec in topic_specs(plan_of("p", max_bytes=largest))}
    assert limits["p.raw"] > largest
    assert limits["p.dead"] >= limits["p.raw"] + 64 * 1024
    assert limits["p.events"] >= largest + 2 * 64 * 1024


@pytest.fixture
def admin(broker: BrokerHandle) -> Admin:
    return admin_client(Settings(bootstrap_servers=broker.bootstrap))


@pytest.fixture
def plan(admin: Admin, kafka_topic_prefix: str) -> Iterator[Plan]:
    plan = plan_of(kafka_topic_prefix)
    yield plan
    there = [topic.name for topic in plan.topics if topic.name in admin.list_topics(timeout=10).topics]
    for deletion in admin.delete_topics(there).values() if there else ():
        deletion.result(30)


@pytest.mark.kafka
def test_made_topics_have_no_differences_and_are_made_once(admin: Admin, plan: Plan) -> None:
    specs = topic_specs(plan)
    assert sorted(create_topics(admin, specs)) == sorted(topic.name for topic in plan.topics)
    assert check_topics(admin, specs) == []
    assert create_topics(admin, specs) == []


@pytest.mark.kafka
def test_more_partitions_are_a_difference_only_where_keys_are_ours(admin: Admin, plan: Plan) -> None:
    specs = topic_specs(plan)
    create_topics(admin, specs)
    names = {plan.topic(suffix).name for suffix in ("raw", "events")}
    for asked in admin.create_partitions([NewPartitions(name, 5) for name in names]).values():
        asked.result(30)
    while {len(admin.list_topics(timeout=10).topics[name].partitions) for name in names} != {5}:
        time.sleep(0.02)
    (found,) = check_topics(admin, specs)
    assert (found.topic, found.what) == (plan.topic("events").name, "has 5 partitions, the plan 2")


@pytest.mark.kafka
def test_every_difference_is_told_with_its_mend(admin: Admin, plan: Plan) -> None:
    name = plan.topic("events").name
    wrong = {
        "message.timestamp.type": "CreateTime",
        "cleanup.policy": "compact",
        "retention.ms": "1000",
        "max.message.bytes": "2000",
    }
    admin.create_topics([NewTopic(name, 3, 1, config=wrong)])[name].result(30)
    while name not in admin.list_topics(timeout=10).topics:
        time.sleep(0.02)
    found = [d for d in check_topics(admin, topic_specs(plan)) if d.topic == name]
    assert [d.what.split(",")[0] for d in found] == [
        "has 3 partitions",
        "has message.timestamp.type CreateTime",
        "has cleanup.policy compact",
        "keeps records for 1000 ms",
        "takes messages of 2000 bytes",
    ]
    assert f"--entity-name {name} --add-config message.timestamp.type=LogAppendTime" in found[1].mend


@pytest.mark.kafka
def test_the_command_makes_checks_and_exits_1_on_a_difference(
    broker: BrokerHandle, admin: Admin, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PENSTOCK_BOOTSTRAP_SERVERS", broker.bootstrap)
    path = tmp_path / "plan.json"
    plan.save(path)
    missing = CliRunner().invoke(app, ["topics", str(path)])
    assert missing.exit_code == 1
    assert f"{plan.topic('raw').name} is missing. Mend: make it with `penstock topics PLAN --create`" in missing.output
    made = CliRunner().invoke(app, ["topics", str(path), "--create", "--json"])
    assert made.exit_code == 0, made.output
    assert json.loads(made.output)["differences"] == []
    assert len(json.loads(made.output)["created"]) == 4


def test_an_absent_broker_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = r"Kafka at 127\.0\.0\.1:1: .*KAFKA_BOOTSTRAP_SERVERS and PENSTOCK_SECURITY_PROTOCOL, or `penstock"
    with pytest.raises(BrokerUnavailable, match=said):
        check_topics(admin_client(Settings(bootstrap_servers="127.0.0.1:1")), topic_specs(plan_of("p")))
