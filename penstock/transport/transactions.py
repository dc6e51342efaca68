"""What a slot sends, and the transactions that make it visible together with how far the slot has read.

A transaction that failed is not harmed further: what is sent into it after that is taken and forgotten, for all of it
goes again.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
import pyarrow as pa

from penstock.records import Header, Values, column
from penstock.settings import InvalidSettings, Settings
from penstock.transport import librdkafka
from penstock.transport.clients import Consumer, Producer
from penstock.transport.librdkafka import KafkaFault, Place
from penstock.transport.messages import messages
from penstock.transport.protocol import Fenced, Refusal, TransactionAborted, Unavailable

log = logging.getLogger(__name__)

PRODUCER = {
    "linger.ms": 5,
    "compression.type": "lz4",
    "partitioner": "murmur2_random",  # Java's: other clients' keyed records must land in the same partitions
    "queue.buffering.max.messages": 1_000_000,
    "delivery.report.only.error": True,
    "acks": "all",
}
PATIENCE_S = 10.0
SETTLING_S = 0.05
START_S = 60.0
MOST_WAITING = 500_000
"""Rows that may lie in the client's queue before more are handed to it; it takes twice as many, so it refuses none."""
_ROW_FAULTS = {
    librdkafka.MSG_SIZE_TOO_LARGE,
    librdkafka.RECORD_LIST_TOO_LARGE,
    librdkafka.INVALID_RECORD,
    librdkafka.INVALID_TIMESTAMP,
    librdkafka.INVALID_MSG,
}
"""What a row itself can be guilty of; every other failed delivery is a fault of the way, and is sent again."""
FATAL = {
    librdkafka.FATAL,
    librdkafka.FENCED,
    librdkafka.FENCED_INSTANCE_ID,
    librdkafka.INVALID_PRODUCER_EPOCH,
}


@dataclass(frozen=True, slots=True)
class _Mark:
    """What a row carries through the client, so that a report of its failure names it: the transaction (the last seven
    bits of its number), the send and the row."""

    transaction: int
    send: int
    row: int

    @property
    def number(self) -> int:
        return (self.transaction & 0x7F) << 56 | self.send << 32 | self.row

    @staticmethod
    def read(number: int) -> "_Mark":
        return _Mark(number >> 56, number >> 32 & 0xFFFFFF, number & 0xFFFFFFFF)


