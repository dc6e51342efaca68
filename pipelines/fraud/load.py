"""Fills a topic with transactions, as fast as the broker takes them or at a steady rate: the load of the benchmarks.

Values are made a batch at a time, as columns, in Avro or in JSON.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from confluent_kafka import KafkaError, KafkaException, Producer
from confluent_kafka.admin import AdminClient, NewTopic

from penstock.codec.avro import AvroEncoder
from pipelines.fraud.data import EPOCH_MS, STEP_MS, generate, schema

BATCH = 50_000

Encode = Callable[[pa.RecordBatch], list[bytes]]


@dataclass(frozen=True, slots=True)
class Filled:
    """``events`` and ``bytes`` of the values that the broker has; ``seconds`` it took; ``frauds`` among them."""

    events: int
    bytes: int
    frauds: int
    seconds: float


def fill(
    kafka: Mapping[str, str],
    n: int,
    partitions: int = 4,
    fraud_rate: float = 0.01,
    *,
    topic: str = "fraud.raw",
    labels_topic: str | None = None,
    schema_ids: tuple[int, int] = (1, 2),
    form: Literal["avro", "json"] = "avro",
    rate: float | None = None,
    first_ms: int = EPOCH_MS,
    step_ms: float | None = None,
    seed: int = 7,
) -> Filled:
    """Produces ``n`` transactions, keyed by card, and waits until they are acknowledged.

    ``kafka`` is the connection part of a client's configuration. The topic is made with ``partitions`` partitions where
    it is missing. ``rate``: events per second, None for as fast as it goes; with a rate the event time advances with
    the clock unless ``step_ms`` is given. Labels follow at once if ``labels_topic`` is given. The same ``seed`` gives
    the same events. Raises ``KafkaException`` when the broker refuses.
    """
    for name in (topic, labels_topic):
        if name is not None:
            _make(kafka, name, partitions)
    event, label = AvroEncoder(schema("event"), schema_ids[0]), AvroEncoder(schema("label"), schema_ids[1])
    refused: list[KafkaError] = []
    producer = Producer(
        {
            **kafka,
            "enable.idempotence": True,
            "partitioner": "murmur2_random",
            "linger.ms": 50 if rate is None else 2,
            "compression.type": "lz4",
            "queue.buffering.max.messages": 1_000_000,
            "delivery.report.only.error": True,
            "on_delivery": lambda error, message: refused.append(error),
        }
    )
    rng = np.random.default_rng(seed)
    step = step_ms if step_ms is not None else (1_000 / rate if rate else STEP_MS)
    # small batches where a rate is to be kept, so that it is steady within a few milliseconds
    size = BATCH if rate is None else max(1, min(BATCH, int(rate / 200)))
    began = time.perf_counter()
    total = frauds = 0
    for start in range(0, n, size):
        made = generate(min(size, n - start), start, rng, fraud_rate, first_ms, step)
        values = event.encode(made.events).to_pylist() if form == "avro" else as_json(made.events)
        if rate is not None:
            time.sleep(max(0.0, began + start / rate - time.perf_counter()))
        _send(producer, topic, made.events["card_id"].to_pylist(), values)
        if labels_topic is not None:
            _send(producer, labels_topic, made.labels["event_id"].to_pylist(), label.encode(made.labels).to_pylist())
        total += sum(map(len, values))
        frauds += pc.sum(made.labels["fraud"]).as_py()
        if refused:
            break
    producer.flush()
    if refused:
        raise KafkaException(refused[0])
    return Filled(n, total, frauds, time.perf_counter() - began)


def as_json(events: pa.RecordBatch) -> list[bytes]:
    """One JSON object per row, times in ms since epoch. No value here needs escaping."""
    parts: list[Any] = []
    for field in events.schema:
        column = events[field.name]
        quote = '"' if pa.types.is_string(field.type) else ""
        if pa.types.is_timestamp(field.type):
            column = column.cast(pa.int64())
        parts += [f'{"," if parts else "{"}"{field.name}":{quote}', column.cast(pa.string()), quote]
    values: list[bytes] = pc.binary_join_element_wise(*parts, "}", "").cast(pa.binary()).to_pylist()
    return values


def _send(producer: Producer, topic: str, keys: list[str], values: list[bytes]) -> None:
    produce = producer.produce
    for key, value in zip(keys, values, strict=True):
        while True:
            try:
                produce(topic, value, key)
                break
            except BufferError:  # the local queue is full: let the broker catch up
                producer.poll(0.01)
    producer.poll(0)


def _make(kafka: Mapping[str, str], topic: str, partitions: int) -> None:
    new = NewTopic(topic, partitions, 1, config={"message.timestamp.type": "LogAppendTime"})
    admin = AdminClient(dict(kafka))
    try:
        admin.create_topics([new])[topic].result()
    except KafkaException as error:
        if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
            raise
