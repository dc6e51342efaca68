"""What the doctor makes of what it sees: every verdict from values in sight, without a broker."""

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from penstock.codec.json import JsonDecoder
from penstock.doctor import broker, clock, lag, probe, topics, transactions
from penstock.doctor.finding import Finding
from penstock.doctor.model import judge_profile
from penstock.doctor.schemas import check_schemas
from penstock.doctor.versions import BrokerVersion, read_answer
from penstock.models.manifest import MODEL_FILE, PROFILE_FILE
from penstock.models.verification import VerifiedModel
from penstock.plan import AvroSchema
from penstock.records import NO_TIME, Partition
from penstock.schemas.lock import SchemaLock
from penstock.schemas.registry import TransientLookupError
from penstock.topics import DAY_MS, Difference, TopicSpec
from tests.onnx_models import plan as any_plan

KAFKA = BrokerVersion(30, transactional=True)
SPECS = [TopicSpec("p.raw", 4, 604_800_000, 1_065_536, False), TopicSpec("p.control", 4, 604_800_000, 1_065_536, True)]


def verdicts(findings: Any) -> list[tuple[str, str]]:
    return [(finding.check, finding.verdict) for finding in findings]


@pytest.mark.parametrize(
    ("servers", "brokers", "version", "verdict"),
    [
        ("127.0.0.1:9092", 1, KAFKA, "ok"),
        ("localhost:9092,[::1]:9093", 1, None, "ok"),
        ("kafka.example:9092", 1, KAFKA, "warn"),
        ("localhost:9092,kafka.example:9092", 1, KAFKA, "warn"),
        ("kafka.example:9092", 3, KAFKA, "ok"),
        ("kafka.example:9092", 3, BrokerVersion(None, transactional=False), "fail"),
    ],
)
def test_one_broker_is_enough_at_home_and_none_without_transactions(
    servers: str, brokers: int, version: BrokerVersion | None, verdict: str
) -> None:
    assert broker.judge(servers, "c", brokers, version).verdict == verdict


def test_a_version_is_never_guessed() -> None:
    assert "is not told" in broker.judge("localhost:1", "c", 1, None).seen
    assert "unknown" in broker.judge("localhost:1", "c", 1, BrokerVersion(None, transactional=True)).seen


def api_versions(levels: Mapping[str, int], newest_commit: int) -> bytes:
    """An ApiVersions response of version 3, as KIP-584 lays it out."""
    features = bytes([len(levels) + 1])
    for name, level in levels.items():
        features += bytes([len(name) + 1]) + name.encode() + struct.pack(">hh", level, level) + b"\0"
    apis = b"\x03" + struct.pack(">hhh", 0, 0, 11) + b"\0" + struct.pack(">hhh", 28, 0, newest_commit) + b"\0"
    tags = b"\x02" + bytes([1]) + struct.pack(">B", 8) + struct.pack(">q", 7)
    tags += bytes([2, len(features)]) + features
    return struct.pack(">ih", 1, 0) + apis + struct.pack(">i", 0) + tags


def test_the_finalized_metadata_version_is_read_from_the_answer() -> None:
    assert read_answer(api_versions({"group.version": 1, "metadata.version": 27}, 5)) == BrokerVersion(27, True)
    assert read_answer(api_versions({}, 2)) == BrokerVersion(None, False)


@pytest.mark.parametrize("cut", [0, 3, 9, 30])
def test_an_answer_that_is_cut_off_is_none(cut: int) -> None:
    with pytest.raises(ValueError, match="cut off"):
        read_answer(api_versions({"metadata.version": 27}, 5)[:cut])


def test_topics_that_are_as_needed_are_one_line_a_check() -> None:
    found = list(topics.judge_topics(SPECS, [], 0, "PLAN", snapshots=False))
    assert verdicts(found) == [(check, "ok") for check in topics.CHECKS[:5]]


def test_every_difference_is_told_in_the_line_of_its_check() -> None:
    differences = [
        Difference("p.raw", "keeps records for 1 ms", "more", "retention.ms", "1"),
        Difference("p.dead", "is missing", "`penstock topics PLAN --create`", "topic"),
        Difference("p.raw", "has cleanup.policy compact", "delete", "cleanup.policy"),
    ]
    judged = topics.judge_topics(SPECS, differences, 0, "a.json", snapshots=True)
    found = [each for each in judged if each.verdict == "fail"]
    assert found == [
        Finding("topics", "fail", "p.dead is missing", "`penstock topics a.json --create`"),
        Finding("topic settings", "fail", "p.raw has cleanup.policy compact", "delete"),
        Finding(
            "retention", "fail", "p.raw keeps records for 1 ms, and windows, lateness and a day need 86400000", "more"
        ),
    ]


