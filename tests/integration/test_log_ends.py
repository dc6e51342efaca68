"""A log that no longer holds what a worker needs: its beginning deleted, all of it gone, or more of it gone than the
group had read. What can be told is told, and only what loses nothing unsaid goes on.
"""

import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from confluent_kafka import ConsumerGroupTopicPartitions, TopicPartition
from confluent_kafka.admin import AdminClient

from penstock.local.resolve import BrokerHandle
from penstock.loop import Loop
from penstock.records import Partition
from penstock.recovery import IncompleteLogError
from tests.contract.worlds import KafkaWorld
from tests.small_loop import DEAD, DROPPED, SOURCE, TARGET, Passing, small_loop

pytestmark = pytest.mark.kafka

HOUR = 3_600_000


class Deployment:
    """One partition, one group, and one worker after the other."""

    def __init__(self, world: KafkaWorld, admin: AdminClient) -> None:
        self.world, self._admin = world, admin
        self.topics = {name: world.topic(name, 1) for name in (SOURCE, TARGET, DEAD, DROPPED)}
        self.source = Partition(self.topics[SOURCE], 0)
        self.sent: list[int] = []

    def append(self, rows: int) -> None:
        """Rows of now, a millisecond apart."""
        first = max(int(time.time() * 1000), *self.sent[-1:], 0)
        times = range(first + 1, first + 1 + rows)
        self.world.append(self.topics[SOURCE], [(b"k", b"%d" % at) for at in times])
        self.sent += times

    def delete_before(self, offset: int) -> None:
        """As retention does."""
        place = TopicPartition(self.source.topic, 0, offset)
        assert self._admin.delete_records([place])[place].result(30).low_watermark == offset

    def commit(self, offset: int) -> None:
        """Sets the group's offset, which no worker holds now, from outside."""
        group = self.world.group("g")
        place = ConsumerGroupTopicPartitions(group, [TopicPartition(self.source.topic, 0, offset)])
        self._admin.alter_consumer_group_offsets([place])[group].result(30)

    def work(self, reach_ms: int | None = None, until: int | None = None, **pace: bool) -> Passing:
        """A worker's life, until the group has committed ``until``, or else all that was sent."""
        stage = Passing(self.topics[TARGET], reach_ms)
        transport = self.world.transport("g")
        loop: Loop = small_loop(transport, stage, self.topics, **pace)
        try:
            transport.subscribe([self.source.topic], loop)
            deadline = time.monotonic() + 30
            goal = len(self.sent) if until is None else until
            while (at := transport.committed([self.source])[self.source]) is None or at.offset < goal:
                assert time.monotonic() < deadline, f"the group is at {at}"
                loop.step()
            while self.source not in loop.intake.lanes or loop.intake.replay_left(self.source):
                assert time.monotonic() < deadline, "the replay does not end"
                loop.step()
        finally:
            transport.close()
        return stage

    def written(self) -> list[int]:
        return [int(value or b"") for _, _, value, _ in self.world.rows(self.topics[TARGET])]


@pytest.fixture
def deployment(
    broker: BrokerHandle, topic_factory: Callable[..., str], read_committed: Callable[..., Any], kafka_topic_prefix: str
) -> Iterator[Deployment]:
    world = KafkaWorld(broker.bootstrap, topic_factory, read_committed, kafka_topic_prefix)
    yield Deployment(world, AdminClient({"bootstrap.servers": broker.bootstrap}))
    world.close()


def test_a_log_that_does_not_reach_back_to_where_the_windows_begin_is_refused(deployment: Deployment) -> None:
    deployment.append(10)
    deployment.work()
    deployment.delete_before(4)
    deployment.append(5)
    with pytest.raises(IncompleteLogError) as refusal:
        deployment.work(reach_ms=HOUR)
    assert str(refusal.value) == (
        f"{deployment.source}: the log begins at offset 4 and may not reach back to where the windows begin. "
        "Raise the topic's retention.ms, or set PENSTOCK_ALLOW_INCOMPLETE_WINDOWS=true to go on with the rest"
    )
    assert deployment.written() == deployment.sent[:10]


