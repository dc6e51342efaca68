"""A broker behind TLS: with client certificates on one door, with user and password on the other. Every client that
Penstock makes gets in with what the settings say, and none without the authority that signed the broker's certificate.
"""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaConnectionError
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient, NewTopic
from pydantic import SecretStr

import penstock.local.broker as broker_module
from penstock.local.broker import EmbeddedBroker
from penstock.local.kafka_server import PROPERTIES
from penstock.local.ports import free_port
from penstock.plan import Plan
from penstock.records import Partition
from penstock.settings import Settings
from penstock.topics import admin_client, await_topics
from penstock.transport.kafka import KafkaTransport
from penstock.transport.protocol import Position
from tests.conftest import read_all_committed
from tests.contract.test_transports import drain
from tests.contract.worlds import Recorder
from tests.integration.authority import Authority
from tests.integration.conftest import VERSION, Feed
from tests.integration.pipeline_world import ROOT, World, until

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]

USER, PASSWORD, KEY_PASSWORD = "penstock", "correct-horse", "battery-staple"


@dataclass(frozen=True, slots=True)
class Secured:
    """``plain``: the door for those who look on. ``with_certificate``, ``with_password``: settings of clients."""

    plain: str
    with_certificate: Settings
    with_password: Settings
    stranger: Path
    """An authority that has signed nothing here."""


def properties(ssl_port: int, sasl_port: int, keystore: Path, authority: Path) -> str:
    """The embedded broker's, with two more doors."""
    secure = f"SSL://127.0.0.1:{ssl_port},SASL_SSL://127.0.0.1:{sasl_port}"
    plain = "PLAINTEXT://127.0.0.1:{port}"
    assert PROPERTIES.count(plain) == 2
    return PROPERTIES.replace(plain, f"{plain},{secure}") + "\n".join(
        [
            "listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,SSL:SSL,SASL_SSL:SASL_SSL",
            f"ssl.keystore.type=PEM\nssl.keystore.location={keystore}",
            f"ssl.truststore.type=PEM\nssl.truststore.location={authority}",
            "listener.name.ssl.ssl.client.auth=required",
            "sasl.enabled.mechanisms=PLAIN",
            "listener.name.sasl_ssl.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule"
            f' required user_{USER}="{PASSWORD}";',
            "",
        ]
    )


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    folder = tmp_path_factory.mktemp("secured")
    authority, stranger = Authority(folder, "authority"), Authority(folder, "stranger")
    certificate, key = authority.sign("broker")
    keystore = folder / "keystore.pem"
    keystore.write_bytes(key.read_bytes() + certificate.read_bytes())
    own, own_key = authority.sign("client", KEY_PASSWORD)
    ssl_port, sasl_port = free_port(), free_port()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(broker_module, "PROPERTIES", properties(ssl_port, sasl_port, keystore, authority.certificate))
        with EmbeddedBroker(folder / "broker") as broker:
            trust = {"ssl_ca_location": str(authority.certificate)}
            yield Secured(
                broker.bootstrap,
                Settings(
                    bootstrap_servers=f"127.0.0.1:{ssl_port}",
                    security_protocol="SSL",
                    ssl_certificate_location=str(own),
                    ssl_key_location=str(own_key),
                    ssl_key_password=SecretStr(KEY_PASSWORD),
                    **trust,
                ),
                Settings(
                    bootstrap_servers=f"127.0.0.1:{sasl_port}",
                    security_protocol="SASL_SSL",
                    sasl_mechanism="PLAIN",
                    sasl_username=USER,
                    sasl_password=SecretStr(PASSWORD),
                    **trust,
                ),
                stranger.certificate,
            )


@pytest.fixture(params=["with_certificate", "with_password"])
def settings(request: pytest.FixtureRequest, secured: Secured) -> Settings:
    found: Settings = getattr(secured, request.param)
    return found


@pytest.fixture
def topic(secured: Secured) -> str:
    name = f"t{uuid4().hex[:10]}"
    admin = AdminClient({"bootstrap.servers": secured.plain})
    admin.create_topics([NewTopic(name, 1, 1)])[name].result(30)
    await_topics(admin, [name])
    return name


