"""The topics of a plan, by what can be wrong with them: not there, other partition counts than their neighbours (keys
would miss their state), settings that lose or refuse records, too short a memory, and replicas.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from confluent_kafka.admin import ConfigResource, ResourceType

from penstock.doctor.broker import is_local
from penstock.doctor.deployment import UNANSWERED, Deployment, told
from penstock.doctor.finding import Finding, fail, ok, unseen, warn
from penstock.topics import DAY_MS, BrokerUnavailable, Difference, TopicSpec, check_topics, history_ms, topic_specs

TOPICS, PARTITIONS, SETTINGS = "topics", "partitions", "topic settings"
RETENTION, SIZES, REPLICAS = "retention", "message sizes", "replicas"
CHECKS = (TOPICS, PARTITIONS, SETTINGS, RETENTION, SIZES, REPLICAS)
_OF = {
    "topic": TOPICS,
    "partitions": PARTITIONS,
    "message.timestamp.type": SETTINGS,
    "cleanup.policy": SETTINGS,
    "retention.ms": RETENTION,
    "max.message.bytes": SIZES,
}
"""Which check tells of which setting of ``penstock.topics``."""


class Replicas(NamedTuple):
    """One topic: ``leaderless`` partitions, the fewest replicas and in-sync replicas that any partition has, and
    ``min.insync.replicas``."""

    topic: str
    leaderless: int
    replicas: int
    in_sync: int
    needed: int


def check_all_topics(deployment: Deployment) -> Iterator[Finding]:
    """All ``CHECKS``, each as one line where it is well and one line for every topic where it is not."""
    specs = topic_specs(deployment.plan)
    try:
        differences = check_topics(deployment.admin, specs)
        replicas = _replicas(deployment, specs)
    except (BrokerUnavailable, *UNANSWERED) as error:
        why = str(error) if isinstance(error, BrokerUnavailable) else told(error)
        yield fail(TOPICS, f"the topics cannot be looked at: {why}", "give this user Describe and DescribeConfigs")
        yield from (unseen(check, "the topics cannot be looked at") for check in CHECKS[1:])
        return
    history, snapshots = history_ms(deployment.plan), deployment.settings.snapshot_interval_s > 0
    yield from judge_topics(specs, differences, history, deployment.plan_file, snapshots=snapshots)
    yield from judge_replicas(replicas, is_local(deployment.settings.bootstrap_servers))


def judge_topics(
    specs: Sequence[TopicSpec], differences: Iterable[Difference], history: int, plan_file: str, *, snapshots: bool
) -> Iterator[Finding]:
    """``history``: how far back in event time state may have to be rebuilt, ms; ``snapshots``: workers take them."""
    found: dict[str, list[Difference]] = {check: [] for check in CHECKS}
    for difference in differences:
        found[_OF[difference.setting]].append(difference)
    there = len(specs) - len(found[TOPICS])
    retention, needed = found[RETENTION], history + DAY_MS
    found[RETENTION] = [each for each in retention if int(each.value) < needed]
    shortest = min([*(int(each.value) for each in retention), *(s.retention_ms for s in specs if not s.compacted)])
    well = {
        TOPICS: f"all {there} of the plan are there",
        PARTITIONS: f"{specs[0].partitions} in each topic that ours write: what has one key meets in one partition",
        SETTINGS: f"append time and the right cleanup in {there}",
        RETENTION: f"{_days(shortest)} or more; windows, lateness and a day need {_days(needed)}",
        SIZES: f"inputs take {min(s.max_message_bytes for s in specs):,} bytes, the others what is made of them",
    }
    if missing := found[TOPICS]:
        names = ", ".join(difference.topic for difference in missing)
        mend = missing[0].mend.replace("PLAN", plan_file)
        yield fail(TOPICS, f"{names} {'is' if len(missing) == 1 else 'are'} missing", mend)
    for check, seen in well.items():
        if check == RETENTION:
            yield from (_short(each, needed, snapshots=snapshots) for each in found[check])
        elif check != TOPICS:
            yield from (fail(check, f"{each.topic} {each.what}", each.mend) for each in found[check])
        if not found[check]:
            yield ok(check, seen) if there else unseen(check, "there is no topic")


def _short(topic: Difference, needed: int, *, snapshots: bool) -> Finding:
    """The log is shorter than the windows. From a snapshot on, a restart needs only what came after it; but a snapshot
    may be lost, and a changed view has none."""
    kept = int(topic.value)
    seen = f"{topic.topic} keeps records for {kept} ms, and windows, lateness and a day need {needed}"
    if not snapshots or kept < DAY_MS:
        return fail(RETENTION, seen, topic.mend)
    return warn(
        RETENTION,
        f"{seen}: a restart goes on from its snapshot; where that is lost, or a view was changed, it is refused",
        topic.mend,
    )


def judge_replicas(topics: Sequence[Replicas], local: bool) -> Iterator[Finding]:
    """``local``: the broker is on this machine, where one replica is all there can be."""
    if not topics:
        yield unseen(REPLICAS, "there is no topic")
        return
    bad = False
    for topic in topics:
        alter = f"kafka-configs.sh --alter --entity-type topics --entity-name {topic.topic} --add-config"
        if topic.leaderless:
            yield fail(
                REPLICAS, f"{topic.topic}: {topic.leaderless} partitions have no leader", "bring the lost brokers back"
            )
        elif topic.needed > topic.replicas:
            yield fail(
                REPLICAS,
                f"{topic.topic} asks for {topic.needed} in-sync replicas and has {topic.replicas}: it takes no write",
                f"{alter} min.insync.replicas={max(1, topic.replicas - 1)}",
            )
        elif topic.in_sync < topic.needed:
            yield fail(
                REPLICAS,
                f"{topic.topic} has {topic.in_sync} in-sync replicas and asks for {topic.needed}: it takes no write",
                "bring the lost brokers back",
            )
        elif topic.in_sync < topic.replicas:
            yield warn(
                REPLICAS,
                f"{topic.topic}: {topic.in_sync} of {topic.replicas} replicas are in sync",
                "bring the lost brokers back, or look why they are slow",
            )
        elif topic.replicas == 1 and not local:
            yield warn(
                REPLICAS,
                f"{topic.topic} has one replica: a lost disk is a lost topic",
                "move it to three with kafka-reassign-partitions.sh, and make topics with --replication 3",
            )
        elif topic.replicas > 1 and topic.needed == 1:
            yield warn(
                REPLICAS,
                f"{topic.topic} acknowledges a write that one replica has: with its leader it may be lost",
                f"{alter} min.insync.replicas=2",
            )
        else:
            continue
        bad = True
    if not bad:
        fewest = min(topic.replicas for topic in topics)
        yield ok(
            REPLICAS, f"{fewest} of every partition{', as one local broker has it' if fewest == 1 else ', in sync'}"
        )


def _replicas(deployment: Deployment, specs: Sequence[TopicSpec]) -> list[Replicas]:
    metadata = deployment.admin.list_topics(timeout=deployment.left).topics
    there = [spec.name for spec in specs if spec.name in metadata]
    if not there:
        return []
    asked = deployment.admin.describe_configs(
        [ConfigResource(ResourceType.TOPIC, name) for name in there], request_timeout=deployment.left
    )
    needed = {r.name: int(deployment.answer(future)["min.insync.replicas"].value) for r, future in asked.items()}
    found = []
    for name in there:
        partitions = metadata[name].partitions.values()
        found.append(
            Replicas(
                name,
                sum(partition.leader < 0 for partition in partitions),
                min(len(partition.replicas) for partition in partitions),
                min(len(partition.isrs) for partition in partitions),
                needed[name],
            )
        )
    return found


def _days(ms: int) -> str:
    return f"{ms / DAY_MS:.3g} days"