@pytest.mark.parametrize(
    ("days", "snapshots", "verdict"),
    [(0.5, True, "fail"), (2, False, "fail"), (2, True, "warn"), (4, False, "ok"), (4, True, "ok")],
)
def test_snapshots_let_the_log_be_shorter_than_the_windows_but_not_than_a_day(
    days: float, snapshots: bool, verdict: str
) -> None:
    value = str(int(days * DAY_MS))
    short = Difference("p.raw", f"keeps records for {value} ms, and a week is asked for", "more", "retention.ms", value)
    judged = topics.judge_topics(SPECS, [short], 3 * DAY_MS, "a.json", snapshots=snapshots)
    (found,) = [each for each in judged if each.check == "retention"]
    assert found.verdict == verdict
    assert ("a restart goes on from its snapshot" in found.seen) == (verdict == "warn")
    assert (f"{days:g} days or more" in found.seen) == (verdict == "ok")


@pytest.mark.parametrize(
    ("leaderless", "replicas", "in_sync", "needed", "local", "verdict"),
    [
        (0, 3, 3, 2, False, "ok"),
        (0, 1, 1, 1, True, "ok"),
        (0, 1, 1, 1, False, "warn"),
        (0, 3, 3, 1, False, "warn"),
        (0, 3, 2, 2, False, "warn"),
        (0, 3, 1, 2, False, "fail"),
        (0, 1, 1, 2, True, "fail"),
        (1, 3, 3, 2, False, "fail"),
    ],
)
def test_replicas_that_take_no_write_fail_and_those_that_may_lose_one_warn(
    leaderless: int, replicas: int, in_sync: int, needed: int, local: bool, verdict: str
) -> None:
    seen = topics.Replicas("p.raw", leaderless, replicas, in_sync, needed)
    assert verdicts(topics.judge_replicas([seen], local)) == [("replicas", verdict)]


@pytest.mark.parametrize(
    ("sent", "appended", "heard", "skew"), [(10, 11, 12, 0), (10, 10, 10, 0), (10, 15, 12, 3), (10, 4, 12, -6)]
)
def test_a_skew_is_what_lies_outside_of_sending_and_hearing(
    sent: float, appended: float, heard: float, skew: float
) -> None:
    assert clock.skew_ms(sent, appended, heard) == skew


@pytest.mark.parametrize(
    ("skew", "verdict", "side"),
    [
        (0, "ok", "this machine's"), (900, "ok", "ahead"), (-1500, "warn", "behind"), (1500, "warn", "ahead"),
        (-300_001, "fail", "behind"), (300_001, "fail", "ahead"),
    ],
)  # fmt: skip
def test_a_clock_that_is_off_by_more_than_the_future_allowance_fails(skew: float, verdict: str, side: str) -> None:
    found = clock.judge(skew, 300_000)
    assert (found.verdict, side in found.seen) == (verdict, True)


def test_only_a_transaction_older_than_its_timeout_fails_and_names_where_it_begins() -> None:
    young = transactions.OpenTransaction(Partition("p.raw", 0), 3, 0.4)
    old = transactions.OpenTransaction(Partition("p.events", 2), 17, 11.0)
    assert verdicts(transactions.judge([young], 10.0, 5, "h:1")) == [("open transactions", "ok")]
    (found,) = transactions.judge([young, old], 10.0, 5, "h:1")
    assert found.verdict == "fail"
    assert "p.events/2 has a transaction open for 11 s, from offset 17" in found.seen
    assert "abort --topic p.events --partition 2 --start-offset 17" in found.mend


@pytest.mark.parametrize(
    ("members", "rows", "seconds", "verdict"),
    [(1, 0, 0.0, "ok"), (2, 500, 3.0, "ok"), (1, 5, 61.0, "warn"), (0, 0, 0.0, "warn"), (0, 1, 0.1, "fail")],
)
def test_lag_that_nobody_works_on_fails_and_old_lag_warns(
    members: int, rows: int, seconds: float, verdict: str
) -> None:
    found = lag.judge(lag.Lag("ingest", members, rows, seconds), 60.0, "a.json")
    assert found.verdict == verdict
    assert ("penstock run ingest a.json" in found.mend) == (verdict != "ok")


