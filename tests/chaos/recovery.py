"""How long a killed worker's partitions stood still, and which part of it went where, as far as its log tells."""

import time
from datetime import datetime

from penstock.local.supervisor import Worker
from tests.integration.pipeline_world import World

PARTS = ("detect", "start", "init and join", "replay")
"""Until the supervisor starts it again; until its libraries are loaded; until it has its slot's transaction and its
partitions back; until its first new output is committed."""


def parts_of(world: World, worker: Worker, killed: float, out: float) -> dict[str, float]:
    """Seconds by part. ``killed``, ``out``: seconds since epoch."""
    started = time.time() - (time.monotonic() - worker.restarts[-1])
    since = [line for line in world.said(worker.stage, worker.slot) if _when(line["time"]) >= started - 0.5]
    ports = [_when(line["time"]) for line in since if line["message"].startswith("metrics and health")]
    joined = [_when(line["time"]) for line in since if line["message"].startswith("assigned ")]
    if not ports or not joined:
        return {}
    marks = [killed, started, ports[-1], joined[-1], max(out, joined[-1])]
    return {name: after - before for name, before, after in zip(PARTS, marks, marks[1:], strict=False)}


def _when(said: str) -> float:
    return datetime.fromisoformat(said).timestamp()
