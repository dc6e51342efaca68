"""The verifier of the chaos tests has to be right itself: a log in which all is well passes, and each single harm that
is done to it is found and named.
"""

import ast
import hashlib
import json
from collections.abc import Callable, Collection
from io import BytesIO
from pathlib import Path
from typing import Any

import fastavro
import pytest

from tests.chaos.records import Headers, Record, Schemas
from tests.chaos.verify import main, verify

ENVELOPE = [
    {"name": "_event_id", "type": "string"},
    {"name": "_origin_partition", "type": "int"},
    {"name": "_origin_offset", "type": "long"},
]
ORIGIN = [{"name": "origin_partition", "type": "int"}, {"name": "origin_offset", "type": "long"}]
FIELDS = {
    "raw": [{"name": "x", "type": "double"}],
    "labels": [{"name": "y", "type": "int"}],
    "events": [*ENVELOPE, {"name": "x", "type": "double"}],
    "by.shop": [*ENVELOPE, {"name": "x", "type": "double"}, {"name": "sum", "type": ["null", "double"]}],
    "features": [*ENVELOPE, {"name": "sum", "type": ["null", "double"]}],
    "predictions": [{"name": "score", "type": "double"}, *ORIGIN],
    "outcomes": [{"name": "kind", "type": "string"}, *ORIGIN],
    "dropped": [
        {"name": "topic", "type": "string"},
        {"name": "reason", "type": "string"},
        {"name": "message", "type": "string", "default": ""},
        {"name": "event_id", "type": ["null", "string"], "default": None},
        *ORIGIN,
    ],
}
LOCK = [
    json.dumps(
        {"subject": f"t.{name}-value", "schema": {"type": "record", "name": name.replace(".", "_"), "fields": fields}}
    )
    for name, fields in FIELDS.items()
]
IDS = {name: number for number, name in enumerate(FIELDS, 1)}


def encode(suffix: str, **row: object) -> bytes:
    stream = BytesIO()
    schema = json.loads(LOCK[IDS[suffix] - 1])["schema"]
    fastavro.schemaless_writer(stream, fastavro.parse_schema(schema, named_schemas={}), row)
    return b"\0" + IDS[suffix].to_bytes(4, "big") + stream.getvalue()


def headers_of(topic: str, partition: int, offset: int, stage: str, origin: tuple[int, int] | None) -> Headers:
    facts = {
        "__connect.errors.topic": topic,
        "__connect.errors.partition": str(partition),
        "__connect.errors.offset": str(offset),
        "__connect.errors.stage": stage,
        "__connect.errors.exception.message": "it is not good",
        "penstock.reason": "bad",
    }
    if origin is not None:
        facts |= {"penstock.origin.topic": topic if stage == "ingest" else "t.raw"}
        facts |= {"penstock.origin.partition": str(origin[0]), "penstock.origin.offset": str(origin[1])}
    return [(name, text.encode()) for name, text in facts.items()]


