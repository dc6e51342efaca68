"""A monitor that commits as often as the other stages, and so has new snapshots of all its partitions in two seconds
and not in eight: ``python -m tests.hasty STAGE PLAN SLOT`` is ``penstock run``."""

import sys
from dataclasses import replace
from pathlib import Path

from penstock import worker
from penstock.local.supervisor import Worker, run_command
from penstock.plan import Plan
from penstock.settings import Settings

STAGE = "monitor"


def command(worker: Worker, plan_path: Path) -> list[str]:
    """How a supervisor starts one; the others as ever."""
    if worker.stage != STAGE:
        return run_command(worker, plan_path)
    return [sys.executable, "-m", "tests.hasty", worker.stage, str(plan_path), str(worker.slot)]


def main(stage: str, plan_path: Path, slot: int) -> int:
    find_kind = worker.find_kind
    worker.find_kind = lambda name: replace(find_kind(name), commit_interval_ms=None)
    return worker.run(Plan.load(plan_path), stage, Settings(slot=slot))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])))
