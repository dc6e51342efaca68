"""``penstock dead`` on a real broker, with a small pipeline whose ingest runs: letters are listed, shown, mended and
sent again, each once, whatever happens to the command.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from confluent_kafka import Message, Producer
from typer.testing import CliRunner

from penstock import envelope
from penstock.cli.app import app
from penstock.dead.sending import Record, ReplayStopped, Sender
from penstock.dead_letter import RawRow, dead_letter, shortened
from penstock.local.resolve import BrokerHandle
from penstock.plan import FORMAT, EventPlan, InputPlan, MonitorPlan, Plan, SchemaPlan, ServicePlan, StagePlan, TopicPlan
from penstock.records import Header, Partition, Reason
from penstock.settings import Settings
from penstock.topics import admin_client, create_topics, topic_specs
from tests.conftest import read_all_committed
from tests.contract.test_readme import FENCE, section
from tests.integration.pipeline_world import until

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]

AT = 1_760_000_000_000
ORDER: dict[str, Any] = {
    "type": "record",
    "name": "Order",
    "fields": [
        {"name": "at", "type": ["null", {"type": "long", "logicalType": "timestamp-millis"}]},
        {"name": "id", "type": "string"},
        {"name": "amount", "type": "double", "minimum": 0},
    ],
}
RECURSIVE = 9
"""The id of a schema that is known and cannot be read safely."""
SECTION = section("When records die")
(MENDS,) = (text for language, text in FENCE.findall(SECTION) if language == "python")
"""The README's own patch, and how it is named there."""
(PATCH,) = set(re.findall(r"--patch (\S+)", SECTION))
HOPELESS = """
def amount(outgoing):
    raise AssertionError("nothing helps")
"""
KILLED = """
import os, signal, sys
from penstock.dead import sending

when = sys.argv[1]

class Mortal(sending.Producer):
    commits = 0

    def commit(self, wait_s):
        self.commits += 1
        if (self.commits, when) == (3, "before"):
            assert self.flush(10)
            os.kill(os.getpid(), signal.SIGKILL)
        super().commit(wait_s)
        if self.commits == 3:
            os.kill(os.getpid(), signal.SIGKILL)

sending.Producer = Mortal
from penstock.cli.app import app
sys.argv[1:] = sys.argv[2:]
app()
"""


def plan_of(name: str) -> Plan:
    def schema(topic: str, number: int, avro: dict[str, Any]) -> SchemaPlan:
        return SchemaPlan(subject=f"{name}.{topic}-value", id=number, avro=avro)

    kept = [{"name": f["name"], "type": f["type"]} for f in ORDER["fields"]]
    events = schema("events", 2, {"type": "record", "name": "E", "fields": [*envelope.FIELDS, *kept]})
    dropped = json.loads((Path(__file__).parents[2] / "schemas/dropped.avsc").read_text())
    raw = InputPlan(
        topic=f"{name}.raw", format="raw", value=schema("raw", 1, ORDER), event_time="at", max_bytes=10_000, future_ms=0
    )
    return Plan(
        format=FORMAT,
        pipeline=name,
        source="here:pipeline",
        partitions=2,
        lateness_ms=0,
        event=EventPlan(
            avro=ORDER, id=1, subject="s", event_id="id", timestamp="at", key="id", max_bytes=10_000, future_ms=0
        ),
        label=None,
        when=None,
        topics=(
            TopicPlan(name=f"{name}.raw", partitions=2),
            TopicPlan(name=f"{name}.events", partitions=2, value=events),
            TopicPlan(name=f"{name}.dropped", partitions=2, value=schema("dropped", 3, dropped)),
            TopicPlan(name=f"{name}.dead", partitions=2),
            TopicPlan(name=f"{name}.replayed", partitions=2, compacted=True),
        ),
        stages=(StagePlan(name="ingest", inputs=(raw,), outputs=(f"{name}.events",), rekeys=True),),
        views=(),
        on_demand=(),
        service=ServicePlan(name="s", columns=(), hash=""),
        model=None,
        monitors=MonitorPlan(
            pane_ms=1, window_ms=1, idle_ms=1, psi=1, js=1, null_rate=1, minimum_rows=1, baseline=None
        ),
        schemas={
            1: ORDER,
            RECURSIVE: {**ORDER, "fields": [*ORDER["fields"], {"name": "next", "type": ["null", "Order"]}]},
        },
    )