@pytest.mark.parametrize(("members", "rows", "verdict"), [(1, 5, "ok"), (0, 0, "warn"), (0, 5, "fail")])
def test_workers_that_wait_for_a_model_are_not_said_to_be_missing(members: int, rows: int, verdict: str) -> None:
    nobody = Finding("champion", "fail", "nobody serves m: p.control names no champion", "penstock model promote")
    found = lag.judge(lag.Lag("inference", members, rows, 1.0), 60.0, "a.json", nobody)
    assert found.verdict == verdict
    assert ("wait for a model" in found.seen, found.mend) == (not members, "" if members else "penstock model promote")
    assert "nobody works" not in found.seen


def test_a_probe_decodes_as_an_event_of_no_time() -> None:
    plan = any_plan()
    decoded = JsonDecoder(plan.event.avro).decode([probe.probe_event(plan)])
    assert not decoded.bad
    assert decoded.rows.column("at").to_pylist() == [NO_TIME]


@pytest.mark.parametrize(
    ("probes", "verdict", "part"),
    [
        (probe.Probes({0: 7, 1: 9}, {0: 0.1, 1: 0.2}), "ok", "in 200 ms, all 2 partitions"),
        (probe.Probes({0: 7, 1: 9}, {0: 0.1}), "fail", "no fate of shop.raw/1@9"),
        (probe.Probes({0: 7}, {}, {0: "no event time"}), "warn", "a dead letter (no event time)"),
    ],
)
def test_a_probe_is_well_when_every_partition_dropped_it(probes: probe.Probes, verdict: str, part: str) -> None:
    (found,) = probe.judge(probes, any_plan(), "a.json")
    assert found.verdict == verdict
    assert part in found.seen


class Registry:
    """What the doctor asks of a registry, answered from a dict."""

    url = "http://registry"

    def __init__(self, ids: Mapping[str, int], level: str | None = "FULL_TRANSITIVE", away: bool = False) -> None:
        self._ids, self._level, self._away = ids, level, away

    def id_of(self, subject: str, schema: AvroSchema) -> int | None:
        if self._away:
            raise TransientLookupError("the registry could not be asked")
        return self._ids.get(subject)

    def level(self, subject: str) -> str | None:
        return self._level


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A pipeline's folder with one schema, locked."""
    schema = {"type": "record", "name": "E", "fields": [{"name": "at", "type": "long"}]}
    (tmp_path / "event.avsc").write_text(json.dumps(schema))
    SchemaLock.load(tmp_path / "schemas.lock").append("p.raw-value", schema)
    return tmp_path


def test_without_a_registry_the_lock_is_held_against_the_files(folder: Path) -> None:
    assert verdicts(check_schemas(folder, None)) == [("schemas", "ok"), ("compatibility", "ok")]
    file = folder / "event.avsc"
    file.write_text(file.read_text().replace('"at"', '"when"'))
    (found,) = check_schemas(folder, None)
    assert found.verdict == "fail"
    assert "is not the newest version of 'p.raw-value'" in found.seen


@pytest.mark.parametrize(
    ("registry", "schemas", "compatibility"),
    [
        (Registry({"p.raw-value": 1}), "ok", "ok"),
        (Registry({}), "fail", "ok"),
        (Registry({"p.raw-value": 1}, level="BACKWARD"), "ok", "warn"),
        (Registry({"p.raw-value": 1}, level=None), "ok", "not looked at"),
        (Registry({}, away=True), "fail", "not looked at"),
    ],
)
def test_every_locked_version_must_be_in_the_registry_and_guarded(
    folder: Path, registry: Registry, schemas: str, compatibility: str
) -> None:
    assert verdicts(check_schemas(folder, registry)) == [("schemas", schemas), ("compatibility", compatibility)]


def test_a_model_without_a_profile_is_a_warning_and_one_that_cannot_be_read_fails() -> None:
    manifest: Any = None  # which is not looked at
    without = judge_profile("champion m 1.0.0", VerifiedModel(manifest, "d", {MODEL_FILE: b""}))
    assert (without.check, without.verdict) == ("profile", "warn")
    assert "drift cannot be told" in without.seen
    broken = judge_profile("champion m 1.0.0", VerifiedModel(manifest, "d", {MODEL_FILE: b"", PROFILE_FILE: b"{"}))
    assert (broken.check, broken.verdict) == ("profile", "fail")
    assert "build the profile again" in broken.mend
