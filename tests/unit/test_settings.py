"""Settings come from the environment, go to workers through it, and reach every client; secrets are never shown."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
from confluent_kafka import Consumer, Producer
from pydantic import SecretStr

import penstock.transport.kafka as transport
from penstock import topics
from penstock.dead.topics import reading
from penstock.local.supervisor import environment_of
from penstock.models import control_topic
from penstock.settings import InvalidSettings, Settings, misspelt
from penstock.transport import clients, transactions
from tests.onnx_models import plan

SECURE = {
    "security.protocol": "SASL_PLAINTEXT",
    "sasl.mechanism": "SCRAM-SHA-512",
    "sasl.username": "ann",
    "sasl.password": "open sesame",
}


@pytest.fixture
def secure(monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings as a deployment sets them."""
    monkeypatch.setenv("PENSTOCK_BOOTSTRAP_SERVERS", "127.0.0.1:1")
    for name, value in SECURE.items():
        monkeypatch.setenv(f"PENSTOCK_{name.replace('.', '_').upper()}", value)
    return Settings()


def test_the_environment_is_read_and_the_name_that_other_tools_use_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", "a:1,b:2")
    monkeypatch.setenv("PENSTOCK_COMMIT_INTERVAL_MS", "100")
    monkeypatch.setenv("PENSTOCK_GUARANTEE", "at_least_once")
    settings = Settings()
    assert (settings.bootstrap_servers, settings.commit_interval_ms) == ("a:1,b:2", 100)
    assert settings.guarantee == "at_least_once"
    monkeypatch.setenv("PENSTOCK_BOOTSTRAP_SERVERS", "c:3")
    assert Settings().bootstrap_servers == "c:3"
    monkeypatch.setenv("PENSTOCK_GUARANTEE", "at_most_once")
    with pytest.raises(InvalidSettings, match="exactly_once"):
        Settings()


def test_what_is_nearly_a_setting_is_told_and_what_is_none_at_all_is_not() -> None:
    names = ("PENSTOCK_GARANTEE", "PENSTOCK_SLOT", "PENSTOCK_INGEST_SERVICE_HOST", "GUARANTEE", "PENSTOCK_")
    assert misspelt(names) == ["PENSTOCK_GARANTEE is no setting and changes nothing. Is PENSTOCK_GUARANTEE meant?"]


def test_an_empty_variable_is_one_that_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("KAFKA_BOOTSTRAP_SERVERS", "PENSTOCK_SASL_MECHANISM", "PENSTOCK_COMMIT_INTERVAL_MS"):
        monkeypatch.setenv(name, "")
    settings = Settings()
    assert (settings.bootstrap_servers, settings.sasl_mechanism) == ("127.0.0.1:9092", None)
    assert settings.commit_interval_ms == 20


def test_a_transaction_may_not_be_open_for_as_long_as_the_broker_lets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_COMMIT_INTERVAL_MS", "6667")
    said = "PENSTOCK_COMMIT_INTERVAL_MS=6667 is more than two thirds of PENSTOCK_TRANSACTION_TIMEOUT_MS=10000"
    with pytest.raises(InvalidSettings, match=said):
        Settings()
    assert Settings(guarantee="at_least_once").commit_interval_ms == 6667
    assert Settings(transaction_timeout_ms=20_000).commit_interval_ms == 6667


