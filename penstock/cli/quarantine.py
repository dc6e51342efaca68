"""``penstock quarantine list|lift PLAN``: rows that killed their workers and are set aside."""

import json
from pathlib import Path
from typing import Annotated

import typer

from penstock.journal.lifting import Row, lift, quarantined
from penstock.plan import Plan
from penstock.settings import Settings

quarantine_app = typer.Typer(
    help="Rows that killed their workers and are set aside.", no_args_is_help=True, add_completion=False
)

PlanFile = Annotated[Path, typer.Argument(help="The JSON that `penstock plan PIPELINE` wrote.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@quarantine_app.command("list")
def list_rows(plan: PlanFile, as_json: Json = False) -> None:
    """Every stage's, as they lie at PENSTOCK_SNAPSHOTS_URL."""
    settings = Settings()
    rows = quarantined(Plan.load(plan), settings)
    if as_json:
        typer.echo(json.dumps({"rows": [_facts(row) for row in rows]}))
        return
    for row in rows:
        typer.echo(f"{row.stage} {row.place}")
    if not rows:
        typer.echo(f"no row is quarantined in {settings.snapshots}")


@quarantine_app.command("lift")
def lift_rows(
    plan: PlanFile,
    stage: Annotated[str, typer.Argument(help="The stage, e.g. features.aircraft.")],
    places: Annotated[list[str], typer.Argument(metavar="TOPIC/PARTITION@OFFSET...", help="As `list` names them.")],
    anyway: Annotated[bool, typer.Option("--anyway", help="Also rows that are dead letters.")] = False,
    as_json: Json = False,
) -> None:
    """Let rows be worked on again. Stop the stage's workers before, and start them after it."""
    rows = lift(Plan.load(plan), Settings(), stage, places, anyway=anyway)
    if as_json:
        typer.echo(json.dumps({"lifted": [_facts(row) for row in rows]}))
        return
    for row in rows:
        typer.echo(f"lifted {row.stage} {row.place}")
    typer.echo(f"start the workers of {stage} anew: those that ran meanwhile leave these rows out still")


def _facts(row: Row) -> dict[str, object]:
    return {"stage": row.stage, "topic": row.partition.topic, "partition": row.partition.number, "offset": row.offset}
