"""Which Kafka broker to use: the one the environment names, a container if asked for, else the embedded one.

Commands and tests resolve through here, and the first line they print is the `description`, so that nobody has to
guess which broker a number or a failure belongs to.
"""

import os
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Literal

from penstock.local.broker import EmbeddedBroker
from penstock.local.jars import KAFKA_VERSION
from penstock.local.kafka_server import LARGEST_RECORD
from penstock.local.state import BrokerError

VARIABLE = "KAFKA_BOOTSTRAP_SERVERS"
VARIABLES = "PENSTOCK_BOOTSTRAP_SERVERS", VARIABLE
"""As the settings read them: the first that is set."""
# the image that testcontainers' start script is written for
IMAGE = "confluentinc/cp-kafka:7.6.0"
IMAGE_SETTINGS = {
    "KAFKA_AUTO_CREATE_TOPICS_ENABLE": "false",
    "KAFKA_TRANSACTION_STATE_LOG_NUM_PARTITIONS": "1",
    "KAFKA_TRANSACTION_STATE_LOG_REPLICATION_FACTOR": "1",
    "KAFKA_TRANSACTION_STATE_LOG_MIN_ISR": "1",
    "KAFKA_GROUP_MIN_SESSION_TIMEOUT_MS": "1000",
    "KAFKA_MESSAGE_MAX_BYTES": str(LARGEST_RECORD),
    "KAFKA_REPLICA_FETCH_MAX_BYTES": str(LARGEST_RECORD),
}

Kind = Literal["environment", "docker", "embedded"]


@dataclass(frozen=True)
class BrokerHandle:
    """A broker in use: where it is, which kind it is, and the line that says so."""

    bootstrap: str
    kind: Kind
    description: str


def choose_kind(docker: bool = False, environ: Mapping[str, str] = os.environ) -> Kind:
    """The kind that `resolve_broker` takes for the same arguments; looks at nothing but them."""
    if _named(environ) is not None:
        return "environment"
    return "docker" if docker else "embedded"


def describe_kind(docker: bool = False, environ: Mapping[str, str] = os.environ) -> str:
    """What `resolve_broker` will use, as one line, before anything is started."""
    if (named := _named(environ)) is not None:
        return f"broker: {named[1]} ({named[0]})"
    if docker:
        return f"broker: {IMAGE} in Docker ({VARIABLE} unset)"
    return f"broker: embedded Apache Kafka {KAFKA_VERSION} ({VARIABLE} unset)"


def _named(environ: Mapping[str, str]) -> tuple[str, str] | None:
    """The variable that names a broker, and what it says."""
    return next(((name, value) for name in VARIABLES if (value := environ.get(name, "").strip())), None)


@contextmanager
def resolve_broker(
    docker: bool = False,
    data_dir: Path = Path("var/broker"),
    environ: Mapping[str, str] = os.environ,
    *,
    heap_mb: int = 256,
    fast_start: bool = True,
) -> Iterator[BrokerHandle]:
    """A broker for the length of a `with` block; one that was started here ends with the block.

    `data_dir`, `heap_mb` and `fast_start` concern the embedded broker only (see `EmbeddedBroker`). Raises
    `BrokerError` when the broker of the environment accepts no connection or there is no Docker engine.
    """
    line = describe_kind(docker, environ)
    match choose_kind(docker, environ):
        case "environment":
            variable, bootstrap = _named(environ) or (VARIABLE, "")
            _require_listener(variable, bootstrap)
            yield BrokerHandle(bootstrap, "environment", line)
        case "docker":
            with _docker_broker() as bootstrap:
                yield BrokerHandle(bootstrap, "docker", line.replace(" (", f" at {bootstrap} ("))
        case "embedded":
            with EmbeddedBroker(data_dir, heap_mb=heap_mb, fast_start=fast_start, progress=report_fetch) as broker:
                yield BrokerHandle(broker.bootstrap, "embedded", line.replace(" (", f" at {broker.bootstrap} ("))


def report_fetch(done: int, total: int) -> None:
    """Progress of the first run on stderr: one line on a terminal, the last one only elsewhere."""
    if sys.stderr.isatty() or done == total:
        end = "\n" if done == total else "\r"
        sys.stderr.write(f"fetching Apache Kafka {KAFKA_VERSION}: {done}/{total} jars{end}")
        sys.stderr.flush()


def _require_listener(variable: str, bootstrap: str) -> None:
    """A dead address would otherwise show as clients that wait and say nothing; TLS and SASL are left to them."""
    reasons = []
    for server in bootstrap.split(","):
        host, _, port = server.strip().rpartition(":")
        host = host.rpartition("://")[2].strip("[]")
        if not host or not port.isdigit():
            raise BrokerError(f"{variable}={bootstrap}: {server.strip()!r} is not HOST:PORT.")
        try:
            socket.create_connection((host, int(port)), timeout=5.0).close()
        except OSError as error:
            reasons.append(f"{server.strip()}: {error}")
        else:
            return
    raise BrokerError(
        f"{variable}={bootstrap}: no broker accepts a connection ({'; '.join(reasons)}). "
        "Start it, or unset the variable to use the embedded broker."
    )


@contextmanager
def _docker_broker() -> Iterator[str]:
    try:
        # by name, since docker ships no types
        docker_error: type[Exception] = import_module("docker.errors").DockerException
        from testcontainers.community.kafka import KafkaContainer
    except ImportError as error:
        raise BrokerError(
            f"a broker in Docker needs testcontainers ({error}). Install penstock[docker], or leave out --docker."
        ) from error
    try:
        # already asks the engine for its version
        container = KafkaContainer(IMAGE).with_kraft()
    except docker_error as error:
        raise BrokerError(
            f"no Docker engine answers: {error}. Start the engine, set DOCKER_HOST, or leave out --docker."
        ) from error
    for name, value in IMAGE_SETTINGS.items():
        container.with_env(name, value)
    try:
        try:
            container.start(timeout=90)
        except (docker_error, TimeoutError) as error:
            raise BrokerError(f"{IMAGE} did not start in Docker: {error}. Leave out --docker to do without.") from error
        yield container.get_bootstrap_server()
    finally:
        container.stop()