class MemoryLog:
    """Topics as lists. Four events of two cards, a broken one, one that is dropped, one that inference rejects; three
    labels, one broken."""

    def __init__(self) -> None:
        self.topics: dict[str, list[Record]] = {f"t.{name}": [] for name in [*FIELDS, "dead"]}
        self.open: list[str] = []
        events = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
        for partition, offset in [*events, (1, 3)]:
            value = encode("raw", x=1.0) if offset < 3 else b"broken"
            self.add("raw", b"producer", value, partition, [("trace", b"1")])
        for place in events:
            names = {"_event_id": str(place), "_origin_partition": place[0], "_origin_offset": place[1]}
            card = b"card0" if place[1] < 2 else b"card1"
            self.add("events", card, encode("events", **names, x=1.0))
            self.add("by.shop", b"shop", encode("by.shop", **names, x=1.0, sum=None))
            origin = {"origin_partition": place[0], "origin_offset": place[1]}
            if place == (0, 1):
                self.add("dropped", b"shop", encode("dropped", topic="t.by.shop", reason="closed", **origin))
                continue
            features = encode("features", **names, sum=2.0)
            self.add("features", b"shop", features)
            if place == (1, 1):
                at = self.topics["t.features"][-1]
                why = headers_of("t.features", at.partition, at.offset, "inference", place)
                self.add("dead", b"shop", features, headers=why)
                continue
            self.add("predictions", b"shop", encode("predictions", score=0.5, **origin))
            self.add("outcomes", b"shop", encode("outcomes", kind="prediction", **origin))
        why = headers_of("t.raw", 1, 3, "ingest", (1, 3))
        self.add("dead", b"producer", b"broken", headers=[("trace", b"1"), *why])
        for offset in range(3):
            self.add("labels", b"k", encode("labels", y=1) if offset else b"{")
            if offset:
                self.add("outcomes", b"k", encode("outcomes", kind="label", origin_partition=0, origin_offset=offset))
        self.add("dead", b"k", b"{", headers=headers_of("t.labels", 0, 0, "ingest", (0, 0)))

    def add(
        self, suffix: str, key: bytes | None, value: bytes | None, partition: int = 0, headers: Headers | None = None
    ) -> None:
        records = self.topics[f"t.{suffix}"]
        offset = sum(record.partition == partition for record in records)
        records.append(Record(partition, offset, key, value, headers or []))

    def replace(self, suffix: str, place: int, **changes: Any) -> None:
        records = self.topics[f"t.{suffix}"]
        records[place] = records[place]._replace(**changes)

    def swap(self, suffix: str, one: int, other: int) -> None:
        """Exchange what two records hold; their offsets stay."""
        records = self.topics[f"t.{suffix}"]
        first, second = records[one], records[other]
        records[one] = second._replace(partition=first.partition, offset=first.offset)
        records[other] = first._replace(partition=second.partition, offset=second.offset)

    def drop(self, suffix: str, place: int) -> None:
        del self.topics[f"t.{suffix}"][place]

    def double(self, suffix: str, place: int) -> None:
        record = self.topics[f"t.{suffix}"][place]
        self.add(suffix, record.key, record.value, headers=record.headers)

    def read(self, topic: str) -> list[Record]:
        return self.topics[topic]

    def unstable(self, topics: Collection[str]) -> list[str]:
        return [partition for partition in self.open if partition.split("/")[0] in topics]


def findings(log: MemoryLog) -> dict[str, int]:
    return verify("t", Schemas("t", LOCK), log).findings


def test_a_log_in_which_all_is_well_passes_and_is_counted() -> None:
    verdict = verify("t", Schemas("t", LOCK), MemoryLog())
    assert verdict.ok, verdict.json()
    assert verdict.counts == {
        "dead": 3, "raw": 7, "labels": 3, "dropped": 1, "events": 6, "by.shop": 6, "features": 5, "predictions": 4,
        "outcomes": 6,
    }  # fmt: skip


def predicted(partition: int, offset: int) -> bytes:
    return encode("predictions", score=0.5, origin_partition=partition, origin_offset=offset)


