"""The bare copy, the ceiling of one Python hop: consume, produce the same bytes to another topic, commit transactions.

It is what every case is measured against, so it has the client settings of the workers and does nothing else: no
message is looked into, the collector is off, and offsets are taken from the last message of a partition only.
Run as a process: ``python -m bench.bare_copy JSON``.
"""

import gc
import json
import signal
import sys
import time
from pathlib import Path
from types import FrameType

from confluent_kafka import Consumer, Message, Producer, TopicPartition

from penstock.settings import Settings
from penstock.transport.kafka import CONSUMER
from penstock.transport.transactions import PRODUCER


def copy(group: str, sources: list[str], target: str, commit_ms: int, ready: str) -> None:
    """Until SIGTERM. ``ready`` is a file that is made once partitions are assigned."""
    settings = Settings()
    client = {**settings.kafka(), "client.id": group}
    producer = Producer(
        {
            **client,
            **PRODUCER,
            "transactional.id": group,
            "transaction.timeout.ms": settings.transaction_timeout_ms,
        }
    )
    producer.init_transactions(30.0)
    consumer = Consumer(
        {
            **client,
            **CONSUMER,
            "enable.partition.eof": False,  # nothing here asks for it
            "group.id": group,
            "group.instance.id": group,
            "partition.assignment.strategy": "cooperative-sticky",
            "session.timeout.ms": settings.session_timeout_ms,
        }
    )
    stopping = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopping
        stopping = True

    signal.signal(signal.SIGTERM, stop)
    consumer.subscribe(sources, on_assign=lambda _, partitions: Path(ready).touch())
    rows, interval = settings.max_batch_rows, commit_ms / 1000
    produce = producer.produce
    offsets: dict[tuple[str, int], int] = {}
    opened = 0.0
    gc.collect()
    gc.freeze()
    gc.disable()
    while not stopping or offsets:
        wait = 0.05 if not offsets else max(0.0, min(0.05, opened + interval - time.perf_counter()))
        messages = consumer.consume(1, wait)
        if messages:
            messages += consumer.consume(rows - 1, 0)
            if any(map(Message.error, messages)):
                messages = [message for message in messages if message.error() is None]
        if messages:
            if not offsets:
                producer.begin_transaction()
                opened = time.perf_counter()
            for value, key in zip(map(Message.value, messages), map(Message.key, messages), strict=True):
                try:
                    produce(target, value, key)
                except BufferError:
                    producer.poll(0.05)
                    produce(target, value, key)
            producer.poll(0)
            places = zip(map(Message.topic, messages), map(Message.partition, messages), strict=True)
            offsets.update(zip(places, map(Message.offset, messages), strict=True))
        if offsets and (stopping or time.perf_counter() - opened >= interval):
            positions = [TopicPartition(topic, number, at + 1) for (topic, number), at in offsets.items()]
            producer.send_offsets_to_transaction(positions, consumer.consumer_group_metadata())
            producer.commit_transaction()
            offsets.clear()
    consumer.close()


if __name__ == "__main__":
    copy(**json.loads(sys.argv[1]))
