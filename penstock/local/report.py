"""``report.html``: one self-contained page about a run, with the plots that a person would look at."""

import html
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from penstock.local import charts
from penstock.local.drift_history import DriftHistory
from penstock.local.summary import Summary
from penstock.local.tail import Latency
from penstock.local.verify_counts import Counts

ALERTS_SHOWN = 25

STYLE = """
:root { --ink: #22303c; --soft: #66727e; --line: #e1e5e9; --good: #1e7e4f; --bad: #c0392b; }
* { box-sizing: border-box }
body { margin: 0; background: #f4f6f8; color: var(--ink); font: 15px/1.5 system-ui, sans-serif }
main { max-width: 1000px; margin: 0 auto; padding: 32px 20px 64px }
h1 { font-size: 28px; margin: 0 } h2 { font-size: 18px; margin: 0 0 2px }
p { margin: 0 0 10px; color: var(--soft) }
section { background: #fff; border: 1px solid var(--line); border-radius: 10px; padding: 18px 22px; margin-top: 18px }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 12px; margin-top: 18px }
.tile { background: #fff; border: 1px solid var(--line); border-radius: 10px; padding: 12px 16px }
.tile b { display: block; font-size: 22px; font-weight: 600 } .tile span { color: var(--soft); font-size: 13px }
.verdict { display: inline-block; margin-top: 10px; padding: 4px 12px; border-radius: 99px; color: #fff }
.good { background: var(--good) } .bad { background: var(--bad) }
svg { width: 100%; height: auto }
table { border-collapse: collapse; width: 100%; font-size: 13px }
th { text-align: left; color: var(--soft); font-weight: 500 }
td, th { padding: 4px 10px 4px 0; border-bottom: 1px solid var(--line); vertical-align: top }
"""


@dataclass(frozen=True, slots=True)
class Run:
    """Everything that the report shows."""

    title: str
    model: str
    summary: Summary
    counts: Counts
    latency: Latency
    drift: DriftHistory


def render(run: Run) -> str:
    """The page."""
    summary, counts = run.summary, run.counts
    failures = summary.failures()
    verdict = (
        '<div class="verdict good">nothing lost, nothing doubled, nothing late; the model beats its baseline</div>'
        if not failures
        else f'<div class="verdict bad">{html.escape("; ".join(failures))}</div>'
    )
    body = [
        f"<h1>{html.escape(run.title)}</h1>",
        f"<p>{html.escape(summary.broker)} · model {html.escape(run.model)}</p>",
        verdict,
        _tiles(summary),
    ]
    if len(counts.joined.times):
        body += [
            _section(
                "Late flights by month",
                "The truth, known when a flight has landed, beside what was said when it left the gate.",
                charts.delay_by_month(counts.joined),
            ),
            _section(
                "Quality by week",
                "Of the predictions that met their label. Dashed: what each has to beat.",
                charts.quality_by_week(counts.joined),
            ),
        ]
    if run.drift.features:
        body.append(
            _section(
                "Drift by feature",
                "Population stability index of each week; over 0.2 is usually called drift. The year has seasons, and "
                "the model was trained on a winter.",
                charts.drift(run.drift),
            )
        )
    at, ms = run.latency.all()
    if len(ms):
        body.append(
            _section(
                "End-to-end latency",
                "From the append of a raw record until a read_committed reader has its prediction.",
                charts.latency(at, ms),
            )
        )
    if len(counts.appended):
        body.append(_section("Throughput", "Predictions committed in each second.", charts.throughput(counts.appended)))
    if counts.dead_reasons:
        body.append(
            _section(
                "Dead letters",
                "The replay breaks messages on purpose, in the ways that topics open to others see.",
                charts.dead_letters(counts.dead_reasons) + _broken(counts.broken),
            )
        )
    if counts.alerted:
        body.append(_section("Alerts", _alerts_text(counts.alerted), _alerts(counts.alerted)))
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(run.title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head>'
        f"<body><main>{''.join(body)}</main></body></html>\n"
    )


def _tiles(summary: Summary) -> str:
    tiles = [
        ("raw messages", f"{summary.events:,}"),
        ("predictions", f"{summary.predictions:,}"),
        ("dead letters", f"{summary.dead:,}"),
        ("dropped", f"{summary.dropped:,}"),
        ("lost / duplicated / late", f"{summary.lost} / {summary.duplicated} / {summary.late_rows}"),
        ("labels joined", f"{summary.labels_joined:,}"),
        ("AUC", _number(summary.auc, ".4f")),
        ("AUC of the baseline", _number(summary.baseline_auc, ".4f")),
        ("alerts", f"{summary.alerts:,}"),
        ("events per second", f"{summary.events_per_second:,.0f}"),
        ("end to end, p50 / p99", f"{_number(summary.e2e_p50_ms, '.0f')} / {_number(summary.e2e_p99_ms, '.0f')} ms"),
        ("peak memory, all processes", f"{summary.peak_rss_mb:,.0f} MiB"),
    ]
    cells = "".join(f'<div class="tile"><b>{value}</b><span>{name}</span></div>' for name, value in tiles)
    return f'<div class="tiles">{cells}</div>'


def _section(title: str, text: str, content: str) -> str:
    return f"<section><h2>{html.escape(title)}</h2><p>{html.escape(text)}</p>{content}</section>"


def _broken(broken: dict[str, Counter[str]]) -> str:
    rows = [
        (kind, str(reasons.total()), ", ".join(f"{reason}" for reason in reasons))
        for kind, reasons in sorted(broken.items())
    ]
    return _table(("broken as", "messages", "dead letter's reason"), rows) if rows else ""


def _alerts_text(alerted: Sequence[dict[str, Any]]) -> str:
    kinds = Counter(alert["kind"] for alert in alerted)
    told = ", ".join(f"{n} of {kind}" for kind, n in kinds.most_common())
    more = f" The first {ALERTS_SHOWN}:" if len(alerted) > ALERTS_SHOWN else ""
    return f"{told}. Each is large, significant after correction for all measures, and found twice in a row.{more}"


def _alerts(alerted: Sequence[dict[str, Any]]) -> str:
    rows = [
        (
            f"{alert['window_start']:%Y-%m-%d}",
            alert["feature"],
            alert["kind"],
            f"{alert['value']:.3f}",
            alert["message"],
        )
        for alert in alerted[:ALERTS_SHOWN]
    ]
    return _table(("window from", "feature", "kind", "value", "what"), rows)


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    top = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    lines = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{top}</tr>{lines}</table>"


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)
