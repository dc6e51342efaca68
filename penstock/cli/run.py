"""``penstock run STAGE PLAN.json``: what a container runs."""

from pathlib import Path
from typing import Annotated

import typer


def run(
    stage: Annotated[
        str, typer.Argument(help="ingest, features.ENTITY, features.feast, inference, monitor, monitor.merge")
    ],
    plan: Annotated[Path, typer.Argument(help="the JSON that `penstock plan PIPELINE` wrote")],
    slot: Annotated[int | None, typer.Option(help="this worker's place among those of its stage")] = None,
) -> None:
    """Run one worker of one stage until SIGTERM."""
    from penstock.plan import Plan
    from penstock.settings import Settings
    from penstock.worker import run as run_worker

    settings = Settings() if slot is None else Settings(slot=slot)
    loaded = Plan.load(plan)
    loaded.stage(stage)  # said as a command says it; what a worker says from here on is its log
    raise typer.Exit(run_worker(loaded, stage, settings))
