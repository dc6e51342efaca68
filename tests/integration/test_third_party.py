"""Other people's programs at both ends: a producer and a consumer in plain confluent-kafka and fastavro, which know the
schemas, the Confluent frame, and nothing of Penstock.
"""

import json
from collections.abc import Mapping
from io import BytesIO
from typing import Any
from uuid import uuid4

import fastavro
import pytest
from confluent_kafka import Consumer, KafkaError, Producer

from tests.integration.conftest import Feed
from tests.integration.pipeline_world import LOCK, World

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]


class Lock:
    """What a third party has: the lines of the committed lock, whose numbers are the ids."""

    def __init__(self) -> None:
        lines = [json.loads(line) for line in LOCK.read_text("utf-8").splitlines()]
        self.by_id = {n: fastavro.parse_schema(line["schema"], named_schemas={}) for n, line in enumerate(lines, 1)}
        self.ids = {line["subject"]: n for n, line in enumerate(lines, 1)}

    def write(self, subject: str, row: Mapping[str, Any]) -> bytes:
        number = self.ids[subject]
        stream = BytesIO(b"\0" + number.to_bytes(4, "big"))
        stream.seek(5)
        fastavro.schemaless_writer(stream, self.by_id[number], row)
        return stream.getvalue()

    def read(self, value: bytes) -> dict[str, Any]:
        assert value[0] == 0
        row = fastavro.schemaless_reader(BytesIO(value[5:]), self.by_id[int.from_bytes(value[1:5], "big")], None)
        assert isinstance(row, dict)
        return row


def consume(bootstrap: str, topic: str, wanted: set[str], lock: Lock) -> dict[str, list[tuple[bytes, dict[str, Any]]]]:
    """As a user reads predictions: a group of its own, read_committed, until all of ``wanted`` are there."""
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": f"dashboard-{uuid4().hex}",
            "auto.offset.reset": "earliest",
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
        }
    )
    found: dict[str, list[tuple[bytes, dict[str, Any]]]] = {}
    ended: set[int] = set()
    try:
        consumer.subscribe([topic])
        while len(ended) < 4 or wanted - found.keys():
            message = consumer.poll(30)
            assert message is not None, f"{len(wanted - found.keys())} predictions did not come"
            if message.error():
                assert message.error().code() == KafkaError._PARTITION_EOF
                ended.add(message.partition())
                continue
            row = lock.read(message.value())
            if row["prediction_id"] in wanted:
                found.setdefault(row["prediction_id"], []).append((message.key(), row))
    finally:
        consumer.close()
    return found


def test_what_others_produce_is_predicted_and_what_others_consume_is_whole(world: World, feed: Feed) -> None:
    lock = Lock()
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    ours = feed.take(1200)
    producer = Producer({"bootstrap.servers": world.bootstrap, "enable.idempotence": True, "linger.ms": 1})
    sent: dict[str, str] = {}
    for number, event in enumerate(ours):
        row = world.row(event)
        kind = ("avro", "json", "pretty json", "sparse json")[number % 4]
        if event.topic == "labels":
            value = lock.write("flights.labels-value", row)
        elif kind == "avro" and event.value is not None and event.value[0] == 0:
            value = lock.write("flights.raw-value", row)
        else:
            value = as_json(row, kind)
        # keys are the producer's own affair, and so is where it puts them
        key = None if number % 5 == 0 else f"{number % 7}"
        headers = [("traceparent", trace)] if number % 3 == 0 else None
        producer.produce(world.topic(event.topic), value, key, headers=headers)
        if event.topic == "raw" and row["status"] == "departed":
            sent[row["flight_id"]] = trace if headers else ""
    assert producer.flush(30) == 0
    world.events += ours
    world.finish()

    predictions = consume(world.bootstrap, world.topic("predictions"), set(sent), lock)
    for flight, copies in predictions.items():
        ((key, row),) = copies
        assert key.decode() == row["key"] == flight.rpartition(".")[2]
        assert 0 <= row["score"] <= 1
        assert (row["traceparent"] or "") == sent[flight]
    world.check()


def as_json(row: Mapping[str, Any], kind: str) -> bytes:
    """Times as ms since epoch; with white space or without its nulls, as other languages' libraries write it."""
    plain = {k: round(v.timestamp() * 1000) if hasattr(v, "timestamp") else v for k, v in row.items()}
    if kind == "sparse json":
        plain = {name: value for name, value in plain.items() if value is not None}
    separators = (", ", ": ") if kind == "pretty json" else (",", ":")
    return json.dumps(dict(sorted(plain.items())), separators=separators, ensure_ascii=False).encode()
