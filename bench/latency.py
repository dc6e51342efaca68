"""End-to-end latency at a steady rate: from the moment an event was to be sent, which stands in the event itself, until
a read_committed reader has the row that came of it. Three services on one side, three bare copies on the other.
"""

import itertools
import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from bench.cases import trained
from bench.cluster import BenchError
from bench.plans import renamed
from bench.processes import Process
from bench.workshop import Workshop
from penstock.plan import AvroSchema, Plan

COMMIT_MS = 20
WARM_S, MEASURED_S = 5.0, 20.0
LEAST = 3
"""Pairs: of ten single ones at 20 k/s on two idle cores the ratios lay between 0.6 and 2.0."""
STAGES = ("ingest", "features.card", "inference")


def latency(
    shop: Workshop, rate: int, warm_s: float = WARM_S, measured_s: float = MEASURED_S, least: int = LEAST
) -> dict[str, Any]:
    """p50 and p99 in ms at ``rate`` events per second, of the pair whose ratio is the median of at least ``least``."""
    title = f"{rate:,} events/s, three services"
    pairs, repeats = [], max(least, shop.repeats)
    for number in range(repeats):
        shop.say(f"{title}: bare hops")
        bare = _bare(shop, rate, warm_s, measured_s)
        shop.say(f"{title}: run {number + 1} of {repeats}")
        pairs.append((_ours(shop, rate, warm_s, measured_s), bare))
    ratios = [ours["p99_ms"] / bare["p99_ms"] for ours, bare in pairs]
    middle = int(np.argsort(ratios)[len(ratios) // 2])
    ours, bare = pairs[middle]
    found = {"title": title, **ours, "ratio": round(ratios[middle], 3), "ratios": [round(r, 3) for r in ratios]}
    return {**found, "baseline": bare}


def _ours(shop: Workshop, rate: int, warm_s: float, measured_s: float) -> dict[str, float]:
    name = shop.fresh("latency").replace(".", "_")
    plan = renamed(shop.fraud, name)
    shop.make(plan)
    shop.serve(plan, trained(shop, "mlp"))
    value = plan.topic("predictions").value
    assert value is not None
    with ExitStack() as stack:
        for stage in STAGES:
            stack.enter_context(shop.worker(plan, stage, COMMIT_MS)).wait_ready()
        found = _timed(
            shop, plan, plan.topic("raw").name, plan.topic("predictions").name, value.avro, "event_time", rate,
            warm_s, measured_s,
        )  # fmt: skip
    shop.drop([topic.name for topic in plan.topics])
    return found


def _bare(shop: Workshop, rate: int, warm_s: float, measured_s: float) -> dict[str, float]:
    plan = shop.fraud
    topics = [shop.fresh("latency") for _ in range(len(STAGES) + 1)]
    shop.create(topics)
    with ExitStack() as stack:
        for source, target in itertools.pairwise(topics):
            stack.enter_context(shop.copy([source], target, COMMIT_MS)).wait_ready()
        found = _timed(
            shop, plan, topics[0], topics[-1], plan.event.avro, plan.event.timestamp, rate, warm_s, measured_s
        )
    shop.drop(topics)
    return found


def _timed(
    shop: Workshop,
    plan: Plan,
    source: str,
    target: str,
    avro: AvroSchema,
    column: str,
    rate: int,
    warm_s: float,
    measured_s: float,
) -> dict[str, float]:
    seconds = warm_s + measured_s
    folder = shop.folder / "latency"
    folder.mkdir(exist_ok=True)
    ready, out = folder / f"{target}.ready", folder / f"{target}.npz"
    told = {
        "bootstrap": shop.cluster.bootstrap,
        "topic": target,
        "partitions": plan.partitions,
        "rows": int(rate * seconds),
        "avro": avro,
        "column": column,
        "ready": str(ready.absolute()),
        "out": str(out.absolute()),
    }
    given = {
        "bootstrap": shop.cluster.bootstrap,
        "topic": source,
        "schema_id": plan.event.id,
        "rate": rate,
        "seconds": seconds,
    }
    ready.unlink(missing_ok=True)
    with Reader(f"reader-{target}", "bench.arrivals", told, shop) as reader:
        reader.ready_file = ready
        reader.wait_ready()
        with Reader(f"feed-{target}", "bench.feed", given, shop) as load:
            load.wait(seconds + 60)
        reader.wait(150)
    saved = np.load(out)
    stamp, at = saved["stamp"], saved["at"]
    counted = stamp >= stamp.min() + warm_s * 1000
    waited = (at - stamp)[counted]
    if not len(waited):
        raise BenchError(f"{target}: no event was measured")
    p50, p99 = np.percentile(waited, [50, 99])
    return {"p50_ms": round(float(p50), 1), "p99_ms": round(float(p99), 1), "events": len(waited)}


class Reader(Process):
    """A module of the benchmark run as a process with its arguments as JSON."""

    def __init__(self, name: str, module: str, told: dict[str, Any], shop: Workshop) -> None:
        self.ready_file: Path | None = None
        super().__init__(name, [sys.executable, "-m", module, json.dumps(told)], shop.folder / "latency", {})

    @property
    def ready(self) -> bool:
        return self.ready_file is None or self.ready_file.exists()
