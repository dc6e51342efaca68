"""The Faust merge on a real broker: killed at any moment or frozen past its session, with aborted transactions between
the good ones, its windows hold what one pass over the committed log gives.
"""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import orjson
import pyarrow as pa
import pytest
from confluent_kafka import Consumer, Message, Producer, TopicPartition

from penstock.codec.avro import AvroDecoder, AvroEncoder
from penstock.local.resolve import BrokerHandle
from penstock.models.manifest import PROFILE_FILE, Manifest
from penstock.models.registry import ModelRegistry
from penstock.plan import (
    FORMAT,
    ColumnPlan,
    EventPlan,
    InputPlan,
    ModelPlan,
    MonitorPlan,
    Plan,
    SchemaPlan,
    ServicePlan,
    StagePlan,
    TopicPlan,
)
from penstock.profiles.reference import ReferenceProfile
from penstock.profiles.rows import ProfileRow, from_arrow, to_arrow
from penstock.settings import Settings
from tests.onnx_models import linear

ROOT = Path(__file__).parents[2]
HOUR = 3_600_000
DAY = 24 * HOUR
FEATURES = [f"column{i}" for i in range(12)]
DRIFTED = "column7"
PARTITIONS = 4
ROWS = 50
RUN = """
import sys
from pathlib import Path
from penstock.plan import Plan
from penstock.settings import Settings
from penstock.worker import run
sys.exit(run(Plan.load(Path(sys.argv[1])), "monitor.merge", Settings()))
"""


def schema(name: str, number: int, topic: str) -> SchemaPlan:
    avro = orjson.loads((ROOT / "schemas" / f"{name}.avsc").read_bytes())
    return SchemaPlan(subject=f"{topic}-value", id=number, avro=avro)


def make_plan(prefix: str) -> Plan:
    profiles, alerts, features = f"{prefix}.profiles", f"{prefix}.alerts", f"{prefix}.features"
    row = SchemaPlan(subject=f"{features}-value", id=9, avro={})
    return Plan(
        format=FORMAT,
        pipeline=prefix,
        source="test:pipeline",
        partitions=PARTITIONS,
        lateness_ms=HOUR,
        event=EventPlan(
            avro={}, id=1, subject="event", event_id=None, timestamp="t", key="k", max_bytes=1000, future_ms=0
        ),
        label=None,
        when=None,
        topics=(
            TopicPlan(name=profiles, value=schema("profile", 7, profiles), partitions=PARTITIONS),
            TopicPlan(name=alerts, value=schema("alert", 8, alerts), partitions=PARTITIONS),
            TopicPlan(name=f"{prefix}.predictions", partitions=PARTITIONS),
            TopicPlan(name=f"{prefix}.outcomes", partitions=PARTITIONS),
            TopicPlan(name=features, partitions=PARTITIONS),
        ),
        stages=(
            StagePlan(
                name="monitor",
                inputs=(InputPlan(topic=features, format="avro", value=row, event_time="t"),),
                outputs=(profiles,),
            ),
            StagePlan(name="monitor.merge", inputs=(), outputs=(alerts,)),
        ),
        views=(),
        on_demand=(),
        service=ServicePlan(
            name="s", columns=tuple(ColumnPlan(name=name, type=["null", "double"]) for name in FEATURES), hash="h"
        ),
        model=ModelPlan(name="m", task="binary", threshold=0.5, fallback=None),
        monitors=MonitorPlan(
            pane_ms=HOUR, window_ms=DAY, idle_ms=1500, psi=0.2, js=0.1, null_rate=0.05, minimum_rows=100, baseline=None
        ),
        schemas={7: schema("profile", 7, profiles).avro, 8: schema("alert", 8, alerts).avro},
    )


def register_reference(plan: Plan, url: Path) -> ReferenceProfile:
    """A model version whose reference has its values spread evenly over sixteen bins."""
    rng = np.random.default_rng(0)
    profile = ReferenceProfile.build(pa.table({name: rng.normal(size=4000) for name in FEATURES}))
    files = {"model.onnx": linear().SerializeToString(), PROFILE_FILE: profile.save()}
    ModelRegistry(str(url)).register(Manifest.of(plan, "1.0.0", files), files)
    return profile


