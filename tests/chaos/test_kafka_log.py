"""What the verifier sees of a real broker's open transactions."""

import pytest
from confluent_kafka import Producer

from penstock.local.resolve import BrokerHandle
from tests.chaos.kafka_log import KafkaLog
from tests.conftest import TopicFactory


@pytest.mark.kafka
def test_a_transaction_that_a_worker_left_open_is_seen_before_the_broker_ends_it(
    broker: BrokerHandle, topic_factory: TopicFactory
) -> None:
    topic = topic_factory("left", partitions=2)
    worker = Producer(
        {"bootstrap.servers": broker.bootstrap, "transactional.id": topic, "transaction.timeout.ms": 10_000}
    )
    worker.init_transactions(30)
    worker.begin_transaction()
    worker.produce(topic, b"row", partition=1)
    assert worker.flush(30) == 0
    log = KafkaLog(broker.bootstrap)
    assert log.unstable([topic]) == [f"{topic}/1: stable to 0 of 1"]
    worker.abort_transaction(30)
    assert log.unstable([topic]) == []