def test_where_incomplete_windows_are_allowed_the_rest_of_the_log_is_replayed(deployment: Deployment) -> None:
    deployment.append(10)
    deployment.work()
    deployment.delete_before(4)
    deployment.append(5)
    stage = deployment.work(reach_ms=HOUR, allow_incomplete_windows=True)
    assert (stage.replayed, stage.times) == (deployment.sent[4:10], deployment.sent[10:])
    assert deployment.written() == deployment.sent


def test_a_log_whose_rest_reaches_back_far_enough_is_complete(deployment: Deployment) -> None:
    deployment.append(6)
    time.sleep(0.2)  # the second half is later than the first by more than the stage reaches back
    deployment.append(4)
    deployment.work()
    deployment.delete_before(4)
    stage = deployment.work(reach_ms=100)
    assert stage.replayed == deployment.sent[6:10]


def test_a_log_of_which_all_that_was_read_is_gone_is_refused_while_windows_reach_back_to_it(
    deployment: Deployment,
) -> None:
    deployment.append(10)
    deployment.work()
    deployment.delete_before(10)
    with pytest.raises(IncompleteLogError) as refusal:
        deployment.work(reach_ms=HOUR)
    assert str(refusal.value) == (
        f"{deployment.source}: all rows before offset 10, which the group has committed, were deleted,"
        " and windows reach back to them. "
        "Raise the topic's retention.ms, or set PENSTOCK_ALLOW_INCOMPLETE_WINDOWS=true to go on with the rest"
    )
    deployment.append(5)
    stage = deployment.work(reach_ms=HOUR, allow_incomplete_windows=True)
    assert (stage.replayed, stage.times) == ([], deployment.sent[10:])


def test_a_partition_that_was_idle_for_longer_than_its_windows_lacks_nothing_and_that_is_told(
    deployment: Deployment, caplog: pytest.LogCaptureFixture
) -> None:
    deployment.append(10)
    deployment.work()
    deployment.delete_before(10)
    time.sleep(0.2)
    deployment.append(5)
    with caplog.at_level(logging.WARNING, "penstock.recovery"):
        stage = deployment.work(reach_ms=100)
    assert (stage.replayed, stage.times) == ([], deployment.sent[10:])
    assert any("its windows begin empty" in record.getMessage() for record in caplog.records)


def test_a_stage_without_state_needs_nothing_of_what_was_deleted(deployment: Deployment) -> None:
    deployment.append(10)
    deployment.work()
    deployment.delete_before(4)
    deployment.append(5)
    stage = deployment.work()
    assert (stage.replayed, stage.times) == ([], deployment.sent[10:])


def test_a_group_that_is_past_the_end_of_its_topic_is_told_that_it_was_made_anew(deployment: Deployment) -> None:
    deployment.append(3)
    deployment.commit(40)
    with pytest.raises(IncompleteLogError) as refusal:
        deployment.work(until=41)
    assert str(refusal.value) == (
        f"{deployment.source}: the group committed 40, but the log ends at 3: the topic was made anew."
        " Reset the group's offsets or give the pipeline a new name"
    )
    assert deployment.written() == []


def test_rows_that_were_deleted_before_they_were_read_are_named_and_the_rest_goes_on(
    deployment: Deployment, caplog: pytest.LogCaptureFixture
) -> None:
    deployment.append(3)
    deployment.work()
    deployment.append(7)
    deployment.delete_before(8)
    with caplog.at_level(logging.ERROR, "penstock.recovery"):
        stage = deployment.work()
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == [
        f"{deployment.source}: rows 3 to 7 were deleted by retention before they were read; going on at 8"
    ]
    assert (stage.replayed, stage.times) == ([], deployment.sent[8:])
    assert deployment.written() == deployment.sent[:3] + deployment.sent[8:]


def test_rows_deleted_before_a_stage_with_windows_has_read_them_are_no_gap_to_pass_over(deployment: Deployment) -> None:
    deployment.append(10)
    deployment.commit(3)
    deployment.delete_before(6)
    with pytest.raises(IncompleteLogError, match="rows 3 to 5 were deleted by retention before they were read") as told:
        deployment.work(reach_ms=HOUR)
    assert "PENSTOCK_ALLOW_INCOMPLETE_WINDOWS=true" in str(told.value)
    stage = deployment.work(reach_ms=HOUR, allow_incomplete_windows=True)
    assert stage.times == deployment.sent[6:]
