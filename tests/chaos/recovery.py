"""How long a killed worker's partitions stood still, and which part of it went where, as far as its log tells."""

import time
from datetime import datetime

from penstock.local.supervisor import Worker
from tests.integration.pipeline_world import World

PARTS = ("detect", "start", "init", "join", "replay")
"""Until the supervisor starts it again; until its libraries are loaded; until its stage is built and its slot's former
transaction ended; until it has its partitions back; until its first new output is committed."""


def parts_of(world: World, worker: Worker, killed: float, out: float) -> dict[str, float]:
    """Seconds by part. ``killed``, ``out``: seconds since epoch."""
    started = time.time() - (time.monotonic() - worker.restarts[-1])
    marks = [killed, started]
    for said in ("metrics and health", "joining ", "assigned "):
        times = [
            _when(line["time"]) for line in world.said(worker.stage, worker.slot) if line["message"].startswith(said)
        ]
        if not times or times[-1] < started - 0.5:
            return {}
        marks.append(times[-1])
    marks.append(max(out, marks[-1]))
    return {name: after - before for name, before, after in zip(PARTS, marks, marks[1:], strict=False)}


def _when(said: str) -> float:
    return datetime.fromisoformat(said).timestamp()