class Place(NamedTuple):
    partition: int
    offset: int


class Shop:
    """The pipeline's topics, what a test puts there by hand, and the command."""

    def __init__(self, broker: str, name: str, folder: Path) -> None:
        self.broker, self.name, self.folder = broker, name, folder
        self.settings = Settings(bootstrap_servers=broker)
        self.admin = admin_client(self.settings)
        self.plan = plan_of(name)
        self.plan.save(folder / "plan.json")
        create_topics(self.admin, topic_specs(self.plan))
        self._producer = Producer({"bootstrap.servers": broker, "transactional.id": f"{name}.by-hand", "log_level": 0})
        self._producer.init_transactions(30)

    def put(self, suffix: str, key: bytes | None, value: bytes | None, headers: list[Header] | None = None) -> Place:
        """One record in a transaction of its own, so that each log ends in a marker."""
        placed: list[Message] = []
        self._producer.begin_transaction()
        self._producer.produce(
            f"{self.name}.{suffix}", value, key, headers=headers or [], on_delivery=lambda _, m: placed.append(m)
        )
        self._producer.commit_transaction(30)
        (message,) = placed
        partition, offset = message.partition(), message.offset()
        assert partition is not None
        assert offset is not None
        return Place(partition, offset)

    def order(self, n: int, amount: Any = 1) -> bytes:
        return json.dumps({"at": AT, "id": f"o{n}", "amount": amount}).encode()

    def bury(
        self,
        value: bytes,
        kind: str = "wrong type",
        stage: str = "ingest",
        topic: str = "raw",
        origin: Place | None = None,
        truncated: bool = False,
    ) -> Place:
        """A record of ``topic`` and its letter."""
        headers: list[Header] = [("trace", b"t"), ("penstock.mine", b"kept")]
        at = self.put(topic, value[:4], value, headers) if topic == "raw" else Place(0, 9)
        origin = at if topic == "raw" else origin
        whence = None if origin is None else (f"{self.name}.raw", *origin)
        row = RawRow(Partition(f"{self.name}.{topic}", at.partition), at.offset, AT, value[:4], value, headers, whence)
        letter = dead_letter(row, Reason(kind, "field 'amount' is \x1b[31mred"), stage, {})
        if truncated:
            letter = shortened(letter)
        return self.put("dead", letter.key, letter.value, letter.headers)

    def call(self, command: str, *words: str, code: int = 0) -> str:
        arguments = ["dead", command, f"{self.name}.dead", *words]
        done = CliRunner().invoke(app, arguments, env={"KAFKA_BOOTSTRAP_SERVERS": self.broker})
        assert done.exit_code == code, (done.output, done.exception)
        return done.output

    def replay(self, *words: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.call("replay", "--json", *words))
        return found

    def read(self, suffix: str) -> list[Message]:
        return read_all_committed(self.broker, f"{self.name}.{suffix}")

    def values(self, suffix: str = "raw") -> Counter[bytes]:
        return Counter(message.value() for message in self.read(suffix))

    def start(self, *words: str) -> "subprocess.Popen[bytes]":
        env = {**os.environ, "KAFKA_BOOTSTRAP_SERVERS": self.broker, "PENSTOCK_STATE_DIR": str(self.folder)}
        with (self.folder / "process.log").open("ab") as log:
            return subprocess.Popen([sys.executable, *words], env=env, stdout=log, stderr=log)


@pytest.fixture
def shop(broker: BrokerHandle, kafka_topic_prefix: str, tmp_path: Path) -> Iterator[Shop]:
    made = Shop(broker.bootstrap, kafka_topic_prefix, tmp_path)
    yield made
    for deletion in made.admin.delete_topics([topic.name for topic in made.plan.topics]).values():
        deletion.result(30)


