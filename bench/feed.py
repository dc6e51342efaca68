"""Fraud events at a steady rate, each stamped with the moment at which it was to be sent.

Everything is encoded before the first is due, so that the load itself costs next to nothing while latency is measured;
an event that leaves late has its delay counted. Run as a process: ``python -m bench.feed JSON``.
"""

import json
import sys
import time

import numpy as np
from confluent_kafka import Producer

from penstock.codec.avro import AvroEncoder
from penstock.transport.transactions import PRODUCER
from pipelines.fraud.data import generate, schema

TICK_S = 0.002
HEAD_START_S = 1.0
CHUNK = 50_000


def feed(bootstrap: str, topic: str, schema_id: int, rate: int, seconds: float) -> None:
    """``rate`` events a second for ``seconds``."""
    n = int(rate * seconds)
    producer = Producer({"bootstrap.servers": bootstrap, **PRODUCER, "linger.ms": 1, "enable.idempotence": True})
    producer.list_topics(topic, timeout=30)
    values, keys, first_ms = prepared(n, rate, schema_id)
    due = first_ms / 1000 + np.arange(n) / rate
    produce, sent = producer.produce, 0
    while sent < n:
        time.sleep(max(0.0, min(TICK_S, due[sent] - time.time())))
        until = int(np.searchsorted(due, time.time(), side="right"))
        for i in range(sent, until):
            produce(topic, values[i], keys[i])
        producer.poll(0)
        sent = until
    if producer.flush(30):
        raise SystemExit("the broker did not take all events")


def prepared(n: int, rate: int, schema_id: int) -> tuple[list[bytes], list[str], int]:
    """Values and keys of ``n`` events whose first is due a moment from now, and when (ms since epoch)."""
    encode = AvroEncoder(schema("event"), schema_id).encode
    ahead = HEAD_START_S
    while True:
        began = time.time()
        first_ms = int((began + ahead) * 1000)
        rng = np.random.default_rng(7)
        values: list[bytes] = []
        keys: list[str] = []
        for start in range(0, n, CHUNK):
            made = generate(min(CHUNK, n - start), start, rng, first_ms=first_ms, step_ms=1000 / rate).events
            values += encode(made).to_pylist()
            keys += made["card_id"].to_pylist()
        if time.time() < first_ms / 1000:
            return values, keys, first_ms
        ahead = HEAD_START_S + 1.5 * (time.time() - began)


if __name__ == "__main__":
    feed(**json.loads(sys.argv[1]))
