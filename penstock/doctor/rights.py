"""What the service's own credentials may do: a real write, a real read, and the broker's own word for the rest.

The write is a transaction that is aborted, to ``NAME.dropped`` and ``NAME.dead``, which every stage writes and no stage
reads. In a topic that a stage reads, an aborted row is an offset that nobody can commit past before the next good row:
lag that no worker can work off, and others would hold back for it. There the broker is asked what is allowed.
"""

import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from confluent_kafka import (
    OFFSET_END,
    TIMESTAMP_LOG_APPEND_TIME,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicPartition,
)
from confluent_kafka.admin import AclOperation

from penstock.doctor.deployment import Deployment
from penstock.doctor.finding import Finding, fail, ok, unseen

WRITE, READ, GROUPS = "right to write", "right to read", "right to groups"
KEY = b"penstock.doctor"


@dataclass(slots=True)
class AbortedWrite:
    """When the row was sent, when the broker appended it and when that was heard, ms since epoch; None before.
    ``errors``: by topic, what the broker said instead."""

    sent: float | None = None
    appended: int | None = None
    heard: float | None = None
    errors: dict[str, KafkaError] = field(default_factory=dict)

    def report(self, error: KafkaError | None, message: Message) -> None:
        kind, stamp = message.timestamp()
        if error is not None:
            self.errors[message.topic()] = error
        elif kind == TIMESTAMP_LOG_APPEND_TIME and self.appended is None:
            self.appended, self.heard = stamp, time.time() * 1000


def check_rights(deployment: Deployment, absent: Collection[str], write: AbortedWrite) -> Iterator[Finding]:
    """``absent`` topics are not asked about. ``write`` is filled in."""
    plan = deployment.plan
    ends = {plan.topic("dropped").name, plan.topic("dead").name}
    writes = sorted(({topic for stage in plan.stages for topic in stage.outputs} | ends) - set(absent))
    control = {topic.name for topic in plan.topics if topic.compacted}
    reads = sorted(({source.topic for stage in plan.stages for source in stage.inputs} | control) - set(absent))
    if not writes or not reads:
        yield from (unseen(check, "there is no topic") for check in (WRITE, READ, GROUPS))
        return
    no_write, no_read = _denied(deployment, writes, AclOperation.WRITE), _denied(deployment, reads, AclOperation.READ)
    # what is denied need not be tried
    written = _written(deployment, sorted(ends - set(absent) - no_write.keys()), write)
    yield from _one_line(
        WRITE,
        [*no_write.values(), *written],
        f"{len(writes)} topics; a transaction as {transactional_id(deployment)} was written and aborted",
    )
    read = _read(deployment, [topic for topic in reads if topic not in no_read])
    yield from _one_line(READ, [*no_read.values(), *read], f"{len(reads)} topics")
    yield from _one_line(GROUPS, list(_groups(deployment)), f"{len(plan.stages)} groups")


def transactional_id(deployment: Deployment) -> str:
    """Never one of a worker's (NAME.STAGE.SLOT), which would be fenced by it."""
    return f"{deployment.plan.pipeline}.doctor"


def acl(deployment: Deployment, operation: str, resource: str) -> str:
    """The command that gives this user ``operation`` on ``resource`` (``--topic NAME``)."""
    user = deployment.settings.sasl_username or "PRINCIPAL"
    return (
        f"kafka-acls.sh --bootstrap-server {deployment.settings.bootstrap_servers} --add "
        f"--allow-principal User:{user} --operation {operation} {resource}"
    )


def _one_line(check: str, found: list[Finding], well: str) -> Iterator[Finding]:
    yield from dict.fromkeys(found) or [ok(check, well)]


def _denied(deployment: Deployment, topics: Collection[str], operation: AclOperation) -> dict[str, Finding]:
    """By topic, what the broker itself says that this user may not."""
    check, verb = (WRITE, "write to") if operation == AclOperation.WRITE else (READ, "read")
    found = {}
    for topic, future in deployment.describe_topics(topics).items():
        try:
            allowed = deployment.answer(future).authorized_operations
        except KafkaException as error:
            why = f"{topic} may not be described"
            found[topic] = _refused(deployment, check, error.args[0], why, f"--topic {topic}")
            continue
        # None: this broker does not tell, and the write and the read below say what they can
        if allowed is not None and operation not in allowed:
            name = operation.name.capitalize()
            mend = acl(deployment, name, f"--topic {topic}")
            found[topic] = fail(check, f"this user may not {verb} {topic}", mend)
    return found