HARM: dict[str, tuple[Callable[[MemoryLog], object], str]] = {
    "a prediction is dropped": (lambda log: log.drop("predictions", 2), "lost"),
    "a dead letter is dropped": (lambda log: log.drop("dead", 1), "lost"),
    "a drop is not stated": (lambda log: log.drop("dropped", 0), "lost"),
    "a label's outcome is dropped": (lambda log: log.drop("outcomes", -1), "lost"),
    "a prediction's outcome is dropped": (lambda log: log.drop("outcomes", 0), "lost"),
    "a label's dead letter is dropped": (lambda log: log.drop("dead", -1), "lost"),
    "a prediction is doubled": (lambda log: log.double("predictions", 1), "duplicated"),
    "a dead letter is doubled": (lambda log: log.double("dead", 1), "duplicated"),
    "a drop is doubled": (lambda log: log.double("dropped", 0), "duplicated"),
    "an event is doubled between stages": (lambda log: log.double("events", 0), "duplicated"),
    "a label is doubled": (lambda log: log.double("outcomes", -1), "duplicated"),
    "a dead letter has a prediction too": (
        lambda log: log.add("predictions", b"shop", predicted(1, 3)),
        "duplicated",
    ),
    "a prediction is of nothing that was sent": (
        lambda log: log.add("predictions", b"shop", predicted(1, 9)),
        "stranger",
    ),
    "two predictions are swapped": (lambda log: log.swap("predictions", 0, 1), "misordered"),
    "two events of a key are swapped": (lambda log: log.swap("events", 0, 1), "misordered"),
    "two rows of the second hop are swapped": (lambda log: log.swap("by.shop", 3, 4), "misordered"),
    "a key lies in two partitions": (lambda log: log.replace("predictions", 3, partition=1), "misordered"),
    "a byte of a dead letter is changed": (lambda log: log.replace("dead", 1, value=b"brokem"), "altered"),
    "a dead letter lost its value": (lambda log: log.replace("dead", 1, value=None), "altered"),
    "the key of a dead letter is changed": (lambda log: log.replace("dead", 1, key=b"other"), "altered"),
    "a dead letter lost its record's headers": (
        lambda log: log.replace("dead", 1, headers=log.topics["t.dead"][1].headers[1:]),
        "altered",
    ),
    "a dead letter between stages is changed": (lambda log: log.replace("dead", 0, value=b"other"), "altered"),
    "a dead letter names a record that is not there": (
        lambda log: log.replace("dead", 0, headers=headers_of("t.features", 0, 99, "inference", (1, 1))),
        "altered",
    ),
    "a dead letter says not where it is from": (lambda log: log.replace("dead", 1, headers=[]), "unattributed"),
    "a dead letter says not which raw record it was": (
        lambda log: log.replace("dead", 1, headers=[("trace", b"1"), *headers_of("t.raw", 1, 3, "ingest", None)]),
        "unattributed",
    ),
    "a dead letter of ingest says that it is of another record": (
        lambda log: log.replace("dead", 1, headers=[("trace", b"1"), *headers_of("t.raw", 1, 3, "ingest", (1, 2))]),
        "unattributed",
    ),
    "a dead letter of a later stage says that it is of another record": (
        lambda log: log.replace("dead", 0, headers=headers_of("t.features", 0, 4, "inference", (1, 0))),
        "unattributed",
    ),
    "a drop has no reason": (
        lambda log: log.replace(
            "dropped", 0, value=encode("dropped", topic="t.by.shop", reason="", origin_partition=0, origin_offset=1)
        ),
        "unattributed",
    ),
    "a prediction is cut short": (lambda log: log.replace("predictions", 0, value=predicted(0, 0)[:-1]), "unreadable"),
    "a prediction has bytes behind it": (
        lambda log: log.replace("predictions", 0, value=(log.topics["t.predictions"][0].value or b"") + b"\0"),
        "unreadable",
    ),
    "a transaction is open": (lambda log: log.open.append("t.predictions/0: stable to 3 of 4"), "open"),
}  # fmt: skip


@pytest.mark.parametrize("harm", HARM)
def test_harm_is_found_and_named(harm: str) -> None:
    log = MemoryLog()
    do, kind = HARM[harm]
    do(log)
    assert kind in findings(log)


OWN = ("carried", "copies", "declared", "inputs", "kafka_log", "letters", "outcomes", "records", "scores", "verdict",
       "windows")  # fmt: skip


