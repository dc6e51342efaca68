"""``penstock doctor PIPELINE``."""

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from penstock.cli.plan import Source

if TYPE_CHECKING:
    from penstock.plan import Plan

COLOURS = {"ok": "green", "warn": "yellow", "fail": "red", "not looked at": "dim"}


def doctor(
    pipeline: Source,
    probe: Annotated[bool, typer.Option(help="Send an event that ingest filters out, through each partition.")] = True,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds that all questions to Kafka may take.")] = 30.0,
    max_lag: Annotated[float, typer.Option(min=0, help="Seconds of lag that are worth a warning.")] = 60.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Look at a running pipeline; exit status 1 when something is wrong, 2 when the pipeline cannot be compiled."""
    from penstock.compiling.folder import open_folder
    from penstock.doctor import Deployment, examine
    from penstock.plan import PlanError
    from penstock.schemas.registry import ConfluentRegistry
    from penstock.settings import Settings
    from penstock.topics import admin_client

    settings = Settings()
    registry = ConfluentRegistry.from_settings(settings) if settings.schema_registry_url else None
    try:
        plan, ids_known = _compiled(pipeline, registry)
    except PlanError as error:
        typer.echo(json.dumps({"error": str(error)}) if as_json else f"penstock: {error}", err=not as_json)
        raise typer.Exit(2) from None
    deployment = Deployment(
        plan,
        settings,
        open_folder(pipeline).path,
        admin_client(settings),
        time.monotonic() + timeout,
        max_lag,
        str(Path("var") / plan.pipeline / "plan.json"),
        ids_known,
    )
    findings = list(examine(deployment, registry, with_probe=probe))
    verdicts = [finding.verdict for finding in findings]
    counts = {verdict: sum(each == verdict for each in verdicts) for verdict in COLOURS}
    if as_json:
        facts: dict[str, Any] = {"pipeline": plan.pipeline, "passed": not counts["fail"], "counts": counts}
        typer.echo(json.dumps({**facts, "findings": [finding._asdict() for finding in findings]}))
    else:
        _show(findings)
        typer.echo(", ".join(f"{n} {verdict}" for verdict, n in counts.items() if n))
    raise typer.Exit(1 if counts["fail"] else 0)


def _compiled(pipeline: str, registry: Any) -> "tuple[Plan, bool]":
    """The plan, and whether its schema ids are those in force: a registry that is away is a finding, not the end."""
    from penstock.compiling import compile_pipeline
    from penstock.plan import PlanError
    from penstock.schemas.registry import TransientLookupError

    locked = compile_pipeline(pipeline)
    if registry is None:
        return locked, True
    try:
        return compile_pipeline(pipeline, registry=registry), True
    except (PlanError, TransientLookupError):
        return locked, False


def _show(findings: "list[Any]") -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, show_header=False)
    for title in ("verdict", "check"):
        table.add_column(title, no_wrap=True)
    table.add_column("seen", overflow="fold")
    for finding in findings:
        said = f"{finding.seen}. Mend: {finding.mend}" if finding.mend else finding.seen
        # what brokers and pipelines say is text, not markup
        table.add_row(Text(finding.verdict, COLOURS[finding.verdict]), finding.check, Text(said))
    console = Console()
    # off a terminal nobody's lines are cut at 80 columns
    (console if console.is_terminal else Console(width=160)).print(table)