def _written(deployment: Deployment, topics: Collection[str], write: AbortedWrite) -> Iterator[Finding]:
    settings, name = deployment.settings, transactional_id(deployment)
    if not topics:
        return
    if settings.guarantee != "exactly_once":
        yield unseen(WRITE, "without transactions (PENSTOCK_GUARANTEE=at_least_once) a write could not be taken back")
        return
    producer = Producer(
        deployment.client(
            **{
                "transactional.id": name,
                "transaction.timeout.ms": settings.transaction_timeout_ms,
                "message.timeout.ms": min(settings.transaction_timeout_ms, int(deployment.left * 1000)),
                "linger.ms": 0,
            }
        )
    )
    step, unsent = f"begin a transaction as {name}", 0
    try:
        producer.init_transactions(deployment.left)
        producer.begin_transaction()
        step = f"write to {', '.join(topics)}"
        for topic in topics:
            write.sent = write.sent or time.time() * 1000
            producer.produce(topic, None, KEY, on_delivery=write.report)
        unsent = producer.flush(deployment.left)
        step = "abort a transaction"
        producer.abort_transaction(deployment.left)
    except KafkaException as error:
        # what the broker said of a topic is more than that the transaction has failed
        if not write.errors:
            yield _refused(
                deployment, WRITE, error.args[0], f"this user could not {step}", f"--transactional-id {name}"
            )
    denied = {t: e for t, e in write.errors.items() if e.code() == KafkaError.TOPIC_AUTHORIZATION_FAILED}
    for topic, said in (denied or write.errors).items():  # a refused topic takes the others with it
        yield _refused(deployment, WRITE, said, f"{topic} took no write", f"--topic {topic}")
    if unsent:
        yield fail(WRITE, f"{', '.join(topics)} took no write in time", "look at the broker's log, or raise --timeout")


def _read(deployment: Deployment, topics: Collection[str]) -> Iterator[Finding]:
    """Fetches from the end of one partition of each topic: its end is answered too."""
    consumer = Consumer(deployment.reader("read_committed"))
    unread = set(topics)
    try:
        consumer.assign([TopicPartition(topic, 0, OFFSET_END) for topic in topics])
        while unread and time.monotonic() < deployment.deadline:
            for message in consumer.consume(100, 0.05):
                error = message.error()
                if error is None or error.code() == KafkaError._PARTITION_EOF:
                    unread.discard(message.topic())
                elif message.topic() in unread:
                    unread.discard(message.topic())
                    topic = message.topic()
                    yield _refused(deployment, READ, error, f"{topic} cannot be read", f"--topic {topic}")
    finally:
        consumer.close()
    for topic in sorted(unread):
        yield fail(READ, f"{topic}/0 gave no answer in time", "look at the broker's log, or raise --timeout")


def _groups(deployment: Deployment) -> Iterator[Finding]:
    try:
        described = deployment.describe_groups()
    except KafkaException as error:
        group = f"{deployment.plan.pipeline}. --resource-pattern-type prefixed"
        yield _refused(deployment, GROUPS, error.args[0], "groups cannot be described", f"--group {group}")
        return
    for stage, group in described.items():
        allowed = group.authorized_operations
        for operation in (AclOperation.READ, AclOperation.DESCRIBE):
            if allowed is not None and operation not in allowed:
                name = deployment.plan.group(stage)
                yield fail(
                    GROUPS,
                    f"this user may not {operation.name.lower()} group {name}",
                    acl(deployment, operation.name.capitalize(), f"--group {name}"),
                )


def _refused(deployment: Deployment, check: str, error: KafkaError, what: str, resource: str) -> Finding:
    """A refusal for want of rights is mended by an ACL; anything else is told as it is."""
    code = error.code()
    if code == KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED:
        prefix = f"--transactional-id {deployment.plan.pipeline}. --resource-pattern-type prefixed"
        return fail(check, f"{what}: {error.str()}", acl(deployment, "Write --operation Describe", prefix))
    if code in (KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.GROUP_AUTHORIZATION_FAILED):
        operations = "Write --operation Describe" if check == WRITE else "Read --operation Describe"
        return fail(check, f"{what}: {error.str()}", acl(deployment, operations, resource))
    if code in (KafkaError._FENCED, KafkaError.PRODUCER_FENCED, KafkaError.INVALID_PRODUCER_EPOCH):
        return unseen(check, f"{what}: another doctor of this pipeline is at work. Try again when it is done")
    return fail(check, f"{what}: {error.str()}", "look at the broker's log, or raise --timeout")
