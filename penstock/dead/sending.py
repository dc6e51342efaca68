"""Records and their notes, sent in transactions under a name that a later run takes over: one that still runs is
fenced, and what a killed one left open is aborted, before the later run reads what was done.
"""

from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

from penstock.records import Header
from penstock.settings import Settings
from penstock.transport import librdkafka
from penstock.transport.clients import Producer
from penstock.transport.librdkafka import KafkaFault

_FENCED = {librdkafka.FENCED, librdkafka.PRODUCER_FENCED, librdkafka.INVALID_PRODUCER_EPOCH}
_PURGED = {librdkafka.PURGE_QUEUE, librdkafka.PURGE_INFLIGHT}
"""Of records that an abort takes back: they are not to blame."""
_TIMEOUT_S = 30.0
_LARGEST = 1_000_000_000
"""The topic's own limit is the one that counts."""


class ReplayStopped(Exception):
    """A transaction was not, or not surely, committed; the message names the record or the mend."""


class Record(NamedTuple):
    """``of``: the letter that it is sent for."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: list[Header]
    of: str


class Sender:
    """Raises ``ReplayStopped``, here as everywhere."""

    def __init__(self, settings: Settings, transactional_id: str) -> None:
        self._id = transactional_id
        self._records: Sequence[Record] = []
        self._refused: list[tuple[int, str]] = []
        self._producer = Producer(
            {
                **settings.kafka(),
                "transactional.id": transactional_id,
                "transaction.timeout.ms": settings.transaction_timeout_ms,
                "partitioner": "murmur2_random",
                "compression.type": "lz4",
                "message.max.bytes": _LARGEST,
                "delivery.report.only.error": True,
                "log_level": 0,
            },
            lambda code, why: None,  # what fails is told by the calls
            self._on_failed,
        )
        try:
            self._producer.init_transactions(_TIMEOUT_S)
        except BaseException as error:
            self._producer.close()
            if not isinstance(error, KafkaFault):
                raise
            raise ReplayStopped(
                f"Kafka at {settings.bootstrap_servers} begins no transaction: {error}. "
                "Look at KAFKA_BOOTSTRAP_SERVERS, and at the rights of this user"
            ) from None

    def send(self, records: Sequence[Record]) -> None:
        """All of ``records`` in one transaction, committed when this returns."""
        self._records = records
        self._producer.traffic.mark()
        try:
            self._producer.begin()
            for number, record in enumerate(records):
                self._producer.produce_one(record.topic, record.key, record.value, record.headers, number)
            self._producer.flush(_TIMEOUT_S)
            self._producer.commit(_TIMEOUT_S)
        except BaseException as error:
            with suppress(KafkaFault):
                self._producer.abort(_TIMEOUT_S)
            if isinstance(error, KafkaFault):
                raise ReplayStopped(self._why(error)) from None
            raise
        if self._producer.traffic.sent(librdkafka.END_TXN) > 1:
            # the one that was lost may come late enough to end the next transaction
            raise ReplayStopped(
                "the connection failed during a commit, which was asked for twice. Replay again: what was sent is noted"
            )

    def close(self) -> None:
        self._producer.close()

    def _on_failed(self, code: int, number: int) -> None:
        if code not in _PURGED:
            record = self._records[number]
            told = f"letter {record.of} was not taken by {record.topic}: {KafkaFault(code)}"
            self._refused.append((len(record.value or b""), told))

    def _why(self, fault: KafkaFault) -> str:
        if fault.code in _FENCED:
            return f"another replay has begun as {self._id!r} and goes on from what this one has noted"
        if self._refused:
            # the broker refuses whole batches, mostly for what is too large in them
            _, told = max(self._refused)
            return f"{told}. Nothing of its transaction was sent; leave it out with a filter or a patch"
        return f"a transaction was not committed: {fault}. Replay again: what was sent is noted"
