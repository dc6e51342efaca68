"""The topics of a plan on a real broker: made with the settings that the guarantee needs, or compared with them.

Append time on every topic, because retention and Kafka's own limits judge by the record's timestamp and an event of
2013 would be deleted at once; retention long enough that windows can always be rebuilt by replay.
"""

import time
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic, ResourceType

from penstock.connecting import connecting
from penstock.plan import Plan
from penstock.settings import Settings

DAY_MS = 86_400_000
WEEK_MS = 7 * DAY_MS
ROOM_BYTES = 64 << 10
KAFKA_DEFAULT_BYTES = 1_048_588
"""``max.message.bytes`` of a topic that sets none: no topic of ours allows less, for a batch is a message too."""

ALWAYS = -1


class TopicSpec(NamedTuple):
    """``retention_ms`` and ``max_message_bytes`` are the least that will do; ``compacted`` topics keep the newest of a
    key. ``grows``: it may have any number of partitions, for its rows are given other keys before a key matters."""

    name: str
    partitions: int
    retention_ms: int
    max_message_bytes: int
    compacted: bool
    grows: bool = False


class Difference(NamedTuple):
    """What is not as the plan needs it, and the mend. ``setting``: which setting of the topic it is; ``topic`` where it
    is missing, ``partitions`` where there are more or fewer. ``value``: what the topic has instead."""

    topic: str
    what: str
    mend: str
    setting: str
    value: str = ""


class BrokerUnavailable(Exception):
    """The broker did not answer or refused; the message names the mend."""


class Admin(AdminClient):  # type: ignore[misc]  # the library has no types
    """Leaves it to us to say what is wrong, and knows whom it asks: ``servers``."""

    def __init__(self, settings: Settings) -> None:
        super().__init__({**settings.kafka(), "log_level": 0, "reconnect.backoff.ms": 500})
        self.servers = settings.bootstrap_servers


def admin_client(settings: Settings) -> Admin:
    """The client of these settings. Raises ``InvalidSettings``."""
    with connecting():
        return Admin(settings)


def topic_specs(plan: Plan) -> list[TopicSpec]:
    """What every topic of the plan needs."""
    retention = max(WEEK_MS, history_ms(plan) + DAY_MS)
    door = plan.event.max_bytes + ROOM_BYTES  # a little more than ingest takes, so that what is too large is seen to be
    inside = max(KAFKA_DEFAULT_BYTES, 2 * door)  # a producer may overshoot its own limit by one message
    doors = {source.topic for stage in plan.stages for source in stage.inputs if source.format == "raw"}
    return [
        TopicSpec(t.name, t.partitions, retention, door if t.name in doors else inside, t.compacted, t.name in doors)
        for t in plan.topics
    ]


def history_ms(plan: Plan) -> int:
    """How far back in event time a worker may have to read: longest window, its tile, lateness, the horizon of copies
    and ingest's future allowance, or what the label join needs: labels and predictions wait a horizon for each other,
    on clocks that may be a horizon apart, and are read again from a horizon before that."""
    windows = [a.window_ms + a.tile_ms for view in plan.views for a in view.aggregations]
    copies = plan.event.deduplicate_ms or 0
    waiting = 3 * plan.label.horizon_ms if plan.label is not None else 0
    return max([*windows, waiting]) + copies + plan.lateness_ms + plan.event.future_ms


def create_topics(admin: Admin, specs: Iterable[TopicSpec], replication: int = -1) -> list[str]:
    """Makes the topics that are missing and returns their names. ``replication`` -1 takes the broker's default.
    Raises ``BrokerUnavailable``."""
    there = set(_partitions(admin))
    new = [spec for spec in specs if spec.name not in there]
    if not new:
        return []
    wanted = [NewTopic(s.name, s.partitions, replication, config=_config(s)) for s in new]
    made = []
    for name, done in admin.create_topics(wanted).items():
        try:
            done.result(30)
            made.append(name)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise BrokerUnavailable(f"topic {name!r} could not be made: {error.args[0].str()}") from None
    await_topics(admin, made)
    return made