def test_a_worker_consumes_and_produces_in_transactions_behind_tls(
    secured: Secured, settings: Settings, topic: str
) -> None:
    transport = KafkaTransport(settings, f"{topic}.g", "test")
    try:
        transport.send(topic, [b"k"], [b"through the door"])
        transport.commit({})
        transport.subscribe([topic], Recorder())
        ((number, offset, value),) = drain(transport, 1)
        assert value == b"through the door"
        place = Partition(topic, number)
        transport.commit({place: Position(offset + 1, 5)})
        assert transport.committed([place]) == {place: Position(offset + 1, 5)}
    finally:
        transport.close()
    assert [m.value() for m in read_all_committed(secured.plain, topic)] == [b"through the door"]


def test_the_admin_client_gets_in(settings: Settings, topic: str) -> None:
    assert topic in admin_client(settings).list_topics(timeout=20).topics


async def written_by_faust(settings: Settings, topic: str) -> None:
    """With the client of Faust's, made as Faust makes it of what the merge tells it."""
    from faust.transport.drivers.aiokafka import credentials_to_aiokafka_auth
    from penstock_monitor.committed import broker_of

    auth = credentials_to_aiokafka_auth(broker_of(settings)["broker_credentials"])
    producer = AIOKafkaProducer(bootstrap_servers=settings.bootstrap_servers, request_timeout_ms=5000, **auth)
    try:
        await producer.start()
        await producer.send_and_wait(topic, b"from Faust")
    finally:
        await producer.stop()


@pytest.mark.filterwarnings("ignore")  # faust's own libraries
def test_fausts_client_gets_in_by_either_door_and_not_without_its_certificate(
    secured: Secured, settings: Settings, topic: str
) -> None:
    asyncio.run(written_by_faust(settings, topic))
    assert [m.value() for m in read_all_committed(secured.plain, topic)] == [b"from Faust"]
    if settings is secured.with_certificate:
        without = {"ssl_certificate_location": None, "ssl_key_location": None, "ssl_key_password": None}
        with pytest.raises(KafkaConnectionError):
            asyncio.run(written_by_faust(settings.model_copy(update=without), topic))


@pytest.mark.parametrize(
    ("door", "change"),
    [
        ("with_certificate", {"ssl_ca_location": "stranger"}),
        ("with_certificate", {"ssl_certificate_location": None, "ssl_key_location": None, "ssl_key_password": None}),
        ("with_password", {"ssl_ca_location": "stranger"}),
        ("with_password", {"ssl_ca_location": None}),
        ("with_password", {"sasl_password": SecretStr("a guess")}),
    ],
)
def test_who_lacks_the_authority_the_certificate_or_the_password_stays_outside(
    secured: Secured, door: str, change: dict[str, Any]
) -> None:
    if change.get("ssl_ca_location") == "stranger":
        change = {"ssl_ca_location": str(secured.stranger)}
    settings = getattr(secured, door)
    with pytest.raises(KafkaException):
        admin_client(settings.model_copy(update=change)).list_topics(timeout=2)
    assert admin_client(settings).list_topics(timeout=20).brokers


def test_every_worker_of_a_pipeline_gets_in_and_nothing_is_lost_or_doubled(
    secured: Secured,
    flights_plan: Plan,
    flights_models: Path,
    feed: Feed,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Stages, the Feast writer, the merge and the watchers of the control topic; promotion has come this way too."""
    monkeypatch.chdir(ROOT)
    settings = secured.with_password
    changes = {name: getattr(settings, name) for name in settings.model_fields_set}
    name = f"secured_{uuid4().hex[:8]}"
    with World(flights_plan, name, secured.plain, tmp_path, flights_models, VERSION, **changes) as world:
        world.play(feed.take(2000))
        assert world.check()["predictions"] > 500
        until("Feast's writer to read all", lambda: world.behind("features.feast") == 0, pause=0.2)
        changelog = f"{world.plan.group('monitor.merge')}-windows-changelog"
        until("the merge's windows", lambda: read_all_committed(secured.plain, changelog), pause=0.5)
        for worker in world.supervisor.workers:
            said = worker.log_path.read_text()
            assert settings.bootstrap_servers in said, worker.name
            assert secured.plain not in said, worker.name
            assert PASSWORD not in said, worker.name
        assert world.supervisor.restarted == 0