def test_letters_are_listed_and_counted_to_the_end_of_a_log_that_ends_in_a_marker(shop: Shop) -> None:
    assert json.loads(shop.call("stats", "--json")) == {"total": 0, "groups": []}
    assert shop.call("list") == f"no letters in {shop.name}.dead\n"
    for n in range(5):
        shop.bury(shop.order(n, "1"))
    shop.bury(b"\7", "bad magic")
    lines = [json.loads(line) for line in shop.call("list", "--json").splitlines()]
    assert [line["reason"] for line in lines] == ["wrong type"] * 5 + ["bad magic"]
    assert [line["time"] for line in lines] == sorted(line["time"] for line in lines)
    assert {line["origin"] for line in lines} == {
        f"{shop.name}.raw/{m.partition()}@{m.offset()}" for m in shop.read("raw")
    }
    assert lines[-1]["size"] == 1
    assert len(shop.call("list", "--json", "--limit", "2").splitlines()) == 2
    assert len(shop.call("list", "--json", "--reason", "bad magic").splitlines()) == 1
    assert len(shop.call("list", "--json", "--since", lines[-1]["time"]).splitlines()) >= 1
    assert shop.call("list", "--json", "--until", "2020-01-01") == ""
    groups = json.loads(shop.call("stats", "--json", "--by", "day"))["groups"]
    assert [(g["reason"], g["stage"], g["count"]) for g in groups] == [
        ("wrong type", "ingest", 5),
        ("bad magic", "ingest", 1),
    ]
    assert groups[0]["share"] == pytest.approx(5 / 6)
    assert groups[0]["first"] == lines[0]["time"]
    assert groups[0]["bucket"] == lines[0]["time"][:10]
    assert "6 letters in" in shop.call("stats")
    assert shop.call("list", "--reason", "wrongtype") == (
        f"no such letter in {shop.name}.dead; there are 5 of stage ingest for 'wrong type', "
        "1 of stage ingest for 'bad magic'\n"
    )
    table = shop.call("list")
    assert "bad magic" in table
    assert "\x1b" not in table


def test_an_open_transaction_holds_no_command_up(shop: Shop) -> None:
    shop.bury(shop.order(1, "1"))
    writer = Producer({"bootstrap.servers": shop.broker, "transactional.id": f"{shop.name}.open", "log_level": 0})
    writer.init_transactions(30)
    writer.begin_transaction()
    for partition in range(2):
        writer.produce(f"{shop.name}.dead", b"not yet", partition=partition)
    assert writer.flush(30) == 0
    assert len(shop.call("list", "--json").splitlines()) == 1
    writer.abort_transaction(30)


def test_a_letter_is_shown_with_its_headers_and_its_payload_up_to_the_break(shop: Shop) -> None:
    at = shop.bury(b"\0\0\0\0\1" + b"\2\2\6o-1\1\2", "truncated or malformed avro")
    shown = shop.call("show", f"{at.partition}@{at.offset}", "--plan", str(shop.folder / "plan.json"))
    assert '"id": "o-1"' in shown
    assert "! byte 11, field 'amount': it asks for 8 bytes, and 2 are left" in shown
    assert "00000000  00 00 00 00 01 02 02 06  6f 2d 31 01 02" in shown
    assert "penstock.mine: kept" in shown
    assert "penstock.reason: truncated or malformed avro" in shown
    assert "\x1b" not in shown
    told = json.loads(shop.call("show", f"{at.partition}@{at.offset}", "--json"))
    assert "give --plan or --lock" in told["faults"][0]
    assert bytes.fromhex(told["hex"]) == b"\0\0\0\0\1\2\2\6o-1\1\2"
    large = shop.bury(json.dumps({"id": "x" * 10_000}).encode())
    shown = shop.call("show", f"{large.partition}@{large.offset}", "--bytes", "64")
    assert re.search(r"… and 9,\d{3} characters more, see --bytes and --json", shown)
    assert "x" * 100 not in shown
    assert "is not there" in shop.call("show", "0@99", code=1)
    assert "names no letter" in shop.call("show", "zero", code=1)


def test_what_is_no_topic_of_dead_letters_is_said_in_one_line(shop: Shop) -> None:
    for topic, told in ((f"{shop.name}.raw", "no topic of dead letters"), ("nowhere.dead", "cannot be read")):
        for command in ("list", "stats", "replay"):
            done = CliRunner().invoke(app, ["dead", command, topic], env={"KAFKA_BOOTSTRAP_SERVERS": shop.broker})
            assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
            assert told in done.stderr


