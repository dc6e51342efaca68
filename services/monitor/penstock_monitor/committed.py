"""Faust on Kafka: reads only what was committed, each partition in order, and knows when a table's changes are safe.

faust-streaming 0.15.3 reads ``read_uncommitted`` unless it runs its own transactions, which have open bugs on
rebalance; it commits offsets while changes of a table may still be on their way; and around the recovery of a table
it drops records that it has fetched, or hands them on before older ones. Each would make counts wrong after a crash,
and each is mended here.
"""

import asyncio
import ssl
from collections.abc import Iterable, Mapping
from typing import Any

import faust
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import NewTopic
from faust.transport.drivers import aiokafka as driver
from faust.types import TP, FutureMessage

from penstock.settings import Settings
from penstock.topics import BrokerUnavailable, admin_client


class _Thread(driver.AIOKafkaConsumerThread):  # type: ignore[misc]  # the library has no types
    def _create_worker_consumer(self, transport: Any) -> Any:
        consumer = super()._create_worker_consumer(transport)
        # aiokafka reads it when the consumer starts; there is no setting of Faust that reaches it
        if consumer._isolation_level != "read_uncommitted":
            raise RuntimeError(
                "this version of aiokafka keeps its isolation level elsewhere: read_committed is not set"
            )
        consumer._isolation_level = "read_committed"
        return consumer

    def positions(self, partitions: Iterable[Any]) -> dict[Any, int]:
        """Offset of the next record by partition. aiokafka's own ``position`` would wait where there is none yet."""
        subscription = self._ensure_consumer()._subscription.subscription
        if subscription is None or subscription.assignment is None:
            return {}
        states = {tp: subscription.assignment.state_value(tp) for tp in partitions}
        return {tp: at.position for tp, at in states.items() if at is not None and at.has_valid_position}


class _Consumer(driver.Consumer):  # type: ignore[misc]  # the library has no types
    """Hands on every partition's records in order, and commits what was declared ``safe``.

    Faust fetches while it recovers a table, and drops what came for partitions that are not at work or was queued when
    the streams start; what it then reads comes ahead of what it dropped. So no record but a changelog's is fetched
    between an assignment and the ``open`` after it.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._safe: dict[Any, int] = {}
        self._handed: dict[Any, int] = {}
        self._read: dict[Any, int] = {}
        self._sought: int | None = None
        self._opened: int | None = None

    def _new_consumer_thread(self) -> Any:
        return _Thread(self, loop=self.loop, beacon=self.beacon)

    async def perform_seek(self) -> None:
        generation = self.app.consumer_generation_id
        await super().perform_seek()
        self._sought = generation

    def open(self) -> None:
        """The assignment whose places were sought last may be read: the streams take records from now on."""
        self._opened = self._sought

    async def _getmany(self, active_partitions: Any, timeout: float) -> Any:
        generation = self.app.consumer_generation_id
        opened = self._opened == generation
        # a copy: Faust changes the set meanwhile
        wanted = {tp for tp in active_partitions if opened or self._is_changelog_tp(tp)}
        if not wanted:  # which aiokafka would take for all
            await self.sleep(0.05)
            return {}
        records = await self._thread.getmany(wanted, timeout)
        if records and generation != self.app.consumer_generation_id:
            # asked under an assignment that is gone, read under the next one, whose place they have moved
            here = self.assignment()
            await self.seek_wait({tp: found[0].offset for tp, found in records.items() if tp in here})
            return {}
        # no other read is under way now, so what lies below a position was handed on or is none of ours
        self._read.update(self._thread.positions(wanted))
        self._handed.update({tp: found[-1].offset for tp, found in records.items() if found})
        return records

    def through(self, tp: Any) -> int:
        """The offset below which everything is safe, transactions' markers and aborted rows included."""
        safe = self._safe.get(tp, 0)
        return safe if self._handed.get(tp, -1) >= safe else max(safe, self._read.get(tp, 0))

    def safe(self, events: Iterable[Any]) -> None:
        """What came of these need not be done again: their offsets may be committed."""
        for event in events:
            message = event.message
            self._safe[message.tp] = max(message.offset + 1, self._safe.get(message.tp, 0))

    def _new_offset(self, tp: Any) -> int | None:
        """Where to commit: past the newest safe record.

        Faust looks for the end of an unbroken run of acknowledged offsets: it stays for ever before the first markers
        or aborted rows that it met at a start, and it acknowledges what it skips at a rebalance.
        """
        self._acked[tp].clear()
        self._acked_index[tp].clear()
        self._gap.pop(tp, None)
        return self._safe.get(tp)


