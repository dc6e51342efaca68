"""Partitions that are added to a topic while a group reads it: each has a reader soon, whoever was killed meanwhile;
where keys would miss their state it is refused.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewPartitions

from penstock.local.resolve import BrokerHandle
from penstock.plan import Plan
from penstock.records import Partition
from penstock.settings import Settings
from penstock.transport.kafka import KafkaTransport
from penstock.transport.protocol import Repartitioned
from tests.contract.worlds import KafkaWorld, Recorder
from tests.integration.conftest import VERSION
from tests.integration.pipeline_world import ROOT, World, until
from tests.small_loop import DEAD, DROPPED, SOURCE, TARGET, Passing, small_loop

pytestmark = pytest.mark.kafka

SOON_S = 15.0
"""A look that finds them, two more, and a rebalance; Kafka's own clients look every five minutes."""


@pytest.fixture
def world(
    broker: BrokerHandle, topic_factory: Callable[..., str], read_committed: Callable[..., Any], kafka_topic_prefix: str
) -> Iterator[KafkaWorld]:
    world = KafkaWorld(broker.bootstrap, topic_factory, read_committed, kafka_topic_prefix)
    yield world
    world.close()


def add_partitions(world: KafkaWorld, topic: str, total: int) -> None:
    admin = AdminClient({"bootstrap.servers": world.bootstrap})
    admin.create_partitions([NewPartitions(topic, total)])[topic].result(30)


class Member:
    def __init__(self, world: KafkaWorld, topic: str, slot: int) -> None:
        self.transport, self.placement, self.told = world.transport("g", slot), Recorder(), list[str]()
        self.transport.subscribe([topic], self.placement)

    def poll(self) -> None:
        self.transport.poll(100, 0.02)
        if why := self.transport.unread():
            self.told.append(why)


def all_read(members: list[Member], topic: str, total: int, seconds: float = SOON_S) -> None:
    """Polls until the members read every partition, and each of them one reader."""
    every = [Partition(topic, n) for n in range(total)]
    deadline = time.monotonic() + seconds
    while sorted(p for member in members for p in member.placement.owned) != every:
        owned = [sorted(member.placement.owned) for member in members]
        assert time.monotonic() < deadline, f"after {seconds:.0f} s the members read {owned}"
        for member in members:
            member.poll()


def test_partitions_that_are_added_have_readers_within_seconds(world: KafkaWorld) -> None:
    topic = world.topic("in", 1)
    members = [Member(world, topic, 0), Member(world, topic, 1)]
    all_read(members, topic, 1)
    add_partitions(world, topic, 4)
    all_read(members, topic, 4)


@pytest.mark.parametrize("killed", [0, 1])
def test_partitions_have_readers_though_a_member_was_killed_when_they_were_added(
    world: KafkaWorld, killed: int
) -> None:
    topic = world.topic("in", 2)
    members = [Member(world, topic, 0), Member(world, topic, 1)]
    all_read(members, topic, 2)
    add_partitions(world, topic, 5)
    world.kill(members[killed].transport)
    members[killed] = Member(world, topic, killed)
    all_read(members, topic, 5)


def test_partitions_have_a_reader_though_the_only_member_was_killed_when_they_were_added(world: KafkaWorld) -> None:
    topic = world.topic("in", 1)
    member = Member(world, topic, 0)
    all_read([member], topic, 1)
    for total in (3, 4):  # and again
        add_partitions(world, topic, total)
        world.kill(member.transport)
        member = Member(world, topic, 0)
        all_read([member], topic, total)
        (why,) = set(member.told)
        new = ", ".join(f"{topic}/{n}" for n in range(1 if total == 3 else 3, total))
        assert why == (f"no worker of {world.group('g')} reads {new}: the group is asked to share its partitions anew")
        deadline = time.monotonic() + SOON_S
        while member.transport.unread() is not None:
            assert time.monotonic() < deadline, member.transport.unread()
            member.poll()


def test_a_topic_whose_keys_would_miss_their_state_may_not_grow(world: KafkaWorld) -> None:
    topic = world.topic("in", 2)
    settings = Settings(bootstrap_servers=world.bootstrap)
    transport = KafkaTransport(settings, world.group("g"), "test", planned={topic: 2})
    try:
        transport.subscribe([topic], Recorder())
        transport.poll(1, 0.1)
        add_partitions(world, topic, 3)
        with pytest.raises(Repartitioned, match=f"topic '{topic}' has 3 partitions, the plan 2: rows with one key"):
            poll_for(transport, SOON_S)
    finally:
        transport.close()
    again = KafkaTransport(settings, world.group("g"), "test", planned={topic: 2})
    try:
        with pytest.raises(Repartitioned):
            again.subscribe([topic], Recorder())
    finally:
        again.close()


def poll_for(transport: KafkaTransport, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        transport.poll(1, 0.1)


def test_rows_of_added_partitions_go_on_by_event_time_and_hold_up_no_others(world: KafkaWorld) -> None:
    topics = {name: world.topic(name, 1) for name in (SOURCE, TARGET, DEAD, DROPPED)}
    source, hour = topics[SOURCE], 3_600_000
    stage = Passing(topics[TARGET])
    loop = small_loop(world.transport("g"), stage, topics, merges=True, lateness_ms=1000)
    loop.transport.subscribe([source], loop)

    def pass_on(number: int, times: list[int]) -> None:
        producer = Producer({"bootstrap.servers": world.bootstrap})  # that knows of all partitions
        for at in times:
            producer.produce(source, b"%d" % at, partition=number)
        producer.flush()
        deadline = time.monotonic() + SOON_S
        while not set(times) <= set(stage.times):
            assert time.monotonic() < deadline, f"of {times} in partition {number} came {stage.times}"
            loop.step()

    pass_on(0, [hour, 2 * hour])
    add_partitions(world, source, 2)
    deadline = time.monotonic() + SOON_S
    while Partition(source, 1) not in loop.intake.lanes:
        assert time.monotonic() < deadline
        loop.step()
    pass_on(1, [3 * hour, 4 * hour, 5 * hour])  # later than partition 0 ever comes, by more than is held back for
    pass_on(0, [6 * hour])
    assert stage.times == [hour * n for n in range(1, 7)]
    loop.transport.close()


def test_workers_end_and_name_the_mend_where_partitions_are_added_to_a_topic_of_our_keys(
    broker: BrokerHandle, flights_plan: Plan, flights_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)  # workers import pipelines.flights from where they run
    name, stages = f"flights_{uuid4().hex[:8]}", ["ingest", "features.aircraft"]
    with World(flights_plan, name, broker.bootstrap, tmp_path, flights_models, VERSION, stages=stages) as world:
        world.add_partitions("events", flights_plan.partitions + 1)
        for stage in stages:
            said = f"{stage}.0 ended with exit code 1;"
            until(said, lambda said=said: any(line.startswith(said) for line in world.heard), SOON_S)
            assert f"topic '{name}.events' has 5 partitions, the plan 4: rows with one key" in world.log(stage)


def test_topics_that_users_write_are_not_among_those_whose_keys_are_ours(flights_plan: Plan) -> None:
    name = flights_plan.pipeline
    assert flights_plan.keyed("ingest") == {f"{name}.events": 4, f"{name}.outcomes": 4}
    assert flights_plan.keyed("features.aircraft") == {
        f"{name}.events": 4,
        f"{name}.by.airport": 4,
        f"{name}.view.aircraft_delays": 4,
    }