def partials(rng: np.random.Generator, hour: int, reference: str) -> list[ProfileRow]:
    """What a commit of a monitor may hold: two panes of every feature, one of which has drifted."""
    rows = []
    for feature in FEATURES:
        for pane in (hour, hour + 1):
            bins = rng.integers(20, 30, 16) * (np.arange(16) if feature == DRIFTED else 1)
            n = int(bins.sum())
            rows.append(
                ProfileRow(
                    feature, "numeric", pane * HOUR, HOUR, model="m", reference=reference,
                    rows=n + 3, nulls=3, bins=bins, n=n, mean=float(rng.normal()), m2=float(n), min=-1.0, max=1.0,
                )
            )  # fmt: skip
    return rows


@contextmanager
def merge_worker(plan: Path, broker: BrokerHandle, state: Path, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    env = {
        **os.environ,
        "PENSTOCK_BOOTSTRAP_SERVERS": broker.bootstrap,
        "PENSTOCK_STATE_DIR": str(state),
        "PENSTOCK_MODELS_URL": str(state / "models"),
    }
    with log.open("ab") as err:
        process = subprocess.Popen([sys.executable, "-c", RUN, str(plan)], env=env, stderr=err, cwd=state)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def windows_of(changelog: list[Message]) -> dict[str, dict]:
    """The table as its changelog has it: the last value of every key."""
    last = {message.key(): message.value() for message in changelog}
    return {key.decode(): orjson.loads(value) for key, value in last.items() if value is not None}


def recount(messages: list[Message], plan: Plan) -> dict[str, Counter]:
    """One pass over the committed log."""
    value = plan.topic("profiles").value
    assert value is not None
    decoded = AvroDecoder(value.avro, plan.schemas.__getitem__).decode([message.value() for message in messages])
    assert not decoded.bad
    counts: dict[str, Counter] = {}
    for row in from_arrow(decoded.rows):
        of = counts.setdefault(f"{row.key}|{row.reference}|{row.pane // DAY * DAY}", Counter())
        of.update(rows=row.rows, nulls=row.nulls, n=row.n)
        of.update(dict(enumerate(row.bins.tolist())))
    return counts


def counts_of(windows: dict[str, dict]) -> dict[str, Counter]:
    return {
        key: Counter({"rows": w["rows"], "nulls": w["nulls"], "n": w["n"], **dict(enumerate(w["bins"]))})
        for key, w in windows.items()
    }


@pytest.mark.kafka
@pytest.mark.timeout(180)
def test_a_killed_merge_counts_every_committed_partial_once(
    broker: BrokerHandle, kafka_topic_prefix: str, topic_factory, read_committed, tmp_path: Path
) -> None:
    plan = make_plan(kafka_topic_prefix)
    topic = topic_factory("profiles", PARTITIONS)
    topic_factory("alerts", PARTITIONS)
    features = topic_factory("features", PARTITIONS)
    path, log = tmp_path / "plan.json", tmp_path / "merge.log"
    plan.save(path)
    reference = register_reference(plan, tmp_path / "models").id
    value = plan.topic("profiles").value
    assert value is not None
    encoder = AvroEncoder(value.avro, value.id)
    producer = Producer(
        {
            "bootstrap.servers": broker.bootstrap,
            "transactional.id": f"{kafka_topic_prefix}.monitor",
            "partitioner": "murmur2_random",
            "linger.ms": 5,
        }
    )
    producer.init_transactions(30)
    # three of the source's partitions are empty, and the fourth is not counted to its end before all partials are there
    producer.begin_transaction()
    for _ in range(ROWS):
        producer.produce(features, b"row", partition=0)
    producer.commit_transaction(10)
    rng, dice = np.random.default_rng(1), random.Random(1)

    def transact(seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            rows = partials(rng, dice.randrange(24 * 5), reference)
            producer.begin_transaction()
            for row, bytes_ in zip(rows, encoder.encode(to_arrow(rows)).to_pylist(), strict=True):
                producer.produce(topic, bytes_, row.key)
            producer.flush(10)
            if dice.random() < 0.3:
                producer.abort_transaction(10)
            else:
                producer.commit_transaction(10)
            time.sleep(0.03)

    transact(1)
    for life in range(1, 4):
        with merge_worker(path, broker, tmp_path, log) as process:
            deadline = time.monotonic() + 40
            while log.read_text().count("windows read back") < life:
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()[-4000:]
                transact(0.2)
            transact(1 + 3 * dice.random())
            if life == 2:
                process.send_signal(signal.SIGSTOP)
                transact(1)
                time.sleep(Settings().session_timeout_ms / 1000)
                process.send_signal(signal.SIGCONT)
                transact(2)
            assert process.poll() is None, log.read_text()
            process.kill()
    changelog = f"{kafka_topic_prefix}.monitor.merge-windows-changelog"
    expected = recount(read_committed(topic), plan)
    assert not alerts_of(read_committed(plan.topic("alerts").name), plan)
    count_all(broker, plan, TopicPartition(features, 0, ROWS, str(8 * DAY)))
    with merge_worker(path, broker, tmp_path, log) as process:
        deadline = time.monotonic() + 60
        while counts_of(windows := windows_of(read_committed(changelog))) != expected or any(
            window["judged"] != window["rows"] for window in windows.values()
        ):
            assert time.monotonic() < deadline, difference(windows, expected) + log.read_text()[-4000:]
            assert process.poll() is None, log.read_text()
            time.sleep(0.5)
        # transactions leave gaps of markers and aborted rows in the offsets; the group must still get past them
        while behind(broker, plan, read_committed(topic)):
            assert time.monotonic() < deadline, log.read_text()[-4000:]
            time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    told = alerts_of(read_committed(plan.topic("alerts").name), plan)
    assert {(row["feature"], row["kind"]) for row in told.values()} == {(DRIFTED, "drift")}
    # at least once: a kill may send an alert again, under the same id; the first day has no day before it
    assert {row["window_start"].day for row in told.values()} >= {2, 3, 4, 5}
    assert {row["rows"] for row in told.values()} == {
        counts["rows"] for key, counts in expected.items() if DRIFTED in key and not key.endswith("|0")
    }
    assert len(expected) == len(FEATURES) * 5 or len(expected) == len(FEATURES) * 6


def count_all(broker: BrokerHandle, plan: Plan, place: TopicPartition) -> None:
    """Commit what the monitor would."""
    consumer = Consumer({"bootstrap.servers": broker.bootstrap, "group.id": plan.group("monitor")})
    try:
        consumer.commit(offsets=[place], asynchronous=False)
    finally:
        consumer.close()


def behind(broker: BrokerHandle, plan: Plan, messages: list[Message]) -> list[int]:
    """Partitions whose committed offset is not past the last committed record."""
    last = {message.partition(): message.offset() for message in messages}
    consumer = Consumer({"bootstrap.servers": broker.bootstrap, "group.id": plan.group("monitor.merge")})
    wanted = [TopicPartition(plan.topic("profiles").name, partition) for partition in last]
    try:
        return [tp.partition for tp in consumer.committed(wanted, 10) if tp.offset <= last[tp.partition]]
    finally:
        consumer.close()


def alerts_of(messages: list[Message], plan: Plan) -> dict[str, dict]:
    value = plan.topic("alerts").value
    assert value is not None
    decoded = AvroDecoder(value.avro, plan.schemas.__getitem__).decode([message.value() for message in messages])
    return {row["alert_id"]: row for row in decoded.rows.to_pylist()}


def difference(windows: dict[str, dict], expected: dict[str, Counter]) -> str:
    got = counts_of(windows)
    wrong = [key for key in expected if got.get(key) != expected[key]]
    rows = {key: (got.get(key, {}).get("rows"), expected[key]["rows"]) for key in wrong[:5]}
    return f"{len(wrong)} of {len(expected)} windows are wrong, such as {rows} (got, expected)\n"
