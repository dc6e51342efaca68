"""What the features stages and the Feast writer wrote, read back by stock Feast: online, point-in-time, after crashes.

The pipeline is made on the spot in a folder of its own; the log is in memory, the stores are real files.
"""

import importlib
import json
import os
import random
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from penstock_features.stage import build
from penstock_features.writer import LONGEST, FeastWriter, Pace, make_writer
from prometheus_client import REGISTRY

from penstock import memory
from penstock.codec.avro import AvroEncoder
from penstock.compiling import compile_pipeline
from penstock.envelope import EVENT_ID, EVENT_TIME
from penstock.health import Health
from penstock.local.resolve import BrokerHandle
from penstock.logs import JsonLines
from penstock.memory import MIB, Memory, OutgrownError
from penstock.plan import Plan
from penstock.recovery import IncompleteLogError
from penstock.settings import Settings
from penstock.telemetry import FEAST_UNREADABLE
from penstock.topics import await_topics
from penstock.transport.memory import MemoryBroker, MemoryTransport
from penstock.transport.protocol import TransactionAborted
from penstock.worker import make_loop

FEATURES = """
from datetime import timedelta
from pathlib import Path

from feast import Entity, FeatureService, Field, FileSource, KafkaSource, StreamFeatureView
from feast.aggregation import Aggregation
from feast.data_format import AvroFormat, ParquetFormat
from feast.types import Float64, Int64, String
from feast.value_type import ValueType

HOUR = timedelta(hours=1)
customer = Entity(name="customer", join_keys=["customer"], value_type=ValueType.STRING)


def visits(view):
    return KafkaSource(
        name=f"visits_{view}", kafka_bootstrap_servers="localhost:9092", topic="NAME.events", timestamp_field="at",
        message_format=AvroFormat(Path(__file__).with_name("event.avsc").read_text()),
        batch_source=FileSource(
            name=f"{view}_history", path=f"data/{view}", timestamp_field="_event_time",
            created_timestamp_column="_created_time", file_format=ParquetFormat(),
        ),
    )


spend = StreamFeatureView(
    name="spend", entities=[customer], source=visits("spend"), mode="python", timestamp_field="at",
    online=True, offline=True,
    schema=[
        Field(name="customer", dtype=String), Field(name="sum_1h", dtype=Float64), Field(name="visits_1h", dtype=Int64),
    ],
    aggregations=[
        Aggregation(column="amount", function="sum", time_window=HOUR, slide_interval=HOUR / 60, name="sum_1h"),
        Aggregation(column="amount", function="count", time_window=HOUR, slide_interval=HOUR / 60, name="visits_1h"),
    ],
)
recent = StreamFeatureView(
    name="recent", entities=[customer], source=visits("recent"), mode="python", timestamp_field="at",
    online=True, offline=True,
    ttl=timedelta(days=1), schema=[Field(name="customer", dtype=String), Field(name="last_1h", dtype=Float64)],
    aggregations=[
        Aggregation(column="amount", function="last", time_window=HOUR, slide_interval=HOUR / 60, name="last_1h"),
    ],
)
spending = FeatureService(name="spending", features=[spend, recent])
"""
PIPELINE = """
from datetime import timedelta

from penstock.pipeline import Pipeline

pipeline = Pipeline(
    name="NAME", event_id="visit", timestamp="at", feature_service="features:spending", partitions=2,
    lateness=timedelta(minutes=10),
)
"""
EVENT = {
    "type": "record",
    "name": "Visit",
    "fields": [
        {"name": "visit", "type": "string"},
        {"name": "customer", "type": ["null", "string"], "default": None},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}},
        {"name": "amount", "type": "double"},
    ],
}
STORE = """
project: NAME
provider: local
registry: {path: registry.db, cache_mode: thread}
online_store: {type: TYPE, path: online.db}
offline_store: {type: file}
entity_key_serialization_version: 3
"""
PENSTOCK = "penstock.feast.online_store.PenstockOnlineStore"
START = datetime(2024, 5, 1, tzinfo=UTC)
Visit = tuple[str | None, datetime, float]


def ms(time: datetime) -> int:
    return int(time.timestamp() * 1000)


