"""The embedded broker is a real Kafka that starts in seconds, survives what happens to it, and outlives nobody."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from uuid import uuid4

import pytest
from confluent_kafka import KafkaException, Producer
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic, ResourceType

import penstock.local.kafka_server
from penstock.local.broker import EmbeddedBroker
from penstock.local.ports import free_port
from penstock.local.resolve import BrokerHandle
from penstock.local.state import BrokerError, BrokerState, is_stopped, read_state, send_signal
from penstock.topics import await_topics
from tests.conftest import CommittedReader, TopicFactory, read_all_committed

# a child that starts a broker from a thread that ends, and says where it is
STARTS_A_BROKER = """
import sys, threading, time
from pathlib import Path
from penstock.local.broker import EmbeddedBroker
broker = EmbeddedBroker(Path(sys.argv[1]))
starter = threading.Thread(target=broker.start)
starter.start()
starter.join()
print(broker.pid, broker.bootstrap, flush=True)
time.sleep(600)
"""
pytestmark = pytest.mark.kafka

COMMAND = [sys.executable, "-c", "from penstock.cli.broker import broker_app; broker_app()"]


def admin(bootstrap: str) -> AdminClient:
    return AdminClient({"bootstrap.servers": bootstrap, "log_level": 0})


def make_topic(bootstrap: str, topic: str, **config: str) -> None:
    client = admin(bootstrap)  # the answer comes only while the client lives
    client.create_topics([NewTopic(topic, 1, 1, config=config)])[topic].result(30)
    await_topics(client, [topic])


def produce_committed(bootstrap: str, topic: str, values: list[bytes]) -> None:
    producer = Producer({"bootstrap.servers": bootstrap, "transactional.id": uuid4().hex, "log_level": 0})
    producer.init_transactions(60)
    producer.begin_transaction()
    for value in values:
        producer.produce(topic, value)
    producer.commit_transaction(60)


def values_of(bootstrap: str, topic: str) -> list[bytes | None]:
    return [message.value() for message in read_all_committed(bootstrap, topic)]


def accepts_connections(bootstrap: str) -> bool:
    host, port = bootstrap.split(":")
    try:
        socket.create_connection((host, int(port)), timeout=1).close()
    except OSError:
        return False
    return True


def test_it_answers_within_seconds_and_is_gone_after_the_block(tmp_path: Path) -> None:
    begun = time.monotonic()
    with EmbeddedBroker(tmp_path / "data") as broker:
        took = time.monotonic() - begun
        brokers = admin(broker.bootstrap).list_topics(timeout=10).brokers
    assert took < 30
    assert [f"{host.host}:{host.port}" for host in brokers.values()] == [broker.bootstrap]
    assert not accepts_connections(broker.bootstrap)


def test_a_restart_on_the_same_folder_keeps_address_and_records(tmp_path: Path) -> None:
    with EmbeddedBroker(tmp_path) as broker:
        first = broker.bootstrap
        make_topic(first, "kept")
        produce_committed(first, "kept", [b"a", b"b"])
    with EmbeddedBroker(tmp_path) as broker:
        assert broker.bootstrap == first
        produce_committed(first, "kept", [b"c"])
        assert values_of(first, "kept") == [b"a", b"b", b"c"]


def test_a_broker_killed_right_after_a_commit_starts_again_with_all_that_was_committed(tmp_path: Path) -> None:
    broker = EmbeddedBroker(tmp_path)
    address = broker.start()
    make_topic(address, "kept")
    # the markers of the last transaction are usually not written yet; see recovery.py for what Kafka makes of that
    for committed in (2, 4):
        produce_committed(address, "kept", [b"a", b"b"])
        broker.kill()
        assert not accepts_connections(address)
        assert broker.start() == address
        assert values_of(address, "kept") == [b"a", b"b"] * (committed // 2)
    broker.stop()


def test_it_dies_with_its_parent_and_only_then_and_its_folder_can_be_used_again(tmp_path: Path) -> None:
    parent = subprocess.Popen([sys.executable, "-c", STARTS_A_BROKER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    with parent:
        assert parent.stdout is not None
        try:
            bootstrap = parent.stdout.readline().split()[1]
            make_topic(bootstrap, "kept")
            produce_committed(bootstrap, "kept", [b"a"])
            state = read_state(tmp_path)
            assert state is not None
            assert state.running_pid() is not None
        finally:
            parent.kill()
    deadline = time.monotonic() + 10
    while state.running_pid() is not None:
        assert time.monotonic() < deadline, "the broker outlived its parent"
        time.sleep(0.05)
    with EmbeddedBroker(tmp_path) as broker:
        assert values_of(broker.bootstrap, "kept") == [b"a"]


def test_a_second_broker_on_the_folder_is_refused_with_the_address_of_the_first(tmp_path: Path) -> None:
    with EmbeddedBroker(tmp_path) as broker, pytest.raises(BrokerError, match="already runs") as failure:
        EmbeddedBroker(tmp_path).start()
    assert f"KAFKA_BOOTSTRAP_SERVERS={broker.bootstrap}" in str(failure.value)


def test_two_brokers_side_by_side_know_nothing_of_each_other(tmp_path: Path) -> None:
    with EmbeddedBroker(tmp_path / "a") as one, EmbeddedBroker(tmp_path / "b") as other:
        make_topic(one.bootstrap, "here")
        assert "here" in admin(one.bootstrap).list_topics(timeout=10).topics
        assert "here" not in admin(other.bootstrap).list_topics(timeout=10).topics


def test_a_paused_broker_keeps_its_connections_and_answers_when_resumed(tmp_path: Path) -> None:
    with EmbeddedBroker(tmp_path) as broker:
        client = admin(broker.bootstrap)
        client.list_topics(timeout=10)
        broker.pause()
        assert accepts_connections(broker.bootstrap)
        with pytest.raises(KafkaException):
            client.list_topics(timeout=1)
        broker.resume()
        assert client.list_topics(timeout=20).brokers


def test_a_pause_has_begun_when_it_is_said_to_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def late(state: BrokerState, number: signal.Signals) -> None:
        threading.Timer(0.3 if number == signal.SIGSTOP else 0.0, send_signal, [state, number]).start()

    with EmbeddedBroker(tmp_path) as broker:
        monkeypatch.setattr("penstock.local.broker.send_signal", late)
        broker.pause()
        state = read_state(tmp_path)
        assert state is not None
        pid = state.running_pid()
        assert pid is not None
        assert is_stopped(pid)


def test_a_paused_broker_can_be_stopped(tmp_path: Path) -> None:
    with EmbeddedBroker(tmp_path) as broker:
        broker.pause()
    assert not accepts_connections(broker.bootstrap)


def test_the_port_asked_for_is_used_and_one_in_use_is_an_error(tmp_path: Path) -> None:
    port = free_port()
    with EmbeddedBroker(tmp_path / "a", port=port) as broker:
        assert broker.bootstrap == f"127.0.0.1:{port}"
        with pytest.raises(BrokerError, match=f"port {port} .* is in use"):
            EmbeddedBroker(tmp_path / "b", port=port).start()


def test_an_interrupted_format_is_taken_up_again(tmp_path: Path) -> None:
    EmbeddedBroker(tmp_path).__enter__().stop()
    (tmp_path / "log" / "meta.properties").unlink()
    with EmbeddedBroker(tmp_path) as broker:
        assert accepts_connections(broker.bootstrap)


def test_when_kafka_does_not_come_up_the_error_ends_with_its_log(tmp_path: Path) -> None:
    EmbeddedBroker(tmp_path).__enter__().stop()
    meta = tmp_path / "log" / "meta.properties"
    meta.write_text(meta.read_text().replace("node.id=1", "node.id=2"))
    with pytest.raises(BrokerError, match="ended while starting") as failure:
        EmbeddedBroker(tmp_path).start()
    assert "node" in str(failure.value).partition("\n")[2]
    state = read_state(tmp_path)
    assert state is not None
    assert state.pid is None


def test_the_first_stop_writes_a_class_archive_that_later_starts_map_and_may_lose(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the archive's folder only: the jars stay where they are
    monkeypatch.setattr(penstock.local.kafka_server, "cache_dir", lambda: tmp_path / "cache")
    EmbeddedBroker(tmp_path / "data").__enter__().stop()
    (archive,) = (tmp_path / "cache" / "classes").glob("kafka-*.jsa")

    with EmbeddedBroker(tmp_path / "data") as broker:
        arguments = Path(f"/proc/{broker.pid}/cmdline")
        if arguments.exists():
            assert str(archive) in arguments.read_text()

    archive.chmod(0o644)
    archive.write_bytes(archive.read_bytes()[:100_000])
    with EmbeddedBroker(tmp_path / "data") as broker:
        assert accepts_connections(broker.bootstrap)


def test_the_session_broker_is_the_one_in_the_header(broker: BrokerHandle) -> None:
    assert accepts_connections(broker.bootstrap.split(",")[0])
    assert broker.description.startswith("broker: ")
    assert broker.bootstrap in broker.description


def test_a_reader_sees_committed_transactions_and_no_aborted_ones(
    broker: BrokerHandle, topic_factory: TopicFactory, read_committed: CommittedReader, kafka_topic_prefix: str
) -> None:
    topic = topic_factory(partitions=2)
    producer = Producer({"bootstrap.servers": broker.bootstrap, "transactional.id": kafka_topic_prefix})
    producer.init_transactions(60)
    for value, keep in ((b"kept 0", True), (b"aborted", False), (b"kept 1", True)):
        producer.begin_transaction()
        for partition in (0, 1):
            producer.produce(topic, value, partition=partition)
        producer.flush(30)
        (producer.commit_transaction if keep else producer.abort_transaction)(60)

    read = [(message.partition(), message.value()) for message in read_committed(topic)]

    assert read == [(0, b"kept 0"), (0, b"kept 1"), (1, b"kept 0"), (1, b"kept 1")]

    producer.begin_transaction()
    producer.produce(topic, b"open", partition=0)
    producer.flush(30)
    assert [(message.partition(), message.value()) for message in read_committed(topic, settled=False)] == read
    with pytest.raises(TimeoutError, match=r"partitions \[0\]"):
        read_committed(topic, timeout=2)
    producer.abort_transaction(60)


def test_topics_of_the_factory_use_log_append_time_and_may_take_large_records(
    broker: BrokerHandle, topic_factory: TopicFactory, read_committed: CommittedReader
) -> None:
    topic = topic_factory("large", partitions=1, max_message_bytes=str(4 << 20))
    resource = ConfigResource(ResourceType.TOPIC, topic)
    client = admin(broker.bootstrap)
    settings = client.describe_configs([resource])[resource].result(30)
    assert settings["message.timestamp.type"].value == "LogAppendTime"

    producer = Producer({"bootstrap.servers": broker.bootstrap, "message.max.bytes": 4 << 20})
    producer.produce(topic, bytes(3 << 20), timestamp=1)
    producer.flush(30)

    (record,) = read_committed(topic)
    assert len(record.value() or b"") == 3 << 20
    assert record.timestamp()[1] == pytest.approx(time.time() * 1000, abs=600_000)


def test_start_status_and_stop_from_the_command_line(tmp_path: Path) -> None:
    where = ["--data-dir", str(tmp_path / "broker"), "--json"]

    def call(*words: str) -> tuple[int, dict[str, object]]:
        run = subprocess.run([*COMMAND, *words, *where], check=False, capture_output=True, text=True, timeout=120)
        return run.returncode, json.loads(run.stdout)

    assert call("status") == (1, {"running": False, "data_dir": str(tmp_path / "broker"), "data_bytes": 0})
    status, started = call("start")
    try:
        assert status == 0
        assert accepts_connections(str(started["bootstrap"]))
        status, again = call("start")
        assert (status, again["pid"]) == (0, started["pid"])
        status, told = call("status")
        assert status == 0
        assert {**told, "uptime_seconds": 0, "data_bytes": 0} == {**started, "uptime_seconds": 0, "data_bytes": 0}
        assert isinstance(told["data_bytes"], int)
        assert told["data_bytes"] > 0
        # it belongs to no session or parent of ours
        assert os.getsid(int(str(started["pid"]))) == started["pid"]
    finally:
        stopped = call("stop")
    assert stopped == (0, {"running": False, "stopped": True})
    assert not accepts_connections(str(started["bootstrap"]))
    assert call("stop") == (0, {"running": False, "stopped": False})


def test_docker_without_an_engine_is_a_clear_error_at_once(tmp_path: Path) -> None:
    # a process of its own: the docker client leaves an unclosed socket behind when nobody answers
    asks = "from penstock.local.resolve import resolve_broker; resolve_broker(docker=True, environ={}).__enter__()"
    begun = time.monotonic()
    run = subprocess.run(
        [sys.executable, "-c", asks],
        env=os.environ | {"DOCKER_HOST": f"unix://{tmp_path}/nobody.sock"},
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == 1
    assert "BrokerError: no Docker engine answers" in run.stderr
    assert "leave out --docker" in run.stderr
    assert time.monotonic() - begun < 20