@pytest.mark.parametrize("name", [*OWN, "verify", "watch", "joined"])
def test_it_shares_no_line_with_what_it_judges(name: str) -> None:
    tree = ast.parse(Path(__file__).with_name(f"{name}.py").read_text("utf-8"))
    names = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    names += [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    roots = {str(module).partition(".")[0] for module in names}
    assert not [root for root in roots if root.startswith(("penstock", "pipelines", "services"))]
    assert {module for module in names if str(module).startswith("tests.")} <= {f"tests.chaos.{own}" for own in OWN}


def with_a_copy(event_id: str = "(0, 0)", first: str = "t.raw/0@0", sent: str = "(0, 0)") -> MemoryLog:
    """Raw 1@4 is ``sent`` again and dropped as a duplicate of ``first`` with ``event_id``."""
    log = MemoryLog()
    log.add("raw", b"producer", encode("raw", x=1.0), 1)
    events = encode("events", _event_id=sent, _origin_partition=1, _origin_offset=4, x=1.0)
    log.add("events", b"card0", events)
    message = f"the event of this id came before, as {first}"
    place = {"origin_partition": 1, "origin_offset": 4, "event_id": event_id, "message": message}
    log.add("dropped", b"card0", encode("dropped", topic="t.events", reason="duplicate", **place))
    return log


def test_a_copy_is_dropped_if_the_first_got_through() -> None:
    assert findings(with_a_copy()) == {}
    assert findings(with_a_copy("(0, 1)", "t.raw/0@1", "(0, 1)")) == {}, "that one was dropped for another reason"


COPIES = {
    "of nothing": (with_a_copy(first="an event"), "unattributed"),
    "of itself": (with_a_copy(first="t.raw/1@4"), "lost"),
    "of a record that is not there": (with_a_copy(first="t.raw/0@9"), "lost"),
    "of another event": (with_a_copy(first="t.raw/0@1"), "lost"),
    "of an event that has its id and is not its own": (with_a_copy(sent="(1, 0)"), "lost"),
    "of a record that ingest refused": (with_a_copy(first="t.raw/1@3"), "lost"),
}


@pytest.mark.parametrize("copy", COPIES)
def test_a_copy_that_is_none_is_found(copy: str) -> None:
    log, kind = COPIES[copy]
    assert findings(log) == {kind: 1}


def test_a_copy_of_what_was_lost_is_lost_too() -> None:
    log = with_a_copy()
    log.drop("outcomes", 0)
    log.drop("predictions", 0)
    assert findings(log) == {"lost": 2}


def test_only_the_order_within_a_key_counts() -> None:
    log = MemoryLog()
    log.swap("events", 1, 2)
    assert findings(log) == {"misordered": 1}, "the cards' events may change places, the shop's may not"
    log.swap("by.shop", 1, 2)
    assert findings(log) == {}


def test_a_digest_stands_for_a_dead_letter_that_was_too_large() -> None:
    log = MemoryLog()
    headers = [*log.topics["t.dead"][1].headers, ("penstock.truncated", b"6")]
    digest = {"sha256": hashlib.sha256(b"broken").hexdigest(), "size": 6}
    log.replace("dead", 1, key=None, value=json.dumps(digest).encode(), headers=headers)
    assert findings(log) == {}
    log.replace("dead", 1, value=json.dumps(digest | {"size": 7}).encode())
    assert findings(log) == {"altered": 1}


def test_what_a_monitor_rejects_is_no_second_fate() -> None:
    log = MemoryLog()
    row = log.topics["t.features"][0]
    log.add("dead", row.key, row.value, headers=headers_of("t.features", row.partition, row.offset, "monitor", (0, 0)))
    assert findings(log) == {}


@pytest.mark.parametrize(("kind", "named", "found"), [
    ("label", "t.labels", {}), ("label", "t.raw", {"unattributed": 1}),
    ("prediction", "t.raw", {}), ("prediction", "t.labels", {"unattributed": 1}),
])  # fmt: skip
def test_what_a_monitor_rejects_of_the_outcomes_names_what_it_is_of(kind: str, named: str, found: object) -> None:
    log = MemoryLog()
    rows = log.topics["t.outcomes"]
    row = rows[-1] if kind == "label" else rows[0]
    place = (0, 2) if kind == "label" else (0, 0)
    headers = headers_of("t.outcomes", row.partition, row.offset, "monitor", place)
    headers = [(name, named.encode() if name == "penstock.origin.topic" else value) for name, value in headers]
    log.add("dead", row.key, row.value, headers=headers)
    assert findings(log) == found


def test_the_command_says_when_it_could_not_look(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["127.0.0.1:1", "t", "--lock", str(tmp_path / "none.lock")]) == 2
    assert "none.lock" in json.loads(capsys.readouterr().out)["error"]
