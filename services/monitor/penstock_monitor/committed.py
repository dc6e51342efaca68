"""Faust on Kafka, reading only what was committed, and knowing when a table's changes are safe.

faust-streaming 0.15.3 reads ``read_uncommitted`` unless it runs its own transactions, which have open bugs on
rebalance; and it commits offsets while changes of a table may still be on their way. Both would make counts wrong
after a crash, and both are mended here.
"""

import asyncio
import ssl
from collections.abc import Iterable
from typing import Any

import faust
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import NewTopic
from faust.transport.drivers import aiokafka as driver
from faust.types import FutureMessage

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


class _Consumer(driver.Consumer):  # type: ignore[misc]  # the library has no types
    def _new_consumer_thread(self) -> Any:
        return _Thread(self, loop=self.loop, beacon=self.beacon)

    def _new_offset(self, tp: Any) -> int | None:
        """Where to commit: past the newest acknowledged record.

        Faust looks for the end of an unbroken run of offsets, and stays for ever before the first markers or aborted
        rows that it met at a start. Here one agent takes each partition's records in order and acknowledges them in
        order, so none is left behind the newest.
        """
        acked = self._acked[tp]
        if not acked:
            return None
        newest = max(acked)
        acked.clear()
        self._acked_index[tp].clear()
        self._gap.pop(tp, None)
        return int(newest) + 1


class _Transport(driver.Transport):  # type: ignore[misc]  # the library has no types
    Consumer = _Consumer


class CommittedApp(faust.App):  # type: ignore[misc]  # the library has no types
    """A Faust app whose consumer is ``read_committed``."""

    def _new_transport(self) -> Any:
        return _Transport(self.conf.broker_consumer, self)


class SafeTable(faust.Table):  # type: ignore[misc]  # the library has no types
    """A table of bytes by bytes that is written only through ``keep``."""

    async def keep(self, changes: Iterable[tuple[bytes, int, bytes | None]]) -> None:
        """Write (key, partition, value; None deletes) here and to the changelog, and return when the broker has them
        all.

        Acknowledge what led to the changes only after that. Raises when the broker did not take one.
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
