"""The live view of a run on a terminal: the pipeline's picture with rates and lag, and what is known so far of latency,
dead letters, quality and drift.
"""

from collections.abc import Iterable
from contextlib import AbstractContextManager

from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from penstock.local.screen import Status
from penstock.plan import StagePlan

MOST_REASONS = 8
WARN_PSI, ALARM_PSI = 0.1, 0.2


class LiveView:
    """A ``Screen`` on a terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, auto_refresh=False, transient=True)

    def line(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False)

    def live(self) -> AbstractContextManager[object]:
        return self._live

    def show(self, status: Status) -> None:
        self._live.update(view(status), refresh=True)


def view(status: Status) -> RenderableType:
    """Everything, for one look."""
    panels = [
        Panel(_latency(status), title="end to end"),
        Panel(_quality(status), title="so far"),
        Panel(_ranked(status.dead().items()), title="dead letters"),
        Panel(_drift(status), title="most drifted (PSI)"),
    ]
    return Group(_head(status), Panel(picture(status), title=status.plan.pipeline), Columns(panels))


def picture(status: Status) -> Table:
    """One row per stage: the topics it reads with their rates, its lag, the topics it writes."""
    table = Table.grid(padding=(0, 1), expand=True)
    for _ in range(5):
        table.add_column(no_wrap=True)
    lag = status.lag()
    for stage in status.plan.stages:
        rows = lag.get(stage.name, 0)
        name = Text(f" {stage.name} ", style="bold reverse" if rows < 10_000 else "bold reverse yellow")
        behind = Text(f"lag {rows:,}", style="dim" if rows < 1_000 else "yellow")
        table.add_row(
            _topics(status, (s.topic for s in stage.inputs)),
            Text("▶"),
            Group(name, behind),
            Text("▶"),
            _out(status, stage),
        )
    return table


def _out(status: Status, stage: StagePlan) -> RenderableType:
    return _topics(status, stage.outputs) if stage.outputs else Text("Feast", style="green")


def _topics(status: Status, names: Iterable[str]) -> Text:
    lines = []
    for name in names:
        rate = status.rate(name)
        short = name.removeprefix(f"{status.plan.pipeline}.")
        lines.append(Text.assemble((f"{short:<24}", "cyan"), (f"{rate:>8,.0f}/s", "dim" if rate < 1 else "")))
    return Text("\n").join(lines)


def _head(status: Status) -> Table:
    head = Table.grid(padding=(0, 2), expand=True)
    head.add_column(no_wrap=True)
    head.add_column(ratio=1)
    head.add_column(no_wrap=True)
    done = status.sent.events + status.sent.labels
    head.add_row(
        Text(status.date, style="bold"),
        ProgressBar(total=max(1, status.total), completed=done),
        Text(f"{done:,} of {status.total:,} messages, {status.rate(status.plan.topic('raw').name):,.0f} events/s"),
    )
    return head


def _latency(status: Status) -> Table:
    p50, p99 = status.percentiles or (None, None)
    return _pairs([("p50", _ms(p50)), ("p99", _ms(p99))])


def _quality(status: Status) -> Table:
    found = status.results

    def against(name: str, other: str) -> str:
        return f"{found[name]:.3f} ({found[other]:.3f})" if name in found and other in found else "–"

    return _pairs(
        [
            ("AUC (baseline)", against("auc", "baseline_auc")),
            ("accuracy (commoner)", against("accuracy", "majority")),
            ("labels", f"{status.joined:,}"),
        ]
    )


def _ranked(counts: Iterable[tuple[str, int]]) -> Table:
    rows = list(counts)
    shown = [(name, f"{n:,}") for name, n in rows[:MOST_REASONS]]
    if len(rows) > MOST_REASONS:
        shown.append(("others", f"{sum(n for _, n in rows[MOST_REASONS:]):,}"))
    return _pairs(shown or [("none yet", "")])


def _drift(status: Status) -> Table:
    table = Table.grid(padding=(0, 2))
    for feature, value in status.drifted():
        style = "red" if value >= ALARM_PSI else "yellow" if value >= WARN_PSI else "green"
        table.add_row(feature, Text(f"{value:.2f}", style=style))
    if not table.row_count:
        table.add_row("no window closed yet")
    return table


def _pairs(rows: Iterable[tuple[str, str]]) -> Table:
    table = Table.grid(padding=(0, 2))
    for name, value in rows:
        table.add_row(name, Text(value, justify="right"))
    return table


def _ms(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f} ms"
