"""A data folder that the broker must not touch is refused before anything starts, with the mend."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import pytest
from typer.testing import CliRunner

from penstock.cli.app import app
from penstock.local.broker import EmbeddedBroker
from penstock.local.jars import KAFKA_VERSION
from penstock.local.ports import free_port, is_free
from penstock.local.resolve import choose_kind, describe_kind, resolve_broker
from penstock.local.state import BrokerError, BrokerState, read_state, write_state


def write_folder(folder: Path, kafka: str = KAFKA_VERSION, meta_cluster: str = "abc") -> BrokerState:
    state = BrokerState(kafka=kafka, cluster_id="abc", port=20001, controller_port=20002)
    (folder / "log").mkdir()
    (folder / "log" / "meta.properties").write_text(f"version=1\ncluster.id={meta_cluster}\nnode.id=1\n")
    write_state(folder, state)
    return state


def test_a_folder_of_another_cluster_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path, meta_cluster="xyz")
    with pytest.raises(BrokerError, match="of another cluster than abc"):
        EmbeddedBroker(tmp_path).start()


def test_a_folder_of_a_newer_kafka_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path, kafka="99.0.1")
    with pytest.raises(BrokerError, match=r"written by Kafka 99\.0\.1"):
        EmbeddedBroker(tmp_path).start()


def test_a_kafka_folder_that_penstock_did_not_make_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path)
    (tmp_path / "broker.json").unlink()
    with pytest.raises(BrokerError, match="Penstock did not make"):
        EmbeddedBroker(tmp_path).start()


def test_a_damaged_state_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "broker.json").write_text('{"kafka": ')
    with pytest.raises(BrokerError, match=r"broker\.json is not the state of a broker"):
        EmbeddedBroker(tmp_path).start()


@pytest.mark.parametrize("child", ["x", "x/y"])
def test_a_folder_that_cannot_be_made_is_one_line_with_the_mend(child: str, tmp_path: Path) -> None:
    (tmp_path / "x").write_text("")
    folder = tmp_path / child
    failed = CliRunner().invoke(app, ["broker", "start", "--data-dir", str(folder)])
    assert failed.exit_code == 1
    assert failed.stderr.startswith("penstock broker: ")
    assert failed.stderr.count("\n") == 1
    for word in (str(folder), "Not a directory", "Choose another"):
        assert word in failed.stderr


def test_a_folder_of_the_kernel_is_named_before_anything_is_fetched() -> None:
    failed = CliRunner().invoke(app, ["broker", "start", "--data-dir", "/proc/x", "--json"])
    assert failed.exit_code == 1
    told = json.loads(failed.stdout)
    assert told["running"] is False
    assert told["error"].startswith("the folder /proc/x cannot be made or written to: ")


def test_a_process_id_that_now_belongs_to_something_else_is_not_the_broker(tmp_path: Path) -> None:
    state = write_folder(tmp_path).model_copy(update={"pid": os.getpid()})
    write_state(tmp_path, state)

    read = read_state(tmp_path)

    assert read is not None
    assert read.pid == os.getpid()
    assert read.running_pid() is None


def test_a_free_port_can_be_listened_on_and_is_not_an_outgoing_one() -> None:
    ports = {free_port() for _ in range(20)}

    assert all(is_free(port) for port in ports)
    lowest_outgoing = Path("/proc/sys/net/ipv4/ip_local_port_range")
    limit = int(lowest_outgoing.read_text().split()[0]) if lowest_outgoing.exists() else 49152
    assert max(ports) < max(limit, 32768)


@pytest.mark.parametrize(
    ("environ", "docker", "kind"),
    [
        ({"KAFKA_BOOTSTRAP_SERVERS": "kafka:9092"}, True, "environment"),
        ({"KAFKA_BOOTSTRAP_SERVERS": " "}, True, "docker"),
        ({}, True, "docker"),
        ({}, False, "embedded"),
    ],
)
def test_the_environment_comes_first_then_docker_then_embedded(
    environ: Mapping[str, str], docker: bool, kind: str
) -> None:
    assert choose_kind(docker, environ) == kind
    assert describe_kind(docker, environ).startswith("broker: ")
    assert "KAFKA_BOOTSTRAP_SERVERS" in describe_kind(docker, environ)


@pytest.mark.parametrize(
    ("servers", "message"),
    [("somewhere", "'somewhere' is not HOST:PORT"), ("127.0.0.1:{dead}", "no broker accepts a connection")],
)
def test_a_useless_address_in_the_environment_is_named_at_once(servers: str, message: str) -> None:
    environ = {"KAFKA_BOOTSTRAP_SERVERS": servers.format(dead=free_port())}
    with pytest.raises(BrokerError, match=message), resolve_broker(environ=environ):
        pytest.fail("there is no broker to use")
