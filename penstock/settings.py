"""Every setting of every worker: one class, environment variables ``PENSTOCK_…``, held equal to ``.env.example`` by a
test.
"""

from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import AliasChoices, Field, SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, SettingsConfigDict

PREFIX = "PENSTOCK_"
KEEPS_TRYING = {"metadata.recovery.strategy": "none", "reconnect.backoff.max.ms": "1000"}
"""A client whose connections are all gone goes on with the brokers that it knows. By default librdkafka (2.16) forgets
them and what it asked them: a question for partition ends then waits for its whole time-out, and the next one is told
that there is no such partition. Brokers that all get other names at once are not found again, so a worker that hears
nothing for a minute ends and begins anew (``penstock.watchdog``). And it tries each second, as Java's clients do, not
up to ten seconds apart."""


class InvalidSettings(Exception):
    """Settings that are not what they may be: a line for each, with its variable, its value and what is allowed."""


class Settings(BaseSettings):
    """Read once at a worker's start. Secrets are ``SecretStr`` and never printed.

    ``given``: fields that a command's own options set, before the environment. Raises ``InvalidSettings``.
    """

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="ignore", populate_by_name=True, env_ignore_empty=True)

    def __init__(self, **given: Any) -> None:
        try:
            super().__init__(**given)
        except ValidationError as error:
            # not as its cause: pydantic shows every value, those of secrets too
            raise InvalidSettings("\n".join(_wrong(found, given) for found in error.errors())) from None
        if wrong := list(self._unusable(given)):
            raise InvalidSettings("\n".join(wrong))

    bootstrap_servers: str = Field(
        "127.0.0.1:9092",
        validation_alias=AliasChoices("PENSTOCK_BOOTSTRAP_SERVERS", "KAFKA_BOOTSTRAP_SERVERS"),
        description="Kafka to talk to, host:port[,host:port]",
    )
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        "PLAINTEXT", description="as Kafka names it"
    )
    sasl_mechanism: str | None = Field(None, description="PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512")
    sasl_username: str | None = Field(None, description="SASL user")
    sasl_password: SecretStr | None = Field(None, description="SASL password")
    ssl_ca_location: str | None = Field(None, description="PEM file of the broker's certificate authority")
    ssl_certificate_location: str | None = Field(None, description="PEM file of the client's certificate")
    ssl_key_location: str | None = Field(None, description="PEM file of the client's key")
    ssl_key_password: SecretStr | None = Field(None, description="password of the client's key")

    schema_registry_url: str | None = Field(
        None, description="Confluent-compatible registry; without it ids come from the lock"
    )
    schema_registry_user: str | None = Field(None, description="basic-auth user of the registry")
    schema_registry_password: SecretStr | None = Field(None, description="basic-auth password of the registry")

    guarantee: Literal["exactly_once", "at_least_once"] = Field(
        "exactly_once", description="transactions, or flush before offsets"
    )
    slot: int = Field(
        0, ge=0, description="this worker's fixed place among those of its stage; two workers never share one"
    )
    commit_interval_ms: int = Field(
        20, ge=5, description="a transaction commits when input is drained, at the latest after this"
    )
    max_batch_rows: int = Field(16_384, ge=1, description="rows a batch holds at most")
    max_wait_ms: int = Field(50, ge=1, description="how long a poll waits for the first row")
    merge_buffer_rows: int = Field(
        65_536, ge=1, description="rows buffered per partition where a stage merges by event time"
    )
    session_timeout_ms: int = Field(6_000, ge=1_000, description="after this a silent worker's partitions move")
    transaction_timeout_ms: int = Field(
        10_000, ge=1_000, description="after this the broker aborts a silent worker's transaction"
    )
    dead_letter_limit: float = Field(
        0.9,
        ge=0.0,
        le=1.0,
        description="a worker stops reading when more than this share of its newest rows became dead letters; 0: never",
    )
    dead_letter_window_rows: int = Field(1_000, ge=1, description="how many rows that share is taken of, at least")
    memory_limit_mb: int = Field(
        0,
        ge=0,
        description="MiB resident above which a worker reads nothing more, and after a while starts anew; 0: nine"
        " tenths of the container's limit, where there is one",
    )
    allow_incomplete_windows: bool = Field(
        False, description="start although the log no longer reaches back to the windows' start"
    )

    state_dir: Path = Field(Path("var"), description="slots' locks, caches and other files of this machine")
    snapshots_url: str | None = Field(
        None,
        description="folder or fsspec URL of the snapshots of windows and the crash journal; without it below the state"
        " folder",
    )
    snapshot_interval_s: float = Field(
        10.0,
        ge=0.0,
        description="how often a partition's state is written, so that a restart replays no more; 0: never",
    )
    models_url: str = Field("var/models", description="folder or fsspec URL of the model registry")
    feature_store_dir: Path | None = Field(
        None, description="folder of feature_store.yaml, where it is not the pipeline's"
    )
    intra_op_threads: int = Field(1, ge=0, description="ONNX Runtime threads of one run; 0 lets it choose")
    providers: str = Field(
        "auto", description="ONNX Runtime providers in order, or auto: CUDA when it is there, else CPU"
    )

    metrics_host: str = Field("127.0.0.1", description="address that /metrics and /health listen on")
    metrics_port: int = Field(0, ge=0, le=65_535, description="their port; 0 picks a free one, -> the log says which")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="of the JSON logs on stderr")

    def _unusable(self, given: Mapping[str, Any]) -> Iterator[str]:
        """What is allowed by itself, and with which no client can connect."""
        for name in ("ssl_ca_location", "ssl_certificate_location", "ssl_key_location"):
            location = getattr(self, name)
            if location is not None and not Path(location).exists():
                what = Settings.model_fields[name].description
                yield f"{_place(name, given)}={location!r} is not there. Name the {what}"
        if self.security_protocol.startswith("SASL_") and self.sasl_mechanism is None:
            field = Settings.model_fields["sasl_mechanism"]
            yield (
                f"{_place('sasl_mechanism', given)} is not set, and {_place('security_protocol', given)}="
                f"{self.security_protocol!r} needs it. Give {field.description}"
            )

        if self.guarantee == "exactly_once" and 3 * self.commit_interval_ms > 2 * self.transaction_timeout_ms:
            yield (
                f"{_place('commit_interval_ms', given)}={self.commit_interval_ms} is more than two thirds of "
                f"{_place('transaction_timeout_ms', given)}={self.transaction_timeout_ms}, after which the broker ends "
                "a transaction that is still open. Lower the first or raise the second"
            )

    @property
    def snapshots(self) -> str:
        """Where snapshots and the crash journal lie: a folder or fsspec URL."""
        return self.snapshots_url or str(self.state_dir / "snapshots")

    def kafka(self) -> dict[str, str]:
        """The connection part of every client's configuration, with secrets in the clear: never log it."""
        client = {
            **KEEPS_TRYING,
            "bootstrap.servers": self.bootstrap_servers,
            "security.protocol": self.security_protocol,
            "sasl.mechanism": self.sasl_mechanism,
            "sasl.username": self.sasl_username,
            "sasl.password": _plain(self.sasl_password),
            "ssl.ca.location": self.ssl_ca_location,
            "ssl.certificate.location": self.ssl_certificate_location,
            "ssl.key.location": self.ssl_key_location,
            "ssl.key.password": _plain(self.ssl_key_password),
        }
        return {name: value for name, value in client.items() if value is not None}


