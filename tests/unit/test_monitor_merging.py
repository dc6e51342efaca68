"""The merge without Faust: framed partials to windows, metrics and alerts, from a real registry's reference profile."""

import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest
from penstock_monitor.merging import Merge
from penstock_monitor.publish import ALERTS
from penstock_monitor.references import ReferenceReader, References, ReferenceWatcher
from penstock_monitor.sources import Sources
from penstock_monitor.windows import Window
from prometheus_client import REGISTRY

from penstock.codec.arrow import arrow_schema
from penstock.codec.avro import AvroDecoder, AvroEncoder
from penstock.codec.shapes import parse
from penstock.health import Health
from penstock.models.manifest import PROFILE_FILE, Manifest
from penstock.models.registry import ModelRegistry
from penstock.plan import Plan, SchemaPlan, StagePlan, TopicPlan
from penstock.profiles.partial import ColumnPartials
from penstock.profiles.reference import ReferenceProfile
from penstock.profiles.rows import SCHEMA, to_arrow
from penstock.records import NO_TIME
from penstock.schemas.registry import TransientLookupError
from penstock.settings import Settings
from penstock.transport.kafka import SILENCE_S
from tests.onnx_models import SCHEMAS, linear
from tests.onnx_models import plan as small_plan

DAY = 86_400_000


def plan() -> Plan:
    base = small_plan("shop", label=False)

    def topic(name: str, number: int, schema: str) -> TopicPlan:
        avro = json.loads((SCHEMAS / f"{schema}.avsc").read_text())
        value = SchemaPlan(subject=f"shop.{name}-value", id=number, avro=avro)
        return TopicPlan(name=f"shop.{name}", value=value, partitions=1)

    topics = {t.name: t for t in (*base.topics, topic("profiles", 20, "profile"), topic("alerts", 21, "alert"))}
    for name in ("features", "predictions", "outcomes"):
        topics.setdefault(f"shop.{name}", TopicPlan(name=f"shop.{name}", partitions=1))
    monitors = base.monitors.model_copy(
        update={"pane_ms": DAY, "window_ms": DAY, "idle_ms": 1000, "psi": 0.2, "js": 0.1, "minimum_rows": 100}
    )
    schemas = {t.value.id: t.value.avro for t in topics.values() if t.value is not None}
    return base.model_copy(update={"topics": tuple(topics.values()), "monitors": monitors, "schemas": schemas})


def baskets(n: int, shift: float, seed: int) -> pa.RecordBatch:
    rng = np.random.default_rng(seed)
    return pa.record_batch(
        {
            "amount": rng.normal(shift, 1, n),
            "count": rng.integers(0, 9, n),
            "online": pa.array(rng.random(n) < 0.5),
        }
    )


def registered(url: Path, used: Plan, version: str, service_hash: str | None = None) -> ReferenceProfile:
    profile = ReferenceProfile.build(baskets(3000, 0.0, 1), model="m", version=version, service_hash=used.service.hash)
    files = {"model.onnx": linear().SerializeToString(), PROFILE_FILE: profile.save()}
    manifest = Manifest.of(used, version, files)
    if service_hash is not None:
        manifest = manifest.model_copy(update={"feature_service_hash": service_hash})
    ModelRegistry(str(url)).register(manifest, files)
    return profile


class Table:
    """What a Faust table is to the merge."""

    def __init__(self) -> None:
        self.data: dict[bytes, bytes] = {}

    async def keep(self, changes: Any) -> None:
        for key, partition, value in changes:
            assert partition == 2
            if value is None:
                self.data.pop(key)
            else:
                self.data[key] = value


class Topic:
    def __init__(self) -> None:
        self.sent: list[tuple[bytes, bytes]] = []

    def send_soon(self, *, key: bytes, value: bytes) -> "asyncio.Future[None]":
        self.sent.append((key, value))
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        future.set_result(None)
        return future


def events(used: Plan, profile: ReferenceProfile, day: int, shift: float, first: int) -> list[Any]:
    partials = ColumnPartials(
        [("amount", "numeric"), ("count", "numeric"), ("online", "boolean")],
        profile.columns,
        DAY,
        reference=profile.id,
        model="m",
    )
    partials.add(baskets(1000, shift, day + 10), np.full(1000, day * DAY + 5))
    value = used.topic("profiles").value
    assert value is not None
    values = AvroEncoder(value.avro, value.id).encode(to_arrow(partials.drain())).to_pylist()
    return [
        SimpleNamespace(value=v, message=SimpleNamespace(topic="shop.profiles", partition=2, offset=first + i))
        for i, v in enumerate(values)
    ]


