"""Connections that are reset, over and over: what a client asks of the broker is answered all the same, and soon."""

import random
import threading
import time
from pathlib import Path

import pytest
from confluent_kafka.admin import NewTopic

from penstock.records import Partition
from penstock.settings import Settings
from penstock.topics import admin_client, await_topics
from penstock.transport.kafka import KafkaTransport
from tests.chaos.proxy import BrokerBehind, Proxy
from tests.contract.worlds import Recorder

TOPIC, PARTITIONS = "in", 4
CLIENTS, BURSTS, RESETS = 3, 4, 5
LONG_S = 15.0
"""A question waits for 30 s, and a connection comes back a second after a reset."""


class Asking(threading.Thread):
    """A worker's client that asks for the ends of all partitions all the time. ``slowest``: of its answers, in s."""

    def __init__(self, settings: Settings, stopped: threading.Event) -> None:
        super().__init__()
        self._settings, self._stopped = settings, stopped
        self.asked, self.slowest = 0, 0.0
        self.failed: list[str] = []

    def run(self) -> None:
        transport = KafkaTransport(self._settings, "resets", "test")
        try:
            transport.subscribe([TOPIC], Recorder())
            while not self._stopped.is_set():
                transport.poll(100, 0.02)
                for number in range(PARTITIONS):
                    began = time.monotonic()
                    transport.bounds(Partition(TOPIC, number))
                    self.slowest = max(self.slowest, time.monotonic() - began)
                    self.asked += 1
        except Exception as error:  # noqa: BLE001  # shown by the test
            self.failed.append(repr(error))
        finally:
            transport.close()


@pytest.mark.kafka
@pytest.mark.timeout(180)
def test_questions_are_answered_soon_however_often_connections_are_reset(tmp_path: Path) -> None:
    draw, stopped = random.Random(1), threading.Event()
    with Proxy() as proxy, BrokerBehind(tmp_path, proxy) as broker:
        settings = Settings(bootstrap_servers=broker.bootstrap)
        admin = admin_client(settings)
        admin.create_topics([NewTopic(TOPIC, PARTITIONS, 1)])[TOPIC].result(30)
        await_topics(admin, [TOPIC])
        clients = [Asking(settings.model_copy(update={"slot": slot}), stopped) for slot in range(CLIENTS)]
        for client in clients:
            client.start()
        try:
            for _ in range(BURSTS):
                time.sleep(3)
                for _ in range(RESETS):
                    proxy.reset()
                    time.sleep(draw.uniform(0.05, 0.6))
            time.sleep(3)
        finally:
            stopped.set()
            for client in clients:
                client.join()
    assert [client.failed for client in clients] == [[]] * CLIENTS
    assert all(client.asked > BURSTS * PARTITIONS for client in clients)
    assert max(client.slowest for client in clients) < LONG_S
