"""``make bench``: how fast each service is, beside the bare copy of its own input in the same run.

usage: python -m bench [--quick] [--cases NAME,NAME] [--json FILE]

A full run writes ``bench/results/latest.json`` and the README's table from it.
"""

import json
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bench import cases
from bench.cluster import BenchError, Cluster
from bench.latency import latency
from bench.machine import describe
from bench.results import LATEST, README, memory, save, tables, write_readme
from bench.workshop import Workshop
from penstock.local.resolve import describe_kind, resolve_broker

EVENTS, QUICK_EVENTS = 3_000_000, 20_000
CASES: dict[str, Callable[[Workshop], dict[str, Any]]] = {
    "ingest": cases.ingest,
    "ingest_json": cases.ingest_json,
    "features": cases.features,
    "features_all": cases.features_all,
    "inference": cases.inference,
    "inference_trees": cases.inference_trees,
    "monitor": cases.monitor,
    "card_windows": cases.card_windows,
    "together": cases.together,
    "latency_5k": partial(latency, rate=5_000),
    "latency_20k": partial(latency, rate=20_000),
}
QUICK = {
    "latency_5k": partial(latency, rate=500, warm_s=0.5, measured_s=1.5, least=1),
    "latency_20k": partial(latency, rate=1_000, warm_s=0.5, measured_s=1.5, least=1),
}


def run_cases(
    names: list[str],
    events: int,
    repeats: int,
    folder: Path,
    models: str,
    quick: bool = False,
    bootstrap: str | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """The figures of ``names``, in the order given. Raises ``BenchError`` when a case does not count what it must."""
    console = console or Console()
    chosen = CASES | QUICK if quick else CASES
    folder.mkdir(parents=True, exist_ok=True)
    columns = (TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("starting", total=len(names))

        def say(what: str) -> None:
            progress.update(task, description=what)
            if not console.is_terminal:
                console.print(f"{time.strftime('%H:%M:%S')} {what}", highlight=False)

        def measured(at: str) -> dict[str, Any]:
            shop = Workshop(Cluster(at), folder, models, events, repeats, say)
            found = {}
            for name in names:
                found[name] = chosen[name](shop)
                progress.advance(task)
            return found

        machine = describe(describe_kind() if bootstrap is None else bootstrap)
        results, began = {"machine": machine, "events": events, "repeats": repeats}, time.monotonic()
        if bootstrap is not None:
            return results | {"cases": measured(bootstrap)}
        # a gigabyte and no early compiler stop: what is measured is not the broker's warm-up
        shutil.rmtree(folder / "broker", ignore_errors=True)
        with resolve_broker(data_dir=folder / "broker", heap_mb=1024, fast_start=False) as broker:
            found = measured(broker.bootstrap)
        shutil.rmtree(folder / "broker", ignore_errors=True)
        return results | {"minutes": round((time.monotonic() - began) / 60, 1), "cases": found}


def main(
    quick: Annotated[bool, typer.Option(help="A few events, to see that every case runs and counts right.")] = False,
    only: Annotated[str | None, typer.Option("--cases", help=f"Some of {', '.join(CASES)}.")] = None,
    as_json: Annotated[Path | None, typer.Option("--json", help="Also write the figures here.")] = None,
    events: Annotated[int | None, typer.Option(help="How many events fill the topics.")] = None,
    repeats: Annotated[int, typer.Option(help="Pairs of baseline and run per case; the median is taken.")] = 1,
    folder: Annotated[Path, typer.Option(help="Broker's data, logs and models.")] = Path("var/bench"),
    table: Annotated[bool, typer.Option(help="Only write the README's table from the last full run.")] = False,
) -> None:
    """Measure the services against the bare copy."""
    console = Console()
    if table:
        _write_table(console, json.loads(LATEST.read_text()))
        return
    names = only.split(",") if only else list(CASES)
    if unknown := [name for name in names if name not in CASES]:
        console.print(f"no case is called {unknown[0]!r}; there are {', '.join(CASES)}")
        raise typer.Exit(2)
    console.print(describe_kind(), highlight=False)
    try:
        with TemporaryDirectory(prefix="penstock-bench-") as aside:
            where = Path(aside) if quick else folder
            results = run_cases(
                names,
                events or (QUICK_EVENTS if quick else EVENTS),
                repeats,
                where,
                str(folder / "models"),
                quick,
                console=console,
            )
    except BenchError as error:
        console.print(f"[red]bench: {error}[/red]")
        raise typer.Exit(1) from None
    if as_json is not None:
        save(results, as_json)
    for made in tables(results):
        console.print(made)
    console.print(memory(results), highlight=False)
    if quick:
        console.print("quick: every case ran and counted right; the figures mean nothing")
    elif set(names) == set(CASES) and events is None:
        save(results, LATEST)
        _write_table(console, results)
    else:
        console.print(f"not a full run: {LATEST} and the README stay as they are")


def _write_table(console: Console, results: dict[str, Any]) -> None:
    with suppress(OSError):
        if write_readme(results):
            console.print(f"table of {README} written from {LATEST}")
            return
    console.print(f"{README} has no <!-- bench --> … <!-- /bench -->: no table was written")