class Shop:
    """A pipeline in a folder, its log in memory and its workers."""

    def __init__(self, folder: Path, store: str) -> None:
        self.name = f"shop{random.randrange(16**8):08x}"
        self.folder = folder / self.name
        self.folder.mkdir()
        for file, text in {
            "features.py": FEATURES,
            "pipeline.py": PIPELINE,
            "feature_store.yaml": STORE.replace("TYPE", store),
            "event.avsc": json.dumps(EVENT),
            "__init__.py": "",
        }.items():
            (self.folder / file).write_text(text.replace("NAME", self.name))
        self.plan: Plan = compile_pipeline(f"{self.name}.pipeline:pipeline", lock="extend")
        self.settings = Settings(feature_store_dir=self.folder)
        self.broker = MemoryBroker()
        for topic in self.plan.topics:
            self.broker.create(topic.name, topic.partitions)
        (stage,) = [s for s in self.plan.stages if s.kind == "features" and s.name != "features.feast"]
        self.stage = stage.name
        transport = MemoryTransport(self.broker, self.plan.group(stage.name))
        self.loop = make_loop(
            self.plan, stage.name, self.settings, build(self.plan, stage.name), transport, Health(), 20
        )
        transport.subscribe([f"{self.name}.events"], self.loop)
        self.count = 0

    def visit(self, visits: list[Visit]) -> None:
        """Append events and let the features stage see them."""
        value = self.plan.topic("events").value
        assert value is not None
        times = pa.array([ms(at) for _, at, _ in visits], pa.timestamp("ms"))
        ids = [f"v{number}" for number in range(self.count, self.count + len(visits))]
        rows = pa.RecordBatch.from_pydict(
            {
                EVENT_ID: ids,
                "_origin_partition": pa.array([0] * len(visits), pa.int32()),
                "_origin_offset": pa.array(range(self.count, self.count + len(visits)), pa.int64()),
                EVENT_TIME: times,
                "_ingest_time": times,
                "visit": ids,
                "customer": pa.array([customer for customer, _, _ in visits], pa.string()),
                "at": times,
                "amount": pa.array([amount for *_, amount in visits], pa.float64()),
            }
        )
        self.count += len(visits)
        values = AvroEncoder(value.avro, value.id).encode(rows).to_pylist()
        for (customer, _, _), encoded in zip(visits, values, strict=True):
            self.broker.append(f"{self.name}.events", customer, encoded)
        for _ in range(5):
            self.loop.step()
        self.loop._commit()

    def writer(self, pace: Pace | None = None) -> FeastWriter:
        transport = MemoryTransport(self.broker, self.plan.group("features.feast"))
        return make_writer(self.plan, "features.feast", self.settings, transport, Health(), pace or Pace(poll_rows=7))

    def write(self, pace: Pace | None = None) -> None:
        """A writer's whole life: start, read everything, stop."""
        writer = self.writer(pace)
        step = writer.step

        def until_drained() -> None:
            step()
            if all(
                lane.position.offset >= len(self.broker.logs[p.topic][p.number]) for p, lane in writer._lanes.items()
            ):
                writer.stop()

        writer.step = until_drained  # type: ignore[method-assign]
        writer.run()

    def store(self) -> Any:
        from feast import FeatureStore

        return FeatureStore(repo_path=str(self.folder))

    def online(self, customers: list[str], features: list[str]) -> dict[str, list[Any]]:
        found = self.store().get_online_features(
            features=features, entity_rows=[{"customer": customer} for customer in customers]
        )
        return {name: values for name, values in found.to_dict().items() if name != "customer"}

    def history(self, view: str) -> pd.DataFrame:
        return pq.read_table(self.folder / "data" / view).to_pandas()


@pytest.fixture
def shops(tmp_path: Path) -> Iterator[Any]:
    made: list[str] = []
    sys.path.insert(0, str(tmp_path))

    def make(store: str = PENSTOCK) -> Shop:
        shop = Shop(tmp_path, store)
        made.append(shop.name)
        return shop

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # feast's own libraries are full of deprecated calls
        yield make
    sys.path.remove(str(tmp_path))
    for name in [module for module in sys.modules if module.split(".")[0] in made]:
        del sys.modules[name]
    importlib.invalidate_caches()


