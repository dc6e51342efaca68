"""``python -m tests.chaos``: runs the scenarios, shows how far they are, and writes down what they came to."""

import os
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from tests.chaos.harness import Lab, Result
from tests.chaos.report import facts, read_summary, summary, table, write_summary, write_table
from tests.chaos.scenarios import Scenario, scenarios
from tests.integration.pipeline_world import ROOT

FOLDER = ROOT / "var/chaos"
PAGE = ROOT / "docs/reliability.md"


def main(
    seed: Annotated[int, typer.Option(help="of everything that is drawn")] = 1,
    rounds: Annotated[int, typer.Option(min=1, help="1: minutes; 10: the stated counts")] = 1,
    scenario: Annotated[
        list[str] | None,
        typer.Option(
            help="only this one; may be given again. Of a former run with this seed and rounds the others stay"
        ),
    ] = None,
    docs: Annotated[bool, typer.Option(help="write the table of docs/reliability.md, if it is whole")] = True,
) -> None:
    """Exit code 0 when everything held, 1 when something did not."""
    os.chdir(ROOT)
    known = scenarios()
    chosen = scenario or list(known)
    if unknown := [name for name in chosen if name not in known]:
        sys.exit(f"there is no scenario {unknown[0]!r}; there are {', '.join(known)}")
    console = Console()
    results: list[Result] = []
    load, *_ = os.getloadavg()
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    ).stdout.strip()
    kept = FOLDER / f"seed-{seed}-rounds-{rounds}.json"
    before = read_summary(kept) if scenario else None
    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("compiling the pipeline, training its model")
        with Lab(FOLDER, seed) as lab:
            for name in chosen:
                result = Result(name, known[name].HOLDS, seed)
                result.tell = lambda what, name=name: progress.update(task, description=f"{name}: {what}")  # type: ignore[misc]
                console.print(f"[bold]{name}[/]: {result.holds}")
                run(known[name], lab, rounds, result)
                results.append(result)
                console.print(_line(result))
                said = summary(results, seed, rounds, load, commit, before)
                for file in (kept, FOLDER / "summary.json"):  # the latest, and what a run with others does not replace
                    write_summary(file, said)
    if docs and said["scenarios"].keys() == known.keys():
        write_table(PAGE, table(said))
    passed = all(result.passed for result in results)
    console.print(f"{FOLDER / 'summary.json'}: {'passed' if passed else 'FAILED'}")
    sys.exit(0 if passed else 1)


def run(scenario: Scenario, lab: Lab, rounds: int, result: Result) -> None:
    """One scenario; what it raises is a problem of its result."""
    began = time.monotonic()
    try:
        scenario.run(lab, rounds, result)
    except Exception as error:  # noqa: BLE001  # the others are to run all the same
        where = traceback.extract_tb(error.__traceback__)[-1]
        result.problems.append(f"{type(error).__name__} at {Path(where.filename).name}:{where.lineno}: {error}")
    result.seconds = time.monotonic() - began


def _line(result: Result) -> str:
    found = facts(result)
    head = "  [green]passed[/]" if result.passed else "  [red]FAILED[/]"
    said = ", ".join(f"{key} {found[key]}" for key in list(found)[:8] if found[key] is not None)
    problems = "".join(f"\n    {problem}" for problem in result.problems)
    return f"{head} in {result.seconds:.0f} s: {said}; {found['notes'] or ''}{problems}"


if __name__ == "__main__":
    typer.run(main)
