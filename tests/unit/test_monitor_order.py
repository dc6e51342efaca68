"""Equal inputs, equal alerts: the same partials, counted and read in any order that Kafka allows, say the same.

Each source is counted in the order of its log, in flushes of any size and any far ahead of the others; the profiles of
a measure are read in the order in which they were written, in batches of any size.
"""

import asyncio
import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
from penstock_monitor.merging import Merge
from penstock_monitor.sources import Stillness

from penstock.codec.avro import AvroDecoder, AvroEncoder
from penstock.health import Health
from penstock.models.manifest import PROFILE_FILE, Manifest
from penstock.models.registry import ModelRegistry
from penstock.plan import LabelPlan, Plan, SchemaPlan, TopicPlan
from penstock.profiles.reference import ReferenceProfile
from penstock.profiles.rows import OUTCOME, SCORE, SCORE_BINS, ProfileRow, to_arrow
from penstock.records import NO_TIME, Partition
from penstock.settings import Settings
from penstock.transport.protocol import Position
from tests.onnx_models import SCHEMAS, linear
from tests.onnx_models import plan as small_plan

DAY = 86_400_000
WINDOW = 3 * DAY
STEPS = 48
"""Half days."""
VERSION = "1.0.0"
PARTITIONS = 2
AMOUNT, COUNT, OUTCOMES = "m||amount", "m||count", f"m|{VERSION}|{OUTCOME}"
ROWS = 100
"""Of a source in half a day."""
IDLE_S = 4.0


def plan() -> Plan:
    base = small_plan()

    def topic(name: str, number: int, schema: str) -> TopicPlan:
        avro = json.loads((SCHEMAS / f"{schema}.avsc").read_text())
        value = SchemaPlan(subject=f"shop.{name}-value", id=number, avro=avro)
        return TopicPlan(name=f"shop.{name}", value=value, partitions=PARTITIONS)

    topics = (*base.topics, topic("profiles", 20, "profile"), topic("alerts", 21, "alert"))
    monitors = base.monitors.model_copy(
        update={"pane_ms": DAY, "window_ms": WINDOW, "psi": 0.03, "js": 0.03, "minimum_rows": 100}
    )
    return base.model_copy(
        update={
            "topics": topics,
            "monitors": monitors,
            "schemas": {t.value.id: t.value.avro for t in topics if t.value is not None},
            "lateness_ms": DAY,
            "label": LabelPlan(avro={}, id=2, subject="l", key="k", value="v", timestamp="at", horizon_ms=2 * DAY),
        }
    )


def register_reference(used: Plan, url: Path) -> ReferenceProfile:
    rng = np.random.default_rng(0)
    scores = rng.random(4000)
    columns = {"amount": rng.normal(size=4000), "count": rng.normal(size=4000)}
    profile = ReferenceProfile.build(
        pa.table(columns), scores, (rng.random(4000) < scores).astype(float), version=VERSION
    )
    files = {"model.onnx": linear().SerializeToString(), PROFILE_FILE: profile.save()}
    ModelRegistry(str(url)).register(Manifest.of(used, VERSION, files), files)
    return profile