def some_visits(n: int, seed: int = 1) -> list[Visit]:
    chance = np.random.default_rng(seed)
    seconds = np.sort(chance.integers(0, 4 * 3600, n))
    return [
        (f"c{chance.integers(5)}", START + timedelta(seconds=int(s)), float(chance.integers(1, 100))) for s in seconds
    ]


def expected(visits: list[Visit], row: int) -> tuple[float, int]:
    """Sum and count of the customer's last 60 minute tiles, the row's own included."""
    customer, at, _ = visits[row]
    tile = ms(at) // 60_000
    inside = [a for c, t, a in visits[: row + 1] if c == customer and tile - 60 < ms(t) // 60_000 <= tile]
    return sum(inside), len(inside)


@pytest.mark.parametrize("store", [PENSTOCK, "sqlite"])
def test_stock_feast_reads_the_newest_row_of_every_entity(shops: Any, store: str) -> None:
    shop, visits = shops(store), some_visits(80)
    shop.visit(visits)
    shop.write()
    newest = {customer: row for row, (customer, _, _) in enumerate(visits)}
    names = sorted(str(customer) for customer in newest)
    found = shop.online([*names, "nobody"], ["spend:sum_1h", "spend:visits_1h"])
    assert found["sum_1h"] == [expected(visits, newest[name])[0] for name in names] + [None]
    assert found["visits_1h"] == [expected(visits, newest[name])[1] for name in names] + [None]


def test_stock_feast_serves_the_whole_feature_service(shops: Any) -> None:
    shop = shops()
    shop.visit([("c1", START, 5.0), ("c1", START + timedelta(minutes=1), 2.0)])
    shop.write()
    store = shop.store()
    found = store.get_online_features(store.get_feature_service("spending"), [{"customer": "c1"}]).to_dict()
    assert found == {"customer": ["c1"], "sum_1h": [7.0], "visits_1h": [2], "last_1h": [None]}, "2024 is past the TTL"


def test_stock_feast_joins_the_history_point_in_time(shops: Any) -> None:
    shop, visits = shops(), some_visits(60)
    shop.visit(visits[:25])
    shop.write()
    shop.visit(visits[25:])
    shop.write()
    asked = pd.DataFrame(
        {
            "customer": [customer for customer, _, _ in visits],
            "event_timestamp": [at + timedelta(milliseconds=1) for _, at, _ in visits],
        }
    )
    found = shop.store().get_historical_features(entity_df=asked, features=["spend:sum_1h", "spend:visits_1h"]).to_df()
    found = found.sort_values(["event_timestamp", "customer"]).drop_duplicates(
        ["event_timestamp", "customer"], keep="last"
    )
    last_at = {(customer, at): row for row, (customer, at, _) in enumerate(visits)}
    assert len(found) == len(last_at)
    for row in found.itertuples():
        at = row.event_timestamp.to_pydatetime() - timedelta(milliseconds=1)
        assert (row.sum_1h, row.visits_1h) == expected(visits, last_at[row.customer, at])


def test_a_late_event_is_history_but_does_not_replace_what_is_newer(shops: Any) -> None:
    shop = shops()
    shop.visit([("c1", START + timedelta(minutes=30), 5.0)])
    shop.write()
    shop.visit([("c1", START + timedelta(minutes=25), 2.0)])
    shop.write()
    assert shop.online(["c1"], ["spend:sum_1h", "recent:last_1h"])["sum_1h"] == [5.0]
    assert sorted(shop.history("spend")["sum_1h"]) == [2.0, 5.0]


def test_an_entity_is_served_no_longer_than_the_ttl_of_its_view(shops: Any) -> None:
    shop, now = shops(), datetime.now(UTC)
    shop.visit([("old", now - timedelta(days=2), 1.0), ("new", now - timedelta(hours=2), 2.0)])
    shop.write()
    assert shop.online(["old", "new"], ["recent:last_1h"])["last_1h"] == [None, 2.0]
    assert shop.online(["old", "new"], ["spend:sum_1h"])["sum_1h"] == [1.0, 2.0]


def test_an_event_without_a_key_has_no_row(shops: Any) -> None:
    shop = shops()
    shop.visit([(None, START, 1.0), ("c1", START, 2.0)])
    shop.write()
    assert shop.history("spend")["customer"].tolist() == ["c1"]


def test_a_row_that_cannot_be_read_is_left_out_counted_and_logged_without_its_bytes(
    shops: Any, caplog: pytest.LogCaptureFixture
) -> None:
    shop = shops()
    shop.visit([("c1", START, 1.0)])
    topic = f"{shop.name}.view.spend"
    shop.broker.append(topic, "c1", b"Grace Hopper")
    (number,) = (number for number, rows in enumerate(shop.broker.logs[topic]) if rows)
    offset = len(shop.broker.logs[topic][number]) - 1
    shop.visit([("c1", START + timedelta(minutes=1), 2.0)])

    def counted() -> float:
        samples = [sample for metric in FEAST_UNREADABLE.collect() for sample in metric.samples]
        return sum(s.value for s in samples if s.name.endswith("_total") and s.labels["view"] == "spend")

    before = counted()
    shop.write()
    assert shop.history("spend")["sum_1h"].tolist() == [1.0, 3.0]
    assert counted() == before + 1
    (line,) = (record for record in caplog.records if "is left out" in record.getMessage())
    said = JsonLines("features.feast", 0).format(line)
    told = json.loads(said)
    assert (told["topic"], told["partition"], told["offset"]) == (topic, number, offset)
    assert "Hopper" not in said


class Killed(BaseException):
    """What stops a process no one may catch."""


def test_history_has_each_event_once_however_often_the_writer_is_killed(
    shops: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop, visits = shops(), some_visits(120, seed=3)
    chance, replace, killed = random.Random(5), os.replace, 0

    def dying(source: Any, target: Any) -> None:
        die = chance.random()
        if die < 0.3:
            raise Killed
        replace(source, target)
        if die > 0.7:
            raise Killed

    monkeypatch.setattr("penstock.feast.offline.os.replace", dying)
    for start in range(0, len(visits), 15):
        shop.visit(visits[start : start + 15])
        try:
            shop.write(Pace(poll_rows=4, file_rows=3))
        except Killed:
            killed += 1
    monkeypatch.undo()
    shop.write()
    assert killed > 2
    for view in ("spend", "recent"):
        assert sorted(shop.history(view)["_event_id"]) == sorted(f"v{number}" for number in range(len(visits)))
        assert not list((shop.folder / "data" / view).glob(".*")), "what a killed writer left was not cleaned"


def test_a_topic_made_anew_is_told_however_long_it_has_grown(shops: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    shop = shops()
    shop.visit(some_visits(40))
    shop.write()
    shop.visit(some_visits(40, seed=2))
    again = shop.writer()
    monkeypatch.setattr(again._transport, "identity", lambda topic: "another cluster's")
    with pytest.raises(IncompleteLogError, match="of another topic of that name, made anew since"):
        again.run()
    shop.write()
    assert len(shop.history("spend")) == 80


def test_a_locked_store_delays_its_rows_and_says_why(shops: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import sqlite3

    shop = shops()
    shop.write()
    yaml = shop.folder / "feature_store.yaml"
    yaml.write_text(yaml.read_text().replace("path: online.db", "path: online.db, busy_timeout_s: 0.01"))
    shop.visit([("c1", START, 5.0)])
    writer = shop.writer()
    writer._transport.subscribe(list(writer._stores), writer)
    other = sqlite3.connect(shop.folder / "online.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    writer.step()
    assert "locked" in str(writer._health.waiting_for)
    other.execute("ROLLBACK")
    other.close()
    writer._attempts._clock = lambda: float("inf")
    writer.step()
    assert "online store of spend" not in writer._health.waiting_for
    assert shop.online(["c1"], ["spend:sum_1h"])["sum_1h"] == [5.0]
    writer._transport.close()


WRITER = """
import functools, sys
from pathlib import Path
import penstock_features.writer as writer
from penstock.plan import Plan
from penstock.settings import Settings
from penstock.worker import run

# files small enough for a kill to fall between two of them
writer.Pace = functools.partial(writer.Pace, file_rows=400, poll_rows=300)
sys.exit(run(Plan.load(Path(sys.argv[1])), "features.feast", Settings()))
"""


def test_what_a_store_refuses_is_lag_and_what_waits_for_its_file_is_none(
    shops: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = shops()
    shop.visit([(f"c{n}", START, 5.0) for n in range(20)])
    writer, topic = shop.writer(Pace(file_rows=1)), f"{shop.name}.view.spend"
    transport, store = writer._transport, writer._stores[topic].offline
    refused = [True]

    def lag() -> float:
        for _ in range(8):  # seven rows a poll
            writer._second = 0.0
            writer.step()
        places = {place: lane.position.offset for place, lane in writer._lanes.items() if place.topic == topic}
        assert places == {place: transport.high(place) for place in places}
        labels = {"stage": "features.feast", "topic": topic}
        numbers = range(shop.plan.partitions)
        name = "penstock_consumer_lag_records"
        return sum(REGISTRY.get_sample_value(name, labels | {"partition": str(n)}) or 0 for n in numbers)

    def maybe(call: Any, error: Exception) -> Any:
        def called(*given: Any) -> Any:
            if refused[0]:
                raise error
            return call(*given)

        return called

    monkeypatch.setattr(store, "append", maybe(store.append, OSError("no space")))
    transport.subscribe(list(writer._stores), writer)
    assert lag() >= 20  # and the marker of their transaction
    refused[0], writer._attempts._clock = False, lambda: float("inf")
    assert lag() == 0

    shop.visit([(f"c{n}", START, 5.0) for n in range(20)])
    writer._pace, refused[0] = Pace(poll_rows=7), True
    monkeypatch.setattr(transport, "commit", maybe(transport.commit, TransactionAborted("not now")))
    assert lag() >= 20  # and the marker of their transaction
    refused[0] = False
    assert lag() == 0
    assert sum(lane.waiting for place, lane in writer._lanes.items() if place.topic == topic) == 20
    transport.close()


def test_the_watchdog_and_readiness_see_what_the_writer_is_in(shops: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MemoryTransport, "trouble", lambda self: "nothing was heard")
    shop = shops()
    shop.visit([("c1", START, 5.0)])
    writer = shop.writer(Pace(file_s=0.0))
    health, transport, seen = writer._health, writer._transport, []
    watched = [(transport, "poll"), (transport, "commit"), (writer._stores[f"{shop.name}.view.spend"], "write_online")]
    for owner, name in watched:

        def noted(*given: Any, name: str = name, call: Any = getattr(owner, name)) -> Any:
            seen.append((name, health.doing.phase))
            return call(*given)

        object.__setattr__(owner, name, noted)
    transport.subscribe(list(writer._stores), writer)
    for _ in range(3):
        writer.step()
    assert set(seen) == {("poll", "poll"), ("commit", "commit"), ("write_online", "write")}
    assert health.doing is None
    assert health.waiting_for["broker"] == "nothing was heard"
    assert set(LONGEST) == {phase for _, phase in seen}


def test_a_writer_reads_nothing_above_its_memory_limit_and_ends_where_that_does_not_help(
    shops: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, now = [100 * MIB], [1000.0]
    monkeypatch.setattr(memory, "resident_bytes", lambda pid: held[0])
    shop = shops()
    writer = shop.writer()
    writer.memory = Memory(200 * MIB)
    writer._clock = lambda: now[0]
    writer._transport.subscribe(list(writer._stores), writer)

    def steps(seconds: int) -> int:
        for _ in range(4 * seconds):
            now[0] += 0.25
            writer.step()
        return sum(lane.position.offset for lane in writer._lanes.values())

    steps(2)
    held[0] = 300 * MIB
    before = steps(2)
    assert writer._health.waiting_for["memory"].startswith("300 MiB are resident, and the limit is 200 MiB")
    shop.visit([(f"c{n}", START, 5.0) for n in range(20)])
    assert steps(5) == before
    held[0] = 150 * MIB
    assert steps(5) > before
    assert "memory" not in writer._health.waiting_for
    assert any(lane.rows for lane in writer._lanes.values()), "no file is due yet"
    held[0] = 300 * MIB
    steps(2)
    assert not any(lane.rows for lane in writer._lanes.values()), "what is held is written"
    with pytest.raises(OutgrownError, match="for 30 s"):
        steps(40)


def test_a_writer_that_outgrows_its_memory_writes_what_it_holds_before_it_ends(
    shops: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = shops()
    shop.visit([(f"c{n}", START, 5.0) for n in range(20)])
    writer = shop.writer()
    step = writer.step

    def outgrown() -> None:
        for _ in range(12):
            step()
        raise OutgrownError("too much")

    monkeypatch.setattr(writer, "step", outgrown)
    with pytest.raises(OutgrownError):
        writer.run()
    assert len(shop.history("spend")) == 20


def start_writer(shop: Shop, bootstrap: str) -> "subprocess.Popen[str]":
    plan = shop.folder / "plan.json"
    shop.plan.save(plan)
    environment = os.environ | {
        "KAFKA_BOOTSTRAP_SERVERS": bootstrap,
        "PENSTOCK_FEATURE_STORE_DIR": str(shop.folder),
        "PENSTOCK_STATE_DIR": str(shop.folder / "state"),
        "PENSTOCK_SESSION_TIMEOUT_MS": "6000",
        "PYTHONPATH": str(shop.folder.parent),
    }
    command = [sys.executable, "-W", "ignore", "-c", WRITER, str(plan)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def wait_until(what: str, condition: Callable[[], bool], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come true in {seconds} s"
        time.sleep(0.1)


def lag(bootstrap: str, group: str, topics: list[NewTopic]) -> int:
    """Rows between what the group committed and the ends of the topics."""
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": group})
    try:
        every = [TopicPartition(topic.topic, number) for topic in topics for number in range(topic.num_partitions)]
        done = {(p.topic, p.partition): max(0, p.offset) for p in consumer.committed(every, timeout=30)}
        ends = {(p.topic, p.partition): consumer.get_watermark_offsets(p, timeout=30)[1] for p in every}
        return sum(ends.values()) - sum(done.values())
    finally:
        consumer.close()


@pytest.mark.kafka
def test_kill_9_of_the_real_writer_leaves_each_row_once(shops: Any, broker: BrokerHandle) -> None:
    shop, visits = shops(), some_visits(3000, seed=9)
    admin = AdminClient({"bootstrap.servers": broker.bootstrap})
    views = ["spend", "recent"]
    topics = [NewTopic(f"{shop.name}.view.{view}", 2, 1) for view in views]
    for made in admin.create_topics(topics).values():
        made.result(30)
    await_topics(admin, [topic.topic for topic in topics])
    shop.visit(visits)  # through the real stage in memory; its output is what goes to the real topics
    producer = Producer({"bootstrap.servers": broker.bootstrap, "partitioner": "murmur2_random"})

    def produce(first: int, last: int) -> None:
        for view in views:
            for number, log in enumerate(shop.broker.logs[f"{shop.name}.view.{view}"]):
                for row in [row for row in log if row is not None][first:last]:
                    producer.produce(f"{shop.name}.view.{view}", row.value, row.key, number)
        producer.flush()

    def files() -> int:
        return len(list((shop.folder / "data").glob("*/*.parquet")))

    produce(0, 900)
    killed = start_writer(shop, broker.bootstrap)
    try:
        wait_until("the first file", lambda: files() > 0)
        killed.kill()
        killed.communicate()
        produce(900, 3000)
        writer = start_writer(shop, broker.bootstrap)
        newest = max(range(len(visits)), key=lambda row: (visits[row][1], row))
        name, want = str(visits[newest][0]), expected(visits, newest)
        wait_until("no lag", lambda: not lag(broker.bootstrap, shop.plan.group("features.feast"), topics))
        writer.terminate()
        _, said = writer.communicate(timeout=60)
        assert writer.returncode == 0, said
    finally:
        for process in (killed, *([writer] if "writer" in locals() else [])):
            if process.poll() is None:
                process.kill()
                process.communicate()
    for view in views:
        assert sorted(shop.history(view)["_event_id"]) == sorted(f"v{number}" for number in range(len(visits)))
    assert shop.online([name], ["spend:sum_1h", "spend:visits_1h"]) == {"sum_1h": [want[0]], "visits_1h": [want[1]]}
