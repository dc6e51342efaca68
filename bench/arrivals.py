"""When a read_committed reader has each row of a topic, and the time that stands in it.

Values are kept as they come and decoded after the last one, so that reading costs next to nothing while latency is
measured. Run as a process: ``python -m bench.arrivals JSON``.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
from confluent_kafka import Consumer, Message, TopicPartition

from penstock.codec.avro import AvroDecoder


def arrivals(
    bootstrap: str, topic: str, partitions: int, rows: int, avro: dict[str, object], column: str, ready: str, out: str
) -> None:
    """Reads from the end until ``rows`` have come and nothing more does; saves int64[n] ``stamp`` (ms, the Avro
    field ``column``) and float64[n] ``at`` (ms) as ``out``.
    """
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": f"arrivals-{topic}",
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
            "fetch.wait.max.ms": 10,
            "fetch.queue.backoff.ms": 5,
        }
    )
    consumer.assign([TopicPartition(topic, number, 0) for number in range(partitions)])
    consumer.poll(0.5)
    Path(ready).touch()
    batches: list[tuple[float, list[Message]]] = []
    seen, deadline = 0, time.monotonic() + 120
    while time.monotonic() < deadline:
        messages = consumer.consume(1, 0.1)
        if not messages:
            if seen >= rows:
                break
            continue
        messages += consumer.consume(20_000, 0)
        batches.append((time.time() * 1000, messages))
        seen += len(messages)
    consumer.close()
    if seen != rows:
        raise SystemExit(f"{topic}: {seen} rows came, and {rows} were to come")
    decoder = AvroDecoder(avro, lambda number: avro)
    stamps, at = [], []
    for moment, messages in batches:
        decoded = decoder.decode(list(map(Message.value, messages))).rows
        stamps.append(decoded.column(column).cast(pa.int64()).to_numpy())
        at.append(np.full(len(messages), moment))
    np.savez(out, stamp=np.concatenate(stamps), at=np.concatenate(at))


if __name__ == "__main__":
    arrivals(**json.loads(sys.argv[1]))