class World:
    """What the sources hold: per source and half day the counts of its rows, some of which are up to the lateness old;
    and the alerts of one way in which the workers may come to count and the merge to read them.
    """

    def __init__(self, url: Path) -> None:
        self._plan = plan()
        self._settings = Settings(models_url=str(url))
        profile = register_reference(self._plan, url)
        rng = np.random.default_rng(3)
        names = [Partition(f"shop.{topic}", n) for topic in ("features", "predictions", "outcomes") for n in (0, 1)]
        self._sources = {name: [self._step(rng, profile, name.topic, at) for at in range(STEPS)] for name in names}

    def _step(self, rng: np.random.Generator, profile: ReferenceProfile, topic: str, at: int) -> list[ProfileRow]:
        pane = max(0, at // 2 - int(rng.integers(0, 2))) * DAY
        if topic == "shop.outcomes":
            scores = rng.random(80)
            truth = rng.random(80) < (scores if rng.random() < 0.6 else 1 - scores)
            place = (scores * SCORE_BINS).astype(np.int64)
            positives, negatives = (np.bincount(place[chosen], minlength=SCORE_BINS) for chosen in (truth, ~truth))
            labelled = {"rows": 80, "positives": positives, "negatives": negatives}
            return [ProfileRow(OUTCOME, "outcome", pane, DAY, "m", VERSION, **labelled)]
        measures = [(SCORE, VERSION, profile.score)]
        if topic == "shop.features":
            measures = [(name, "", column) for name, column in profile.columns.items()]
        rows = []
        for name, version, column in measures:
            assert column is not None
            tilt = np.array(column.counts) * np.exp(rng.normal(0, 0.8) * np.linspace(-1, 1, len(column.counts)))
            bins = rng.multinomial(ROWS, tilt / tilt.sum())
            rows.append(ProfileRow(name, "numeric", pane, DAY, "m", version, profile.id, rows=ROWS, bins=bins))
        return rows

    def alerts(self, seed: int) -> list[dict[str, Any]]:
        """Of one order, in the order of their ids."""
        topic = SimpleNamespace(sent=[])

        def send_soon(*, key: bytes, value: bytes) -> "asyncio.Future[None]":
            topic.sent.append(value)
            done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            done.set_result(None)
            return done

        async def keep(changes: Any) -> None:
            list(changes)

        async def live() -> None:
            alerts = SimpleNamespace(send_soon=send_soon)
            merge = Merge(self._plan, self._settings, SimpleNamespace(keep=keep), alerts, Health().wait)
            await self._follow(merge, random.Random(seed))

        asyncio.run(live())
        value = self._plan.topic("alerts").value
        assert value is not None
        found = AvroDecoder(value.avro, self._plan.schemas.__getitem__).decode(topic.sent).rows.to_pylist()
        return sorted(found, key=lambda row: row["alert_id"])

    async def _follow(self, merge: Merge, dice: random.Random) -> None:
        log: list[list[Any]] = [[] for _ in range(PARTITIONS)]
        counted, read, now = dict.fromkeys(self._sources, 0), [0] * PARTITIONS, 0.0
        still = Stillness(IDLE_S, lambda: now)
        seen: tuple[int, bool, list[int]] | None = None
        while True:
            now += dice.random()
            if behind := [name for name, steps in counted.items() if steps < STEPS]:
                # the first runs far ahead of the others now and then
                name = dice.choice(behind[: dice.choice((1, PARTITIONS, len(behind)))])
                stop = min(STEPS, counted[name] + dice.randint(1, 12))
                self._write([row for step in self._sources[name][counted[name] : stop] for row in step], log)
                counted[name] = stop
            for number, events in enumerate(log):
                stop = dice.randint(read[number], len(events))
                await merge.add(events[read[number] : stop])
                read[number] = stop
            if seen is None:
                places = {name: (self._committed(steps), STEPS * ROWS) for name, steps in counted.items()}
                seen = *still.judge(places), [len(events) for events in log]
            watermark, stopped, ends = seen
            if all(place >= end for place, end in zip(read, ends, strict=True)):
                await merge.close(watermark, stopped=stopped)
                seen = None
                if stopped:
                    return

    def _committed(self, steps: int) -> Position | None:
        return Position(steps * ROWS, (steps - 1) * DAY // 2) if steps else None

    def _write(self, rows: list[ProfileRow], log: list[list[Any]]) -> None:
        value = self._plan.topic("profiles").value
        assert value is not None
        encoded = AvroEncoder(value.avro, value.id).encode(to_arrow(rows)).to_pylist()
        for row, content in zip(rows, encoded, strict=True):
            number = {AMOUNT: 0, OUTCOMES: 0}.get(row.key, 1)
            message = SimpleNamespace(topic="shop.profiles", partition=number, offset=len(log[number]))
            log[number].append(SimpleNamespace(value=content, message=message))


def test_equal_rows_give_equal_alerts_in_whatever_order_their_counts_come(tmp_path: Path) -> None:
    world = World(tmp_path)
    first = world.alerts(seed=0)
    ids = {row["alert_id"] for row in first}
    assert len(ids) == len(first) >= 10
    assert {row["kind"] for row in first} >= {"drift", "auc"}
    for seed in range(1, 9):
        assert world.alerts(seed) == first


def test_a_source_that_has_rows_to_be_counted_holds_the_watermark_however_long_it_stands() -> None:
    now = 0.0
    still = Stillness(IDLE_S, lambda: now)
    quick, slow = Partition("shop.features", 0), Partition("shop.predictions", 0)
    places = {quick: (Position(500, 9 * DAY), 500), slow: (Position(100, 2 * DAY), 900)}
    for now in (0.0, 100.0):  # noqa: B007  # read by the clock
        assert still.judge(places) == (2 * DAY, False)
    assert still.judge({**places, slow: (None, 900)})[0] == NO_TIME


def test_a_source_that_is_read_to_its_end_and_stands_holds_nobody_back() -> None:
    now = 0.0
    still = Stillness(IDLE_S, lambda: now)
    quick, quiet, empty = (Partition("shop.features", n) for n in range(3))
    # a transaction's marker lies behind the last row
    places = {quiet: (Position(100, 2 * DAY), 101), empty: (None, 0)}
    assert still.judge({**places, quick: (Position(500, 9 * DAY), 900)}) == (NO_TIME, False)
    now = IDLE_S
    assert still.judge({**places, quick: (Position(600, 10 * DAY), 900)}) == (10 * DAY, False)
    assert still.judge({**places, quick: (Position(900, 11 * DAY), 901)}) == (11 * DAY, False)
    now = 2 * IDLE_S
    assert still.judge({**places, quick: (Position(900, 11 * DAY), 901)}) == (NO_TIME, True)