def refused(why: str) -> InvalidSettings:
    """Of what Kafka's client says when it does not take the settings."""
    return InvalidSettings(
        f"Kafka's client does not take the settings: {' '.join(why.split()).rstrip('.')}. "
        f"Look at {PREFIX}SECURITY_PROTOCOL, {PREFIX}SASL_… and {PREFIX}SSL_…"
    )


def _wrong(error: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    name = str(error["loc"][0])
    field = Settings.model_fields[name]
    value = "" if SecretStr in (field.annotation, *get_args(field.annotation)) else f"={error['input']!r}"
    return f"{_place(name, given)}{value} is not allowed. Give {_allowed(field)}"


def misspelt(environment: Iterable[str]) -> list[str]:
    """A line for each variable that is nearly a setting and none: what it says would silently not be done."""
    known = {f"{PREFIX}{name}".upper() for name in Settings.model_fields}
    lines = []
    for name in sorted(set(environment) - known):
        if name.startswith(PREFIX) and (meant := get_close_matches(name, known, 1, 0.85)):
            lines.append(f"{name} is no setting and changes nothing. Is {meant[0]} meant?")
    return lines


def _place(name: str, given: Mapping[str, Any]) -> str:
    return name if name in given else f"{PREFIX}{name}".upper()


def _allowed(field: FieldInfo) -> str:
    if get_origin(field.annotation) is Literal:
        return " or ".join(get_args(field.annotation))
    if field.annotation is bool:
        return "true or false"
    if field.annotation in (int, float):
        limits = [f"at least {limit.ge}" for limit in field.metadata if hasattr(limit, "ge")]
        limits += [f"at most {limit.le}" for limit in field.metadata if hasattr(limit, "le")]
        return f"a {'whole ' if field.annotation is int else ''}number, {' and '.join(limits)}"
    return "text"


def _plain(secret: SecretStr | None) -> str | None:
    return None if secret is None else secret.get_secret_value()