class _Transport(driver.Transport):  # type: ignore[misc]  # the library has no types
    Consumer = _Consumer


class CommittedApp(faust.App):  # type: ignore[misc]  # the library has no types
    """A Faust app whose consumer is ``read_committed``, in order, and commits what is declared ``safe``."""

    def _new_transport(self) -> Any:
        return _Transport(self.conf.broker_consumer, self)

    def on_rebalance_end(self) -> None:
        super().on_rebalance_end()
        self.consumer.open()

    def safe(self, events: Iterable[Any]) -> None:
        """What came of these events need not be done again: their offsets may be committed."""
        self.consumer.safe(events)

    def behind(self, topic: str, ends: Mapping[int, int]) -> dict[int, int]:
        """How many offsets below the ``ends``, offset by partition, are not safe yet, by partition."""
        return {number: max(0, end - self.consumer.through(TP(topic, number))) for number, end in ends.items()}


class SafeTable(faust.Table):  # type: ignore[misc]  # the library has no types
    """A table of bytes by bytes that is written only through ``keep``."""

    async def keep(self, changes: Iterable[tuple[bytes, int, bytes | None]]) -> None:
        """Write (key, partition, value; None deletes) here and to the changelog, and return when the broker has them
        all.

        Only after that is what led to the changes ``safe``. Raises when the broker did not take one.
        """
        sent: list[FutureMessage] = []
        for key, partition, value in changes:
            if value is None:
                self.data.pop(key, None)
            else:
                self.data[key] = value
            sent.append(self.send_changelog(partition, key, value))
        await asyncio.gather(*sent)


def make_changelog(settings: Settings, topic: str, partitions: int) -> None:
    """The topic that a table is read back from, if it is not there. Raises ``BrokerUnavailable``.

    Faust would make it with a fixed number of replicas, and in segments of a gigabyte, which is how much a restart
    would have to read before the first compaction.
    """
    config = {
        "message.timestamp.type": "LogAppendTime",
        "cleanup.policy": "compact",
        "segment.bytes": str(16 << 20),
        "min.cleanable.dirty.ratio": "0.1",
    }
    admin = admin_client(settings)
    made = admin.create_topics([NewTopic(topic, partitions, -1, config=config)])[topic]
    try:
        made.result(30)
    except KafkaException as error:
        if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
            raise BrokerUnavailable(f"topic {topic!r} could not be made: {error.args[0].str()}") from None


def broker_of(settings: Settings) -> dict[str, Any]:
    """The connection part of a Faust app's configuration."""
    urls = ";".join(f"kafka://{server.strip()}" for server in settings.bootstrap_servers.split(","))
    context = None
    if settings.security_protocol.endswith("SSL"):
        context = ssl.create_default_context(cafile=settings.ssl_ca_location)
        if settings.ssl_certificate_location is not None:
            password = settings.ssl_key_password
            context.load_cert_chain(
                settings.ssl_certificate_location,
                settings.ssl_key_location,
                password.get_secret_value() if password is not None else None,
            )
    if settings.security_protocol.startswith("SASL"):
        password = settings.sasl_password
        credentials = faust.SASLCredentials(
            username=settings.sasl_username,
            password=password.get_secret_value() if password is not None else None,
            mechanism=settings.sasl_mechanism or "PLAIN",
            ssl_context=context,
        )
        return {"broker": urls, "broker_credentials": credentials}
    return (
        {"broker": urls} if context is None else {"broker": urls, "broker_credentials": faust.SSLCredentials(context)}
    )
