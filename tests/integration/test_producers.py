"""What the replay and the load put on a real broker: every message once, by key, in order, marked where broken."""

import dataclasses
from datetime import timedelta

import pytest
from confluent_kafka import KafkaException

from penstock.local.resolve import BrokerHandle
from pipelines.flights import data
from pipelines.flights.broken import HEADER
from pipelines.flights.replay import DeliveryError, Pace, Replay, Sent, produce
from pipelines.fraud.load import fill
from tests.conftest import CommittedReader, TopicFactory

pytestmark = pytest.mark.kafka


def replay() -> Replay:
    days = data.load(None).between("2013-04-01", "2013-04-03")
    return Replay(days, (1, 2), broken=42)


def unhurried(log: Replay) -> Pace:
    return Pace(log, timedelta(days=2), lambda: log.last)


def test_the_replay_is_on_the_broker_as_it_was_laid_out(
    broker: BrokerHandle, topic_factory: TopicFactory, kafka_topic_prefix: str, read_committed: CommittedReader
) -> None:
    topics = topic_factory("raw"), topic_factory("labels")
    log = replay()
    steps: list[int] = []
    sent = produce(
        log, unhurried(log), {"bootstrap.servers": broker.bootstrap}, kafka_topic_prefix, lambda s: steps.append(s.time)
    )
    raw, labels = (read_committed(topic) for topic in topics)
    assert (len(raw), len(labels)) == (sent.events, sent.labels)
    assert len(raw) + len(labels) == len(log)
    marked = [dict(m.headers() or [])[HEADER].decode() for m in raw if m.headers()]
    assert sorted(marked) == sorted(sent.broken.elements())
    assert len(marked) == 42
    expected = [m for chunk in log.chunks() for m in chunk if m.topic == "raw"]
    assert {(m.key(), m.value() or None) for m in raw} == {(m.key, m.value or None) for m in expected}
    place = {(m.key, m.value): i for i, m in enumerate(expected)}
    for partition in range(4):
        order = [place[(m.key(), m.value())] for m in raw if m.partition() == partition and m.value()]
        assert order == sorted(order)
        assert order
    assert steps == sorted(steps)
    assert steps[-1] == log.last


def test_a_replay_that_is_stopped_says_what_it_sent(
    broker: BrokerHandle, topic_factory: TopicFactory, kafka_topic_prefix: str, read_committed: CommittedReader
) -> None:
    raw, labels = topic_factory("raw"), topic_factory("labels")
    log = replay()
    counted: list[Sent] = []
    pace = Pace(log, timedelta(days=2), lambda: log.last, stopped=lambda: len(counted) >= 3)
    sent = produce(
        log,
        pace,
        {"bootstrap.servers": broker.bootstrap},
        kafka_topic_prefix,
        lambda s: counted.append(dataclasses.replace(s)),
    )
    assert 0 < sent.events + sent.labels < len(log)
    assert len(read_committed(raw)) + len(read_committed(labels)) == sent.events + sent.labels


def test_a_missing_topic_is_an_error_that_says_so(broker: BrokerHandle, kafka_topic_prefix: str) -> None:
    log = replay()
    with pytest.raises(DeliveryError, match="penstock topics"):
        produce(log, unhurried(log), {"bootstrap.servers": broker.bootstrap}, kafka_topic_prefix)


@pytest.mark.parametrize("form", ["avro", "json"])
def test_a_topic_is_filled_with_as_many_transactions_as_asked(
    broker: BrokerHandle, topic_factory: TopicFactory, read_committed: CommittedReader, form: str
) -> None:
    topic, labels = topic_factory(f"raw-{form}", partitions=3), topic_factory(f"labels-{form}")
    assert form in ("avro", "json")
    filled = fill(
        {"bootstrap.servers": broker.bootstrap},
        1_000,
        fraud_rate=0.05,
        topic=topic,
        labels_topic=labels,
        form="json" if form == "json" else "avro",
    )
    values = [m.value() for m in read_committed(topic)]
    assert (len(values), sum(map(len, values))) == (filled.events, filled.bytes) == (1_000, filled.bytes)
    assert len(read_committed(labels)) == 1_000
    assert {value[:1] for value in values} == ({b"{"} if form == "json" else {b"\x00"})


def test_a_rate_is_kept(broker: BrokerHandle, topic_factory: TopicFactory) -> None:
    topic = topic_factory("raw")
    filled = fill({"bootstrap.servers": broker.bootstrap}, 2_000, topic=topic, rate=2_000)
    assert 0.9 < filled.seconds < 5


def test_a_value_that_the_broker_refuses_ends_the_load(broker: BrokerHandle, topic_factory: TopicFactory) -> None:
    topic = topic_factory("raw", max_message_bytes="20")
    with pytest.raises(KafkaException):
        fill({"bootstrap.servers": broker.bootstrap}, 10, topic=topic)
