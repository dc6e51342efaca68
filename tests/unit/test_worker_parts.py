"""The small parts of a worker: its slot, its health server, its logs, its dead letters."""

import json
import logging
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pyarrow as pa
import pytest

from penstock import telemetry, worker
from penstock.dead_letter import RawRow, dead_letter, shortened
from penstock.health import Health, HealthServer
from penstock.logs import JsonLines
from penstock.plan import PlanError
from penstock.records import NO_TIME, Partition, Reason, watermark_of
from penstock.settings import Settings
from penstock.slots import Slot, SlotTaken
from penstock.worker import find_kind, largest_message, reader, run, schema_lookup
from tests.unit.features_plan import plan


def get(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_readiness_says_why_not() -> None:
    health = Health()
    server = HealthServer(health, "127.0.0.1", 0)
    try:
        status, body = get(server.port, "/health/ready")
        assert (status, json.loads(body)["ready"]) == (503, False)
        health.wait("start", None)
        health.wait("model", "no champion yet")
        assert json.loads(get(server.port, "/health/ready")[1])["waiting_for"] == {"model": "no champion yet"}
        health.wait("model", None)
        assert get(server.port, "/health/ready")[0] == 200
        assert get(server.port, "/health/live")[0] == 200
        telemetry.READY.labels("test").set(1)
        assert 'penstock_ready{stage="test"} 1.0' in get(server.port, "/metrics")[1]
        assert get(server.port, "/nowhere")[0] == 404
    finally:
        server.close()


def test_a_loop_that_hangs_in_one_call_is_not_ready_and_says_in_which() -> None:
    now = [0.0]
    health = Health(lambda: now[0])
    health.wait("start", None)
    health.began("commit")
    now[0] = 4.0
    assert health.ready
    now[0] = 12.0
    assert health.waiting_for == {"loop": "in commit for 12 s"}
    health.ended()
    assert health.ready


def test_a_slot_has_one_holder_and_is_free_after_kill_9(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from penstock.slots import Slot\n"
        f"with Slot(pathlib.Path({str(tmp_path)!r}), 'g', 0): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(SlotTaken, match=f"held by process {holder.pid}"), Slot(tmp_path, "g", 0):
            pass
        with Slot(tmp_path, "g", 1):
            pass
        holder.kill()
        holder.wait()
        with Slot(tmp_path, "g", 0):
            pass


def test_a_worker_that_the_plan_has_not_is_told_which_it_has(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = plan()
    assert run(made, "nosuch", Settings(state_dir=tmp_path)) == 1
    told = json.loads(capfd.readouterr().err)["message"]
    assert told.startswith(f"plan of {made.pipeline!r} has no stage 'nosuch'; it has ")
    for stage in made.stages:
        assert stage.name in told
    assert "Install" not in told
    assert not list(tmp_path.iterdir())


def test_a_worker_that_cannot_listen_or_write_names_the_setting(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    server = HealthServer(Health(), "127.0.0.1", 0)
    try:
        assert run(plan(), "features.shop", Settings(state_dir=tmp_path, metrics_port=server.port)) == 1
    finally:
        server.close()
    assert run(plan(), "features.shop", Settings(state_dir=tmp_path, metrics_host="192.0.2.1")) == 1
    assert run(plan(), "features.shop", Settings(state_dir=Path("/proc/x"))) == 1
    said = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    taken, elsewhere, unwritable = (line["message"] for line in said if line["level"] == "ERROR")
    assert taken == (
        f"/metrics and /health cannot listen on port {server.port} of 127.0.0.1: Address already in use. Set "
        "PENSTOCK_METRICS_PORT to a free port (0 finds one), or PENSTOCK_METRICS_HOST to one of this machine's"
    )
    assert "of 192.0.2.1: Cannot assign requested address. Set " in elsewhere
    assert unwritable == (
        "PENSTOCK_STATE_DIR='/proc/x': /proc/x/slots/shops.features.shop.0.lock cannot be written: No such file or "
        "directory. Set it to a folder that you may write to"
    )


def test_a_worker_that_the_plan_has_names_the_package_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "entry_points", lambda group: [])
    with pytest.raises(PlanError, match=r"runs 'features\.feast' is not installed\. Install penstock-features$"):
        find_kind("features.feast")


def test_a_watermark_is_read_from_what_a_worker_commits_and_from_nothing_else() -> None:
    for none in (None, "", "kafka-ui", "AgAAAYx1", "9" * 30, "1.5"):
        assert watermark_of(none) == NO_TIME
    assert watermark_of("1795564345034") == 1795564345034
    assert watermark_of(str(NO_TIME)) == NO_TIME


def test_a_log_line_is_json_with_stage_slot_and_trace() -> None:
    record = logging.LogRecord("penstock.loop", logging.WARNING, __file__, 1, "%s aborted", ("it",), None)
    record.trace_id = "0af7651916cd43dd8448eb211c80319c"
    line = json.loads(JsonLines("ingest", 2).format(record))
    assert line["message"] == "it aborted"
    assert (line["stage"], line["slot"], line["level"]) == ("ingest", 2, "WARNING")
    assert line["trace_id"] == "0af7651916cd43dd8448eb211c80319c"


def test_what_is_too_large_of_a_letter_becomes_a_digest_part_by_part_and_the_rest_stays() -> None:
    raw = RawRow(Partition("p.raw", 3), 42, 1700, b"k" * 9, b"v" * 5, [("mine", b"h" * 20), ("more", None)], None)
    letter = dead_letter(raw, Reason("bad magic", "the first byte is 118"), "ingest", {})
    facts = [name for name, _ in letter.headers][2:]
    cut = shortened(letter)
    assert cut is not None
    assert (cut.key, cut.value) == (b"k" * 9, b"v" * 5)
    assert [name for name, _ in cut.headers] == [*facts, "penstock.truncated.headers"]
    assert json.loads(cut.headers[-1][1] or b"")["size"] == len("mine") + 20 + len("more") + 3
    cut = shortened(cut)
    assert cut is not None
    assert (cut.key, cut.value) == (None, b"v" * 5)
    assert json.loads(cut.headers[-1][1] or b"")["size"] == 9
    cut = shortened(cut)
    assert cut is not None
    assert json.loads(cut.value or b"")["size"] == 5
    assert cut.headers[-1] == ("penstock.truncated", b"5")
    assert shortened(cut) is None


def test_a_dead_letter_is_the_record_itself_with_connects_headers() -> None:
    raw = RawRow(Partition("p.raw", 3), 42, 1700, b"k", b"\xff\x00", [("mine", b"1")], ("p.raw", 3, 42))
    letter = dead_letter(raw, Reason("bad magic", "the first byte is 255"), "ingest", {"schema.id": "7"})
    headers = dict(letter.headers)
    assert (letter.key, letter.value) == (b"k", b"\xff\x00")
    assert headers["mine"] == b"1"
    assert headers["__connect.errors.topic"] == b"p.raw"
    assert headers["__connect.errors.partition"] == b"3"
    assert headers["__connect.errors.offset"] == b"42"
    assert headers["__connect.errors.exception.message"] == b"the first byte is 255"
    assert headers["penstock.reason"] == b"bad magic"
    assert headers["penstock.timestamp"] == b"1700"
    assert headers["penstock.origin.offset"] == b"42"
    assert headers["penstock.schema.id"] == b"7"
    assert headers["penstock.attempt"] == b"1"
    again = dead_letter(
        RawRow(Partition("p.raw", 0), 50, 1800, b"k", letter.value, letter.headers, None),
        Reason("x", "y"),
        "ingest",
        {},
    )
    assert [value for name, value in again.headers if name == "penstock.attempt"] == [b"1", b"2"]


def test_secrets_are_never_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_SASL_PASSWORD", "hunter2")
    monkeypatch.setenv("PENSTOCK_SECURITY_PROTOCOL", "SASL_SSL")
    monkeypatch.setenv("PENSTOCK_SASL_MECHANISM", "SCRAM-SHA-512")
    monkeypatch.setenv("PENSTOCK_SASL_USERNAME", "ada")
    settings = Settings()
    assert "hunter2" not in repr(settings) + str(settings) + settings.model_dump_json()
    client = settings.kafka()
    assert client["sasl.password"] == "hunter2"
    assert (client["security.protocol"], client["sasl.mechanism"]) == ("SASL_SSL", "SCRAM-SHA-512")


def test_no_topic_is_read_beyond_what_it_may_hold_whoever_wrote_there() -> None:
    used = plan()
    for stage in used.stages:
        for source in stage.inputs:
            limit = source.max_bytes or largest_message(used)
            decode = reader(source, schema_lookup(used, Settings()), largest_message(used)).decode
            bomb = b"\0" + source.value.id.to_bytes(4, "big") + bytes(limit)
            why = decode(pa.array([bomb])).bad[0]
            assert (why.reason, f"the limit is {limit}" in why.message) == ("too large", True), source.topic
            assert decode(pa.array([bomb[:limit]])).bad[0].reason != "too large"