def gauge(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(name, labels)


def test_partials_become_windows_gauges_and_one_alert(tmp_path: Path) -> None:
    used = plan()
    profile = registered(tmp_path, used, "1.0.0")
    table, topic = Table(), Topic()

    async def live() -> None:
        merge = Merge(used, Settings(models_url=str(tmp_path)), table, topic, Health().wait)
        merge.recovered()
        offset = 0
        for day in range(3):
            some = events(used, profile, day, shift=1.0, first=offset)
            offset += len(some)
            await merge.add(some)
            await merge.add(some)  # delivered again
            await merge.close(NO_TIME, stopped=True)
        again = Merge(used, Settings(models_url=str(tmp_path)), table, topic, Health().wait)
        again.recovered()
        await again.close(NO_TIME, stopped=True)
        assert len(again.windows) == 9

    asyncio.run(live())
    windows = [Window.load(value) for value in table.data.values()]
    assert {window.rows for window in windows} == {1000}
    assert {window.feature for window in windows if window.over} == {"amount"}
    drift = gauge("penstock_drift", model="m", feature="amount", statistic="psi")
    assert drift is not None
    assert drift > 0.5
    assert gauge("penstock_null_rate", model="m", feature="count") == 0.0
    value = used.topic("alerts").value
    assert value is not None
    decoded = AvroDecoder(value.avro, used.schemas.__getitem__).decode([v for _, v in topic.sent])
    rows = decoded.rows.to_pylist()
    assert [(row["feature"], row["kind"], row["rows"]) for row in rows] == [("amount", "drift", 1000)] * 2
    assert len({row["alert_id"] for row in rows}) == 2
    assert topic.sent[0][0] == b"m||amount"


def test_a_rebalance_brings_back_no_older_windows(tmp_path: Path) -> None:
    used = plan()
    profile = registered(tmp_path, used, "1.0.0")
    table = Table()

    async def live() -> None:
        merge = Merge(used, Settings(models_url=str(tmp_path)), table, Topic(), Health().wait)
        merge.recovered()
        await merge.add(events(used, profile, 0, 0.0, first=0))
        older = dict(table.data)
        await merge.add(events(used, profile, 0, 0.0, first=10))
        # what Faust reads back while the newest values are on their way
        table.data = older
        merge.recovered()
        await merge.add(events(used, profile, 0, 0.0, first=20))

    asyncio.run(live())
    assert {Window.load(value).rows for value in table.data.values()} == {3000}


def test_a_value_that_is_no_profile_is_left_out_and_the_others_count(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    used = plan()
    profile = registered(tmp_path, used, "1.0.0")
    table = Table()

    async def live() -> None:
        merge = Merge(used, Settings(models_url=str(tmp_path)), table, Topic(), Health().wait)
        some = events(used, profile, 0, 0.0, first=0)
        some[1].value = b"\x00\x00\x00\x00\x14garbage"
        await merge.add(some)

    asyncio.run(live())
    assert len(table.data) == 2
    assert "shop.profiles/2@1 is no profile" in caplog.text


def test_schemas_that_cannot_be_looked_up_are_waited_for_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = plan()
    some = events(used, registered(tmp_path, used, "1.0.0"), 0, 0.0, first=0)
    health, said = Health(), []

    class Decoder:
        def decode(self, values: list[bytes]) -> Any:
            if not said:
                raise TransientLookupError("the registry is away")
            return merge_decoder.decode(values)

    async def pause(seconds: float) -> None:
        said.append(health.waiting_for["schemas"])

    async def live() -> None:
        merge = Merge(used, Settings(models_url=str(tmp_path)), Table(), Topic(), health.wait)
        nonlocal merge_decoder
        merge_decoder, merge._decoder = merge._decoder, cast("AvroDecoder", Decoder())
        await merge.add(some)
        assert len(merge.windows) == 3

    merge_decoder: Any = None
    monkeypatch.setattr("penstock_monitor.merging.asyncio.sleep", pause)
    asyncio.run(live())
    assert said == ["the registry is away"]
    assert "schemas" not in health.waiting_for


def test_a_changelog_that_takes_nothing_for_too_long_ends_the_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = plan()
    some = events(used, registered(tmp_path, used, "1.0.0"), 0, 0.0, first=0)

    async def keep(changes: Any) -> None:
        await asyncio.Event().wait()

    async def live() -> None:
        table = SimpleNamespace(keep=keep)
        await Merge(used, Settings(models_url=str(tmp_path)), table, Topic(), Health().wait).add(some)

    monkeypatch.setattr("penstock_monitor.merging.LONGEST_SEND_S", 0.05)
    with pytest.raises(TimeoutError):
        asyncio.run(live())


def test_a_broker_that_was_not_heard_for_a_while_is_away() -> None:
    now = 0.0
    watched = plan().model_copy(update={"stages": (StagePlan(name="monitor", inputs=(), outputs=()),)})
    sources = Sources(watched, Settings(bootstrap_servers="127.0.0.1:1"), lambda: now)
    assert sources.trouble() is None
    now = SILENCE_S + 1
    assert sources.trouble() == "nothing was heard of Kafka at 127.0.0.1:1 for 6 s"


def test_the_app_is_not_ready_while_its_broker_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from penstock_monitor.merge import make_app

    monkeypatch.setattr("penstock_monitor.sources.SILENCE_S", 0.0)
    watched = plan().model_copy(update={"stages": (StagePlan(name="monitor", inputs=(), outputs=()),)})
    settings = Settings(bootstrap_servers="127.0.0.1:1", session_timeout_ms=1000, state_dir=tmp_path)
    health = Health()

    async def live() -> None:
        make_app(watched, "monitor.merge", settings, health)
        await asyncio.sleep(0.6)

    asyncio.run(live())
    assert health.waiting_for["broker"].startswith("nothing was heard of Kafka at 127.0.0.1:1 for ")


SERVING = """
import asyncio, os, signal, sys, time
from types import SimpleNamespace
from penstock import watchdog
from penstock.health import Health
from penstock_monitor import merge

watchdog.LOOK_EVERY_S, merge.LONGEST_COMMIT, merge.LONGEST_STOP_S = 0.1, 5, 0.3

async def start():
    loop = asyncio.get_running_loop()
    if "stuck" in sys.argv:
        loop.call_later(0.2, time.sleep, 20)
    else:
        loop.call_later(0.2, os.kill, os.getpid(), signal.SIGTERM)

async def stop():
    await asyncio.sleep(20 if "does not stop" in sys.argv else 0)

app = SimpleNamespace(start=start, stop=stop, should_stop=False, crashed=None)
merge.make_app = lambda *_: app
sys.exit(asyncio.run(merge._serve(None, "monitor.merge", None, Health())))
"""


@pytest.mark.parametrize(
    ("doing", "code", "why"),
    [("stops", 0, ""), ("does not stop", 1, "not stopped 0 s after"), ("stuck", 1, "in one turn of the event loop")],
)
def test_a_merge_that_hangs_ends_with_1(doing: str, code: int, why: str) -> None:
    began = time.monotonic()
    run = subprocess.run([sys.executable, "-c", SERVING, doing], capture_output=True, text=True, check=False)
    assert (run.returncode, why in run.stderr) == (code, True), run.stderr
    assert time.monotonic() - began < 15


def test_references_are_the_versions_trained_for_the_plans_features(tmp_path: Path) -> None:
    used = plan()
    reader = ReferenceReader(used, Settings(models_url=str(tmp_path)))
    assert reader.read().newest is None
    registered(tmp_path, used, "1.0.0")
    registered(tmp_path, used, "1.2.0")
    registered(tmp_path, used, "2.0.0", service_hash="other")
    found = reader.read()
    assert list(found.by_version) == ["1.0.0", "1.2.0"]
    assert found.newest is not None
    assert found.newest.version == "1.2.0"
    assert found.by_id(found.newest.id) is not None


def test_the_watcher_hands_the_stage_what_it_finds_before_the_loop_starts(tmp_path: Path) -> None:
    used = plan()
    registered(tmp_path, used, "1.0.0")
    watcher = ReferenceWatcher(ReferenceReader(used, Settings(models_url=str(tmp_path))), every_s=0.02)
    taken: list[References] = []
    stage: Any = SimpleNamespace(use=taken.append)
    assert watcher.unready() is not None
    watcher.start()
    try:
        while watcher.unready() is not None:
            time.sleep(0.005)
        for change in watcher.news():
            change(stage)
        assert [list(found.by_version) for found in taken] == [["1.0.0"]]
        registered(tmp_path, used, "1.1.0")
        while len(taken) < 2:
            time.sleep(0.005)
            for change in watcher.news():
                change(stage)
        assert list(taken[1].by_version) == ["1.0.0", "1.1.0"]
    finally:
        watcher.close()


@pytest.mark.parametrize(("name", "columns"), [("profile", SCHEMA), ("alert", ALERTS)])
def test_the_columns_in_code_are_those_of_the_avro_schema(name: str, columns: pa.Schema) -> None:
    declared = arrow_schema(parse(json.loads((SCHEMAS / f"{name}.avsc").read_text())))
    assert declared.names == columns.names
    for field in declared:
        empty = pa.array([], columns.field(field.name).type)
        assert empty.cast(field.type).type == field.type
