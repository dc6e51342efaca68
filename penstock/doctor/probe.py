"""A probe event a raw partition: produced as users do, read and filtered out by ingest, and found again on
``NAME.dropped`` with its origin. Why it ends there, and cannot end elsewhere, says docs/adr/0010.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import orjson
from confluent_kafka import Consumer, KafkaError, Message, Producer, TopicPartition

from penstock.checks.samples import made_rows
from penstock.codec.avro import AvroDecoder
from penstock.doctor.deployment import UNANSWERED, Deployment, told
from penstock.doctor.finding import Finding, fail, ok, unseen, warn
from penstock.envelope import PROBE_KEY
from penstock.plan import Plan, PlanError
from penstock.records import NO_TIME
from penstock.worker import schema_lookup

CHECK = "probe"
REASON = "probe"


@dataclass(slots=True)
class Probes:
    """``sent``: raw partition → offset. ``dropped``: raw partition → seconds until its drop was read; ``rejected``: raw
    partition → why it became a dead letter."""

    sent: dict[int, int] = field(default_factory=dict)
    dropped: dict[int, float] = field(default_factory=dict)
    rejected: dict[int, str] = field(default_factory=dict)
    refused: KafkaError | None = None
    began: float = field(default_factory=time.monotonic)

    def report(self, error: KafkaError | None, message: Message) -> None:
        if error is not None:
            self.refused = error
        else:
            self.sent[message.partition()] = message.offset()

    @property
    def unseen(self) -> list[int]:
        return sorted(self.sent.keys() - self.dropped.keys() - self.rejected.keys())


def check_probe(deployment: Deployment) -> Iterator[Finding]:
    """Ends as soon as every probe has a fate."""
    plan = deployment.plan
    try:
        value = probe_event(plan)
    except PlanError as error:
        yield unseen(CHECK, f"no event could be made: {error}")
        return
    key = PROBE_KEY + uuid4().hex.encode()
    dropped, dead = plan.topic("dropped").name, plan.topic("dead").name
    consumer = Consumer(deployment.reader("read_committed"))
    try:
        starts = deployment.ends([dropped, dead], stable=True)  # before it is sent
        consumer.assign([TopicPartition(p.topic, p.number, offset) for p, offset in starts.items()])
        probes = _send(deployment, key, value)
        _await(deployment, consumer, key, probes)
    except UNANSWERED as error:
        yield fail(CHECK, f"no probe could be sent: {told(error)}", "look at the broker's log")
        return
    finally:
        consumer.close()
    yield from judge(probes, plan, deployment.plan_file)


def probe_event(plan: Plan) -> bytes:
    """An event that decodes, at an impossible time: even an ingest that knew no probes would reject it before a window
    saw it, and it moves no watermark. Raises ``PlanError``."""
    (row,) = made_rows(plan, 1, 0)
    return orjson.dumps({**row, plan.event.timestamp: NO_TIME})


def judge(probes: Probes, plan: Plan, plan_file: str) -> Iterator[Finding]:
    """``probes`` when all have a fate, or time is up."""
    raw = plan.topic("raw").name
    run = f"penstock run ingest {plan_file}"
    if probes.refused is not None:
        yield fail(CHECK, f"{raw} took no probe: {probes.refused.str()}", "give this user Write on it, or --no-probe")
        return
    for partition, why in probes.rejected.items():
        yield warn(
            CHECK,
            f"{raw}/{partition}@{probes.sent[partition]} became a dead letter ({why}): that ingest knows no probes, or "
            "another event",
            f"restart it with this version and plan: {run}",
        )
    if late := probes.unseen:
        where = ", ".join(f"{raw}/{n}@{probes.sent[n]}" for n in late)
        yield fail(
            CHECK,
            f"no fate of {where} within the time",
            f"look at ingest's lag, which a probe waits behind, its log and /health/ready; or start {run}",
        )
    elif probes.dropped and not probes.rejected:
        slowest = max(probes.dropped.values())
        yield ok(
            CHECK,
            f"{raw} → ingest → {plan.topic('dropped').name} in {slowest * 1000:.0f} ms, "
            f"all {len(probes.sent)} partitions",
        )


def _send(deployment: Deployment, key: bytes, value: bytes) -> Probes:
    probes = Probes()
    producer = Producer(
        deployment.client(
            **{"acks": "all", "linger.ms": 0, "message.timeout.ms": max(1000, int(deployment.left * 1000))}
        )
    )
    topic = deployment.plan.topic("raw").name
    for number in range(deployment.partitions()[topic]):
        producer.produce(topic, value, key, partition=number, on_delivery=probes.report)
    if producer.flush(deployment.left):
        producer.purge()
        producer.flush(1.0)
    return probes


def _await(deployment: Deployment, consumer: Consumer, key: bytes, probes: Probes) -> None:
    plan = deployment.plan
    decode = _note_decoder(deployment)
    while probes.unseen and time.monotonic() < deployment.deadline:
        for message in consumer.consume(1000, 0.02):
            if message.error() is not None or message.key() != key:
                continue
            if message.topic() == plan.topic("dead").name:
                facts = {name: (content or b"").decode() for name, content in message.headers() or []}
                probes.rejected[int(facts["penstock.origin.partition"])] = facts["penstock.reason"]
            else:
                note = decode(message)
                place = note["origin_partition"]
                if note["reason"] == REASON and probes.sent.get(place) == note["origin_offset"]:
                    probes.dropped[place] = time.monotonic() - probes.began


def _note_decoder(deployment: Deployment) -> Callable[[Message], dict[str, Any]]:
    value = deployment.plan.topic("dropped").value
    assert value is not None, "drops are rows of ours"
    decoder = AvroDecoder(value.avro, schema_lookup(deployment.plan, deployment.settings))

    def decode(message: Message) -> dict[str, Any]:
        row: dict[str, Any] = decoder.decode([message.value()]).rows.to_pylist()[0]
        return row

    return decode
