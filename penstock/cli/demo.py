"""``penstock demo``: what ``make demo`` runs."""

from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Annotated

import typer


def demo(
    speed: Annotated[str, typer.Option(help="1 replays nine months in about a minute, 2 twice as fast; max.")] = "1",
    limit: Annotated[int | None, typer.Option(min=1, help="Replay this many departures at most.")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave broker and workers running until Ctrl-C.")] = False,
    docker: Annotated[bool, typer.Option("--docker", help="Run the broker in Docker.")] = False,
    folder: Annotated[Path, typer.Option(help="Where everything that the demo writes goes.")] = Path("var/demo"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON, progress on stderr.")] = False,
) -> None:
    """Replay real flights through a real Kafka to predictions, Feast and drift, and count what became of them."""
    from rich.console import Console

    from penstock.local.demo import Demo, Options
    from penstock.local.live import LiveView
    from penstock.local.screen import Lines, Screen
    from penstock.local.summary import page
    from penstock.local.until import interruptible, until_interrupted

    console = Console(stderr=as_json)
    screen: Screen = LiveView(console) if console.is_terminal else Lines(lambda line: typer.echo(line, err=as_json))
    options = Options(speed=_speed(speed), limit=limit, docker=docker, folder=folder)
    try:
        with interruptible(), ExitStack() as stack:
            run = Demo(options, screen, stack)
            summary = run.run()
            screen.line(page(summary))
            screen.line(f"\n  report: {folder / 'report.html'}   numbers: {folder / 'summary.json'}")
            if as_json:
                typer.echo(summary.model_dump_json())
            if keep:
                addresses = "\n" + run.addresses() + "\nCtrl-C ends everything"
                until_interrupted(partial(screen.line, addresses), run.supervisor.check)
    except KeyboardInterrupt:
        screen.line("interrupted; everything that was started has ended")
        raise typer.Exit(130) from None
    failures = summary.failures()
    for failure in failures:
        typer.echo(f"penstock demo: {failure}", err=True)
    raise typer.Exit(1 if failures else 0)


def _speed(text: str) -> float | None:
    if text == "max":
        return None
    try:
        speed = float(text)
    except ValueError:
        speed = 0.0
    if not 0 < speed < float("inf"):
        raise typer.BadParameter(f"--speed {text}: give a number over 0, or max")
    return speed