def test_a_letter_goes_back_as_the_record_that_it_was_and_only_once(shop: Shop) -> None:
    value = shop.order(1, "12")
    shop.bury(value)
    (before,) = shop.read("raw")
    assert shop.replay("--dry-run") == {"dry_run": True, "replayed": 1, "left": []}
    assert shop.values() == {value: 1}
    assert not shop.read("replayed")
    assert shop.replay() == {"dry_run": False, "replayed": 1, "left": []}
    (again,) = [m for m in shop.read("raw") if m.headers() != before.headers()]
    assert (again.key(), again.value()) == (before.key(), value)
    assert again.headers() == [("trace", b"t"), ("penstock.mine", b"kept"), ("penstock.attempt", b"1")]
    assert shop.replay() == {"dry_run": False, "replayed": 0, "replayed before": 1, "left": []}
    assert shop.values() == {value: 2}


def test_of_later_stages_the_raw_record_goes_back_if_the_log_has_it(shop: Shop) -> None:
    origin = shop.put("raw", b"key", b"the raw one", [("trace", b"t")])
    shop.bury(b"an event", stage="features.shop", topic="events", origin=origin)
    gone = shop.bury(b"an event", stage="features.shop", topic="events", origin=Place(0, 10_000))
    unknown = shop.bury(b"an event", stage="features.shop", topic="events")
    watched = shop.bury(b"an event", stage="monitor", topic="events", origin=origin)
    shop.bury(b"a long one", "too large", truncated=True)
    report = shop.replay()
    assert report["replayed"] == 2
    said = {m.value(): m.headers() for m in shop.read("raw") if (m.headers() or [("", b"")])[-1][0] != "trace"}
    assert said[b"the raw one"] == [
        ("trace", b"t"),
        ("penstock.attempt", b"1"),
        ("penstock.replays", f"{shop.name}.raw/{origin.partition}@{origin.offset}".encode()),
    ]
    assert "penstock.replays" not in dict(said[b"a long one"]), "it died before it was an event"
    (again,) = [m for m in shop.read("raw") if m.value() == b"the raw one" and len(m.headers()) == 3]
    second = Place(again.partition(), again.offset())
    shop.bury(b"an event", stage="features.shop", topic="events", origin=second)
    assert shop.replay()["replayed"] == 1
    (last,) = [m for m in shop.read("raw") if m.value() == b"the raw one" and len(m.headers()) > 3]
    assert [name for name, _ in last.headers()] == ["trace", "penstock.attempt", "penstock.replays", "penstock.attempt"]
    assert dict(last.headers())["penstock.replays"] == dict(again.headers())["penstock.replays"]
    assert {one["letter"]: one["fate"] for one in report["left"]} == {
        f"{gone.partition}@{gone.offset}": "record gone",
        f"{unknown.partition}@{unknown.offset}": "origin unknown",
        f"{watched.partition}@{watched.offset}": "only watched",
    }
    assert shop.values() == {b"the raw one": 3, b"a long one": 2}
    assert shop.replay()["replayed before"] == 3


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_replay_that_is_killed_goes_on_and_each_letter_is_sent_once(shop: Shop, when: str) -> None:
    orders = [shop.order(n, "1") for n in range(40)]
    for value in orders:
        shop.bury(value)
    (shop.folder / "killed.py").write_text(KILLED)
    killed = shop.start(str(shop.folder / "killed.py"), when, "dead", "replay", f"{shop.name}.dead", "--rate", "50")
    assert killed.wait(60) == -signal.SIGKILL, (shop.folder / "process.log").read_text()
    report = shop.replay()
    done = 20 if when == "before" else 30
    assert (report["replayed before"], report["replayed"]) == (done, 40 - done)
    assert shop.values() == dict.fromkeys(orders, 2)
    assert shop.replay()["replayed"] == 0
    assert shop.values() == dict.fromkeys(orders, 2)