class Transactions:
    """Of one slot, one after the other; with ``at_least_once`` what was sent since the last commit is in their place.

    ``client``: the connection part of a client's configuration, with the slot as ``client.id``; ``max_message_bytes``:
    the largest row that any of the output topics takes. Raises ``Fenced`` where the slot has a newer holder.
    """

    def __init__(self, settings: Settings, client: Mapping[str, str], max_message_bytes: int) -> None:
        self._slot, self._bootstrap = client["client.id"], client["bootstrap.servers"]
        self._exactly_once = settings.guarantee == "exactly_once"
        self._sends = 0
        self._transaction = 0
        self._refused: list[Refusal] = []
        self._failed: list[Refusal] = []
        self._unsent: str | None = None
        self._open = self._cut_off = self._lost = False
        self._config = {**client, **PRODUCER, "message.max.bytes": max_message_bytes}
        if self._exactly_once:
            self._config |= {"transactional.id": self._slot, "transaction.timeout.ms": settings.transaction_timeout_ms}
        else:
            self._config |= {"enable.idempotence": True}
        self._producer = self._new_producer()
        try:
            self._fence()
        except BaseException:
            self._producer.close()
            raise

    def _new_producer(self) -> Producer:
        return Producer(self._config, self._on_error, self._on_failed)

    def _fence(self) -> None:
        """Lets the slot's former holder do nothing more. A wrong address or certificate looks like a broker that is
        late."""
        if not self._exactly_once:
            return
        deadline = time.monotonic() + START_S
        while True:
            try:
                self._producer.init_transactions(PATIENCE_S)
                self._producer.poll()  # tells of what went wrong on the way here
                self._cut_off = False
                return
            except KafkaFault as fault:
                if fault.code == librdkafka.INVALID_TRANSACTION_TIMEOUT:
                    raise InvalidSettings(
                        f"PENSTOCK_TRANSACTION_TIMEOUT_MS={self._config['transaction.timeout.ms']} is more than the "
                        "broker's transaction.max.timeout.ms. Lower the first or raise the second"
                    ) from fault
                if fault.fatal or fault.code in FATAL:
                    raise Fenced(f"slot {self._slot}: init_transactions: {fault}") from fault
                if not fault.retriable or time.monotonic() > deadline:
                    raise Unavailable(
                        f"Kafka at {self._bootstrap} does not let {self._slot} begin: {fault}. Look at the address, the"
                        " TLS and SASL settings, and this user's right on the transactional id"
                    ) from fault
                log.warning("Kafka is asked again to let %s begin: %s", self._slot, fault)

    def _begin(self) -> None:
        """With a new producer where the old one may be harmed by what went before. Its epoch keeps a former
        transaction's late requests out, and it remembers no coordinator that is gone: the old one might wait for that
        for ever (librdkafka's issue 5511).
        """
        if self._exactly_once:
            self._producer.poll()  # tells its errors
            repeated = self._asked_again(librdkafka.END_TXN) or self._asked_again(librdkafka.TXN_OFFSET_COMMIT)
            if repeated or self._cut_off:
                why = "an end was asked for twice" if repeated else "the broker was away"
                log.warning("a new producer takes over: %s", why)
                self._producer.close()
                self._producer = self._new_producer()
                self._fence()
            self._producer.traffic.mark()
            self._producer.begin()
        self._open = True

    def _asked_again(self, api: int) -> bool:
        """A transaction sends one request of this kind. If that was lost on its way and another did what it should, the
        lost one may come yet, and act on whichever transaction is open then: librdkafka has no KIP-890."""
        return self._producer.traffic.sent(api) > 1

    def _on_error(self, code: int, why: str) -> None:
        self._cut_off = True
        log.warning("kafka client: %s", why, extra={"code": librdkafka.name_of(code)})

    def _on_failed(self, code: int, number: int) -> None:
        mark = _Mark.read(number)
        if mark.transaction != self._transaction & 0x7F:  # of an aborted transaction, whose rows were sent again
            return
        why = str(KafkaFault(code))
        self._lost |= code == librdkafka.PURGE_QUEUE  # which is what a transaction's failure does with its rows
        if code in _ROW_FAULTS:
            self._failed.append(Refusal(mark.send, mark.row, why))
        else:
            self._unsent = why

    def send(
        self,
        topic: str,
        keys: Values,
        values: Values,
        headers: Sequence[list[Header]] | None = None,
        *,
        alone: bool = False,
    ) -> None:
        if not self._open:
            self._begin()
        send, self._sends = self._sends, self._sends + 1
        keys, values = column(keys), column(values)
        if len(keys) != len(values):
            raise ValueError(f"{len(values)} rows for {topic!r} and {len(keys)} keys: each row has one, or a null")
        if alone:
            self._settle()
        if self._unsent is not None:  # the transaction is lost, and all of this goes again
            return
        if headers is None:
            self._send_together(topic, keys, values, send)
        else:
            self._send_one_by_one(topic, keys, values, headers, send)
        if alone:
            self._settle()
            if self._failed:  # what comes behind them would only fail with them
                self._unsent = self._failed[0].message
        self._producer.poll()

    def _send_together(self, topic: str, keys: "pa.Array", values: "pa.Array", send: int) -> None:
        rows = messages(keys, values, _Mark(self._transaction, send, 0).number)
        self._make_room(len(rows))
        if self._producer.produce(topic, rows) < len(rows):
            for row in np.flatnonzero(rows["err"]).tolist():
                self._refuse(send, row, int(rows["err"][row]))

    def _send_one_by_one(
        self,
        topic: str,
        keys: "pa.Array",
        values: "pa.Array",
        headers: Sequence[list[Header]],
        send: int,
    ) -> None:
        for row, (key, value) in enumerate(zip(keys.to_pylist(), values.to_pylist(), strict=True)):
            self._make_room(1)
            mark = _Mark(self._transaction, send, row).number
            try:
                self._producer.produce_one(topic, key, value, headers[row], mark)
            except KafkaFault as fault:
                self._refuse(send, row, fault.code)

    def _make_room(self, rows: int) -> None:
        while (waiting := self._producer.waiting) and waiting + rows > MOST_WAITING:
            self._producer.poll(0.005)

    def _refuse(self, send: int, row: int, code: int) -> None:
        why = str(KafkaFault(code))
        if code == librdkafka.FATAL:
            raise Fenced(f"slot {self._slot}: {self._producer.fatal_error() or why}")
        if code in _ROW_FAULTS:
            self._refused.append(Refusal(send, row, why, sure=True))
        else:  # this row is not to blame, and goes again with the others
            self._unsent = why
            self._lost |= code == librdkafka.ERRONEOUS_STATE  # the transaction has failed already

    def commit(self, places: Sequence[Place], consumer: Consumer) -> None:
        """What was sent, with the offsets that ``consumer`` has read to. Raises ``TransactionAborted``, with the rows
        that are to blame, or ``Fenced``."""
        if self._refused or self._unsent is not None:
            self._give_up(self._unsent or "rows were refused by the client")
        try:
            if not self._exactly_once:
                while not self._producer.flush(PATIENCE_S):
                    log.warning("%d rows are not delivered yet", self._producer.waiting)
                if self._failed or self._unsent is not None:
                    raise TransactionAborted(self._unsent or "rows were refused", self._failed)
                if places:
                    consumer.commit(places)
            else:
                if not self._open:
                    self._begin()
                if places:
                    with consumer.group_metadata() as group:
                        self._insist(lambda: self._producer.send_offsets(places, group, PATIENCE_S), "send offsets")
                self._producer.flush(SETTLING_S)  # the commit waits for the rows as well, and sees them delivered later
                if self._failed:
                    self._give_up("rows were refused")
                self._insist(lambda: self._producer.commit(PATIENCE_S), "commit")
        except KafkaFault as fault:
            # of two requests to commit the first may have done it, whatever the second was told
            abortable = fault.abortable and not self._asked_again(librdkafka.END_TXN)
            if not self._exactly_once or abortable:
                self._lost = True
                self._give_up(str(fault))
            raise Fenced(f"slot {self._slot}: {fault}") from fault
        self._forget()

    def _give_up(self, why: str) -> NoReturn:
        """What is on its way is waited for: the reports name the rows that are to blame."""
        if self._exactly_once:
            try:
                self._abort()
            except Fenced as fenced:
                raise Fenced(f"{fenced}; the transaction was to be aborted for this: {why}") from fenced
        else:
            self._settle()
        raise TransactionAborted(self._failed[0].message if self._failed else why, [*self._refused, *self._failed])

    def abort(self) -> None:
        """What was sent is never seen."""
        self._abort()
        self._forget()

    def _abort(self) -> None:
        opened, self._open = self._open, False
        if opened and self._exactly_once:
            self._settle()  # an abort that overtakes the registration of its partitions is refused, and that is fatal
            try:
                self._insist(self._end_by_abort, "abort")
            except KafkaFault as fault:
                raise Fenced(f"slot {self._slot}: {fault}") from fault

    def _end_by_abort(self) -> None:
        sound = self._producer.fatal_error() is None
        try:
            self._producer.abort(PATIENCE_S)
        except KafkaFault as fault:
            if not sound or fault.code != librdkafka.INVALID_TXN_STATE or self._asked_again(librdkafka.END_TXN):
                raise
            # A broker looks at the epoch first, so the slot is ours. No commit was asked for, and what should have
            # begun the transaction was lost on its way: a new producer's epoch keeps it out, should it come yet
            log.warning("the broker knows of no transaction to abort: %s", fault)
            self._cut_off = True

    def _settle(self) -> None:
        """Until everything is delivered. What has not left a transaction that has failed never will, and a request on
        its way when it failed may come back to lie there (librdkafka queues it again): that is not waited for."""
        deadline = time.monotonic() + PATIENCE_S
        while not self._producer.flush(SETTLING_S) and time.monotonic() < deadline:
            if self._exactly_once and (self._failed or self._lost):
                return

    def _forget(self) -> None:
        self._open = self._lost = False
        self._transaction += 1
        self._sends, self._refused, self._failed, self._unsent = 0, [], [], None

    def _insist(self, call: Callable[[], None], what: str) -> None:
        """Retriable errors mean the same call again: a commit that timed out goes on in the background."""
        while True:
            try:
                return call()
            except KafkaFault as fault:
                if not fault.retriable:
                    if fault.fatal or fault.code in FATAL:
                        raise Fenced(f"slot {self._slot}: {what}: {fault}") from fault
                    raise
                log.warning("%s is tried again: %s", what, fault)
                time.sleep(0.01)

    def close(self) -> None:
        """What is open is aborted."""
        try:
            if self._open and self._exactly_once:
                self._producer.abort(PATIENCE_S)
        except KafkaFault as fault:  # the next holder's init_transactions aborts it, or has done so
            log.warning("the open transaction is left to the broker: %s", fault)
        finally:
            self._producer.close()