def await_topics(admin: Admin, names: Iterable[str]) -> None:
    """Until the broker's metadata lists them; a new topic is made a moment before. Raises ``BrokerUnavailable``."""
    deadline = time.monotonic() + 10
    while (absent := set(names) - _partitions(admin).keys()) and time.monotonic() < deadline:
        time.sleep(0.02)
    if absent:
        raise BrokerUnavailable(f"topic {min(absent)!r} was made and does not appear. Look at the broker's log")


def check_topics(admin: Admin, specs: Iterable[TopicSpec]) -> list[Difference]:
    """Every way in which the broker's topics are not as needed. Raises ``BrokerUnavailable``."""
    specs = list(specs)
    partitions = _partitions(admin)
    there = [spec for spec in specs if spec.name in partitions]
    configs = _configs(admin, [spec.name for spec in there])
    found = [
        Difference(spec.name, "is missing", "make it with `penstock topics PLAN --create`", "topic")
        for spec in specs
        if spec.name not in partitions
    ]
    for spec in there:
        found += _differences(spec, partitions[spec.name], configs[spec.name])
    return found


def _differences(spec: TopicSpec, partitions: int, config: dict[str, str]) -> Iterator[Difference]:
    def altered(setting: str, value: object) -> str:
        return f"kafka-configs.sh --alter --entity-type topics --entity-name {spec.name} --add-config {setting}={value}"

    if partitions != spec.partitions and not spec.grows:
        yield Difference(
            spec.name,
            f"has {partitions} partitions, the plan {spec.partitions}",
            f"set partitions={partitions} in the Pipeline if all topics have so many; else make the topic anew, "
            "because more partitions move keys away from their state",
            "partitions",
        )
    if config["message.timestamp.type"] != "LogAppendTime":
        yield Difference(
            spec.name,
            f"has message.timestamp.type {config['message.timestamp.type']}",
            altered("message.timestamp.type", "LogAppendTime"),
            "message.timestamp.type",
        )
    policy = set(config["cleanup.policy"].split(","))
    if policy != ({"compact"} if spec.compacted else {"delete"}):
        wanted = "compact" if spec.compacted else "delete"
        yield Difference(
            spec.name,
            f"has cleanup.policy {config['cleanup.policy']}",
            altered("cleanup.policy", wanted),
            "cleanup.policy",
        )
    retention = int(config["retention.ms"])
    if not spec.compacted and retention != ALWAYS and retention < spec.retention_ms:
        yield Difference(
            spec.name,
            f"keeps records for {retention} ms, and {spec.retention_ms} are asked for: windows, lateness and a day, or "
            "a week",
            altered("retention.ms", spec.retention_ms),
            "retention.ms",
            str(retention),
        )
    largest = int(config["max.message.bytes"])
    if largest < spec.max_message_bytes:
        yield Difference(
            spec.name,
            f"takes messages of {largest} bytes, and {spec.max_message_bytes} are needed",
            altered("max.message.bytes", spec.max_message_bytes),
            "max.message.bytes",
        )


def _config(spec: TopicSpec) -> dict[str, str]:
    return {
        "message.timestamp.type": "LogAppendTime",
        "cleanup.policy": "compact" if spec.compacted else "delete",
        "retention.ms": str(ALWAYS if spec.compacted else spec.retention_ms),
        "max.message.bytes": str(spec.max_message_bytes),
    }


def _partitions(admin: Admin) -> dict[str, int]:
    try:
        return {name: len(topic.partitions) for name, topic in admin.list_topics(timeout=10).topics.items()}
    except KafkaException as error:
        raise BrokerUnavailable(
            f"no answer from Kafka at {admin.servers}: {error.args[0].str()}. Look at KAFKA_BOOTSTRAP_SERVERS and "
            "PENSTOCK_SECURITY_PROTOCOL, or `penstock broker start`"
        ) from None


def _configs(admin: Admin, topics: list[str]) -> dict[str, dict[str, str]]:
    if not topics:
        return {}
    asked = admin.describe_configs([ConfigResource(ResourceType.TOPIC, name) for name in topics])
    try:
        return {r.name: {name: entry.value for name, entry in done.result(30).items()} for r, done in asked.items()}
    except KafkaException as error:
        raise BrokerUnavailable(f"the topics' settings cannot be read: {error.args[0].str()}") from None