@pytest.mark.parametrize(
    ("variable", "value", "allowed"),
    [
        ("PENSTOCK_GUARANTEE", "maybe", "exactly_once or at_least_once"),
        ("PENSTOCK_SLOT", "-1", "a whole number, at least 0"),
        ("PENSTOCK_METRICS_PORT", "x", "a whole number, at least 0 and at most 65535"),
        ("PENSTOCK_ALLOW_INCOMPLETE_WINDOWS", "often\nenough", "true or false"),
    ],
)
def test_a_wrong_setting_is_told_by_its_variable_its_value_and_what_is_allowed(
    variable: str, value: str, allowed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(InvalidSettings) as told:
        Settings()
    assert str(told.value) == f"{variable}={value!r} is not allowed. Give {allowed}"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"PENSTOCK_SSL_CA_LOCATION": "/nosuch"},
            "PENSTOCK_SSL_CA_LOCATION='/nosuch' is not there. Name the PEM file of the broker's certificate authority",
        ),
        (
            {"PENSTOCK_SECURITY_PROTOCOL": "SASL_PLAINTEXT"},
            "PENSTOCK_SASL_MECHANISM is not set, and PENSTOCK_SECURITY_PROTOCOL='SASL_PLAINTEXT' needs it. "
            "Give PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512",
        ),
    ],
)
def test_settings_that_no_client_can_connect_with_are_told(
    given: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in given.items():
        monkeypatch.setenv(variable, value)
    with pytest.raises(InvalidSettings) as told:
        Settings()
    assert str(told.value) == said


@pytest.mark.parametrize(
    "made",
    [
        topics.admin_client,
        reading,
        lambda settings: control_topic.ControlReader(settings, plan()),
        lambda settings: control_topic.publish(settings, plan(), "m", "1.0.0"),
        lambda settings: clients.Producer(settings.kafka(), print, print),
    ],
    ids=["admin", "dead", "control", "publish", "transport"],
)
def test_what_a_client_does_not_take_is_said_of_the_settings(made: Callable[[Settings], object]) -> None:
    with pytest.raises(InvalidSettings, match=r"does not take the settings: .*Look at PENSTOCK_SECURITY_PROTOCOL"):
        made(Settings(security_protocol="SASL_PLAINTEXT", sasl_mechanism="SCRAM-SHA-256"))


def test_every_wrong_setting_has_a_line_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_SLOT", "-1")
    monkeypatch.setenv("PENSTOCK_LOG_LEVEL", "LOUD")
    with pytest.raises(InvalidSettings) as told:
        Settings()
    assert [line.split("=")[0] for line in str(told.value).splitlines()] == ["PENSTOCK_SLOT", "PENSTOCK_LOG_LEVEL"]


def test_the_value_of_a_wrong_secret_is_not_shown() -> None:
    with pytest.raises(InvalidSettings, match="sasl_password is not allowed") as told:
        Settings(sasl_password=12345)
    assert "12345" not in str(told.value)
    assert told.value.__suppress_context__


def test_a_worker_reads_the_settings_that_its_supervisor_has(secure: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = secure.model_copy(
        update={"max_batch_rows": 64, "state_dir": Path("here"), "ssl_key_password": SecretStr("x")}
    )
    for name in SECURE:
        monkeypatch.delenv(f"PENSTOCK_{name.replace('.', '_').upper()}")
    for name, value in environment_of(settings).items():
        monkeypatch.setenv(name, value)
    assert Settings() == settings


def test_secrets_are_not_shown(secure: Settings) -> None:
    assert "sesame" not in repr(secure) + str(secure) + secure.model_dump_json()


def test_the_client_takes_the_settings_as_they_are_named(secure: Settings) -> None:
    quiet = {**secure.kafka(), "log_level": 0}
    Producer(quiet)
    consumer = Consumer({**quiet, "group.id": "g"})
    consumer.close()
    clients.Producer(quiet, print, print).close()
    clients.Consumer({**quiet, "group.id": "g"}, print, print).close()


@pytest.mark.filterwarnings("ignore")  # faust's own libraries
def test_sasl_reaches_every_client(secure: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []

    def client(config: dict[str, Any], *callbacks: Any) -> MagicMock:
        seen.append(config)
        return MagicMock()

    for name, modules in {"Producer": (transactions, control_topic), "Consumer": (transport, control_topic)}.items():
        for module in modules:
            monkeypatch.setattr(module, name, client)
    monkeypatch.setattr(topics, "Admin", lambda settings: client(settings.kafka()))
    transport.KafkaTransport(secure, "shop.ingest", "ingest")
    topics.admin_client(secure)
    with pytest.raises(control_topic.ControlUnavailable):
        control_topic.ControlReader(secure, plan())
    with pytest.raises(control_topic.ControlUnavailable):
        control_topic.publish(secure, plan(), "m", "1.0.0")
    assert len(seen) == 5
    for config in seen:
        assert {name: config[name] for name in SECURE} == SECURE

    from penstock_monitor.committed import broker_of

    credentials = broker_of(secure)["broker_credentials"]
    assert (credentials.username, credentials.password) == ("ann", "open sesame")
    assert (credentials.protocol.value, credentials.mechanism.value) == ("SASL_PLAINTEXT", "SCRAM-SHA-512")
