"""``penstock check PIPELINE``."""

import json
from typing import Annotated

import typer

from penstock.cli.plan import Source


def check(
    pipeline: Source,
    samples: Annotated[int, typer.Option(min=2, help="Sample events to make, where there is no samples.jsonl.")] = 200,
    seed: Annotated[int, typer.Option(help="Of the samples that are made.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Run the shared checks on a pipeline; exit status 1 when one fails."""
    from rich.console import Console
    from rich.table import Table

    from penstock.checks import run_checks

    results = list(run_checks(pipeline, samples, seed))
    failed = [result for result in results if not result.passed]
    if as_json:
        typer.echo(json.dumps({"passed": not failed, "checks": [result._asdict() for result in results]}))
    else:
        table = Table(box=None, pad_edge=False)
        for title in ("check", "of", ""):
            table.add_column(title, no_wrap=True)
        table.add_column("", overflow="fold")
        for result in results:
            verdict = "[green]ok[/green]" if result.passed else "[red]failed[/red]"
            table.add_row(result.check, result.subject, verdict, result.message, style="" if result.passed else "bold")
        console = Console()
        # off a terminal nobody's lines are cut at 80 columns
        (console if console.is_terminal else Console(width=160)).print(table)
        typer.echo(f"{len(results) - len(failed)} of {len(results)} checks passed")
    raise typer.Exit(1 if failed else 0)
