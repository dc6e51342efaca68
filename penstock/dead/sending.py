"""Records and their notes, sent in transactions under a name that a later run takes over: one that still runs is
fenced, and what a killed one left open is aborted, before the later run reads what was done.
"""

from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from penstock.records import Header
from penstock.settings import Settings

_FENCED = (KafkaError._FENCED, KafkaError.PRODUCER_FENCED, KafkaError.INVALID_PRODUCER_EPOCH)
_PURGED = (KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT)
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
        self._refused: list[tuple[int, str]] = []
        self._faults: list[str] = []
        self._producer = Producer(
            {
                **settings.kafka(),
                "transactional.id": transactional_id,
                "transaction.timeout.ms": settings.transaction_timeout_ms,
                "partitioner": "murmur2_random",
                "compression.type": "lz4",
                "message.max.bytes": _LARGEST,
                "error_cb": lambda error: self._faults.append(error.str()),
                "log_level": 0,
            }
        )
        try:
            self._producer.init_transactions(_TIMEOUT_S)
        except KafkaException as error:
            raise ReplayStopped(
                f"Kafka at {settings.bootstrap_servers} begins no transaction: {error.args[0].str()}. "
                "Look at KAFKA_BOOTSTRAP_SERVERS, and at the rights of this user"
            ) from None

    def send(self, records: Sequence[Record]) -> None:
        """All of ``records`` in one transaction, committed when this returns."""
        try:
            self._producer.begin_transaction()
            for record in records:
                self._producer.produce(
                    record.topic,
                    record.value,
                    record.key,
                    headers=record.headers,
                    on_delivery=partial(self._delivered, record),
                )
            self._producer.flush(_TIMEOUT_S)
            self._faults.clear()
            self._producer.commit_transaction(_TIMEOUT_S)
            self._producer.poll(0)
        except BaseException as error:
            with suppress(KafkaException):
                self._producer.abort_transaction(_TIMEOUT_S)
            # the client raises what is fatal, calls for delivery reports all the same, and Python minds
            fault = error.__cause__ if isinstance(error, SystemError) else error
            if isinstance(fault, KafkaException):
                raise ReplayStopped(self._why(fault.args[0])) from None
            raise
        if self._faults:
            # librdkafka may have asked twice, and the second request may come late enough to end the next transaction
            raise ReplayStopped(
                f"the connection failed during a commit: {self._faults[0]}. Replay again: what was sent is noted"
            )

    def _delivered(self, record: Record, error: KafkaError | None, _: Message) -> None:
        if error is not None and error.code() not in _PURGED:
            told = f"letter {record.of} was not taken by {record.topic}: {error.str()}"
            self._refused.append((len(record.value or b""), told))

    def _why(self, error: Any) -> str:
        if error.code() in _FENCED:
            return f"another replay has begun as {self._id!r} and goes on from what this one has noted"
        if self._refused:
            # the broker refuses whole batches, mostly for what is too large in them
            _, told = max(self._refused)
            return f"{told}. Nothing of its transaction was sent; leave it out with a filter or a patch"
        return f"a transaction was not committed: {error.str()}. Replay again: what was sent is noted"
