"""A network that keeps an EndTxn back and delivers it later, behind the client's back; and what came of it, in numbers:
`python -m tests.integration.late_endtxn ROUNDS`.
"""

import argparse
import asyncio
import logging
import socket
import struct
import tempfile
from collections import Counter
from itertools import product
from pathlib import Path
from typing import Literal
from unittest.mock import patch
from uuid import uuid4

from confluent_kafka.admin import AdminClient, NewTopic

from penstock.settings import Settings
from penstock.topics import await_topics
from penstock.transport import transactions
from penstock.transport.kafka import KafkaTransport
from penstock.transport.protocol import Fenced, TransactionAborted
from penstock.transport.transactions import Transactions
from tests.chaos.proxy import CHUNK, LINGER_NONE, BrokerBehind, Proxy
from tests.conftest import read_all_committed

END_TXN = 26
Way = Literal["reset", "time-out"]
"""How the client comes to ask again: its connection is reset, or its request times out."""
Ending = Literal["commit", "abort"]
WAYS: tuple[Way, ...] = ("reset", "time-out")
ENDINGS: tuple[Ending, ...] = ("commit", "abort")


class HoldingProxy(Proxy):
    """Keeps the next EndTxn back once ``hold`` is set, until ``release``. ``whose``: only one with this text in its
    request, which names client and transactional id."""

    def __init__(self) -> None:
        super().__init__()
        self.hold: Way | None = None
        self.whose = ""
        self._held: tuple[bytes, asyncio.StreamReader, asyncio.StreamWriter] | None = None

    @property
    def held(self) -> bool:
        return self._held is not None

    def release(self) -> int:
        """Delivers it on the connection on which it came; returns the error code that the broker answered."""
        code: int = self._call(self._deliver())
        return code

    async def _deliver(self) -> int:
        assert self._held is not None, "no EndTxn was kept back"
        (request, from_broker, to_broker), self._held = self._held, None
        to_broker.write(request)
        await to_broker.drain()
        (size,) = struct.unpack(">i", await from_broker.readexactly(4))
        answer = await from_broker.readexactly(size)
        to_broker.transport.abort()
        (code,) = struct.unpack_from(">h", answer, 8)  # behind the correlation id and the throttle time
        return int(code)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            from_broker, to_broker = await asyncio.open_connection("127.0.0.1", self.target, limit=CHUNK)
        except OSError:
            writer.transport.abort()
            return
        back = asyncio.create_task(self._back(from_broker, writer))
        self._connections |= {writer, to_broker}
        kept = False
        try:
            while True:
                head = await reader.readexactly(4)
                request = head + await reader.readexactly(struct.unpack(">i", head)[0])
                if self.hold is not None and self._is_meant(request):
                    way, self.hold, kept = self.hold, None, True
                    back.cancel()
                    self._held = request, from_broker, to_broker
                    if way == "reset":
                        sock = writer.get_extra_info("socket")
                        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_NONE)
                        return
                if not kept:
                    await self._forward(request, to_broker)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            back.cancel()
            self._connections -= {writer, to_broker}
            writer.transport.abort()
            if not kept:
                to_broker.transport.abort()

    def _is_meant(self, request: bytes) -> bool:
        return struct.unpack_from(">h", request, 4) == (END_TXN,) and self.whose.encode() in request

    async def _back(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while piece := await reader.read(CHUNK):
                await self._forward(piece, writer)
        finally:
            writer.transport.abort()


def attempt(
    transport: KafkaTransport, proxy: HoldingProxy, topics: list[str], name: str, way: Way, held: Ending
) -> int:
    """Ends one transaction whose EndTxn comes late, into the next one, and ends that the other way. Returns what the
    broker answered to the late EndTxn. Raises what the transport raises."""
    transport.send(topics[0], [None], [f"{name} first"])
    transport._transactions._producer.flush(10)  # an abort of what was not sent yet asks nothing of the broker
    proxy.hold = way
    transport.commit({}) if held == "commit" else transport.abort()
    transport.send(topics[0], [None], [f"{name} second"])
    transport._transactions._producer.flush(10)
    code = proxy.release()
    transport.send(
        topics[1], [None], [f"{name} third"]
    )  # to the broker, a new transaction, if the late one has ended it
    transport._transactions._producer.flush(10)
    transport.abort() if held == "commit" else transport.commit({})
    return code


def topics_on(bootstrap: str, *names: str) -> list[str]:
    admin = AdminClient({"bootstrap.servers": bootstrap})
    for made in admin.create_topics([NewTopic(name, 1, 1) for name in names]).values():
        made.result(30)
    await_topics(admin, names)
    return list(names)


def attempts(
    proxy: HoldingProxy, bootstrap: str, trials: int, way: Way, held: Ending, *, guarded: bool
) -> Counter[str]:
    """What came of ``trials``: of their second transactions, how many ended as the late EndTxn said and not as the
    worker did (``decided by the late one``), as the worker did (``right``) or with the worker (``fenced``); and
    how often the broker refused the late one."""
    name = f"late{uuid4().hex[:8]}"
    topics = topics_on(bootstrap, f"{name}.a", f"{name}.b")
    settings = Settings(bootstrap_servers=f"127.0.0.1:{proxy.port}")
    guard = Transactions._asked_again if guarded else lambda *_: False
    found: Counter[str] = Counter()
    fates: dict[str, str] = {}
    with (
        patch.object(Transactions, "_asked_again", guard),
        patch.dict(transactions.PRODUCER, {"socket.timeout.ms": 1000}),
    ):
        transport = KafkaTransport(settings, name, "test")
        try:
            for trial in range(trials):
                try:
                    code = attempt(transport, proxy, topics, str(trial), way, held)
                    found["refused"] += code != 0
                    fates[str(trial)] = "ended"
                except (Fenced, TransactionAborted) as error:
                    logging.info("trial %d: %s", trial, error)
                    fates[str(trial)] = "fenced"
                    transport.close()
                    transport = KafkaTransport(settings, name, "test")
        finally:
            transport.close()
    seen = {str(message.value(), "utf-8") for topic in topics for message in read_all_committed(bootstrap, topic)}
    for trial, fate in fates.items():
        decided = (f"{trial} second" in seen) == (held == "commit")
        found["decided by the late one" if decided else "right" if fate == "ended" else fate] += 1
        if fate == "ended":
            assert (f"{trial} first" in seen) == (held == "commit")
            assert (f"{trial} third" in seen) == (held == "abort")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rounds", type=int, help="of five trials, each on a transport of its own")
    rounds = parser.parse_args().rounds
    logging.disable(logging.WARNING)
    with (
        tempfile.TemporaryDirectory() as folder,
        HoldingProxy() as proxy,
        BrokerBehind(Path(folder), proxy) as broker,
    ):
        for guarded, held, way in product((False, True), ENDINGS, WAYS):
            found: Counter[str] = Counter()
            for _ in range(rounds):
                found += attempts(proxy, broker.bootstrap, 5, way, held, guarded=guarded)
            print(f"guard {guarded!s:5}  late {held:6}  after a {way:8}  {dict(found)}", flush=True)


if __name__ == "__main__":
    main()