@pytest.mark.parametrize("as_json", [True, False])
def test_a_replay_that_is_interrupted_says_how_far_it_came(shop: Shop, as_json: bool) -> None:
    for n in range(40):
        shop.bury(shop.order(n, "1"))
    words = ["-m", "penstock", "dead", "replay", f"{shop.name}.dead", "--rate", "5"]
    process = shop.start(*words, *(["--json"] if as_json else []))
    until("some to be replayed", lambda: shop.read("replayed"), pause=0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    said = (shop.folder / "process.log").read_text()
    done = len(shop.read("replayed"))
    assert 0 < done < 40
    line = f"interrupted: {done} letters replayed. The same command goes on from there"
    if as_json:
        assert json.loads(said) == {"error": line, "replayed": done}
    else:
        assert said == f"penstock: {line}\n"
    assert shop.replay()["replayed"] == 40 - done


def test_a_rate_is_kept(shop: Shop) -> None:
    for n in range(20):
        shop.bury(shop.order(n, "1"))
    began = time.monotonic()
    assert shop.replay("--rate", "20")["replayed"] == 20
    assert time.monotonic() - began > 0.7


def test_a_second_replay_at_the_same_time_ends_the_first(shop: Shop) -> None:
    with closing(Sender(shop.settings, f"{shop.name}.dead.replay")) as first:
        shop.bury(shop.order(1, "1"))
        assert shop.replay()["replayed"] == 1
        with pytest.raises(ReplayStopped, match="another replay has begun"):
            first.send([Record(f"{shop.name}.raw", None, b"twice", [], "0@0")])
    assert b"twice" not in shop.values()


def test_a_record_that_the_topic_refuses_names_its_letter_and_takes_its_batch_with_it(shop: Shop) -> None:
    shop.bury(shop.order(1, "1"))
    large = shop.bury(b"large")
    (shop.folder / "blow_up.py").write_text(
        "import os\ndef up(outgoing):\n    return os.urandom(100_000 if outgoing.value == b'large' else 10)\n"
    )
    told = _patched(shop, "blow_up:up", code=1)
    assert f"letter {shop.name}.dead/{large.partition}@{large.offset} was not taken" in told
    assert shop.values() == {shop.order(1, "1"): 1, b"large": 1}
    assert not shop.read("replayed")


def _patched(shop: Shop, patch: str, code: int = 0) -> str:
    sys.path.insert(0, str(shop.folder))
    try:
        return shop.call("replay", "--patch", patch, code=code)
    finally:
        sys.path.remove(str(shop.folder))


def test_mended_records_pass_ingest_and_hopeless_ones_stop_going_round(shop: Shop) -> None:
    (shop.folder / f"{PATCH.partition(':')[0]}.py").write_text(MENDS)
    (shop.folder / "hopeless.py").write_text(HOPELESS)
    worker = shop.start("-m", "penstock", "run", "ingest", str(shop.folder / "plan.json"))
    try:
        shop.put("raw", b"k", shop.order(1, "12.5"), [("trace", b"t")])
        until("a dead letter", lambda: len(shop.read("dead")) == 1, pause=0.2)
        assert "1 letters replayed" in _patched(shop, PATCH)
        (event,) = until("an event", lambda: shop.read("events"), pause=0.2)
        assert b"o1" in (event.value() or b"")

        hopeless = shop.order(2, "12").replace(b"o2", b"hopeless")
        shop.put("raw", b"h", hopeless)
        until("its letter", lambda: len(shop.read("dead")) == 2, pause=0.2)
        assert "letter" in (failed := _patched(shop, "hopeless:amount", code=1))
        assert "AssertionError: nothing helps" in failed
        for attempt in (2, 3):
            assert shop.replay()["replayed"] == 1
            until(f"attempt {attempt}", lambda: len(shop.read("dead")) == attempt + 1, pause=0.2)  # noqa: B023
        report = shop.replay()
        assert (report["replayed"], report["too many attempts"], report["replayed before"]) == (0, 1, 3)
        assert shop.values()[hopeless] == 3
        attempts = [json.loads(line)["attempt"] for line in shop.call("list", "--json").splitlines()]
        assert attempts == [1, 1, 2, 3]

        timeless = json.dumps({"at": None, "id": "o3", "amount": 1}).encode()
        shop.put("raw", b"t", timeless)
        until("the letter of an event without a time", lambda: len(shop.read("dead")) == 5, pause=0.2)
        endless = b"\0" + RECURSIVE.to_bytes(4, "big") + b"\2"
        shop.put("raw", b"e", endless)
        until("the letter of an event that may hold itself", lambda: len(shop.read("dead")) == 6, pause=0.2)
        reasons = {m.value(): dict(m.headers())["penstock.reason"] for m in shop.read("dead")}
        assert (reasons[timeless], reasons[endless]) == (b"no event time", b"unsupported schema")
    finally:
        worker.terminate()
        assert worker.wait(30) == 0, (shop.folder / "process.log").read_text()
    assert len(shop.read("events")) == 1
