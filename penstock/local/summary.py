"""A run in the numbers that must hold: what ``summary.json`` says, and whether it was as promised."""

from pydantic import BaseModel, ConfigDict

from penstock.local.tail import Tail
from penstock.local.verify_counts import Counts


class Summary(BaseModel):
    """``summary.json``. Counts come from the topics (see verify_counts.py). ``events_per_second``: raw messages over
    the time from the first one's append to the last fate's. ``e2e_*``: from the append of a raw record until a
    read_committed reader had its prediction. ``peak_rss_mb``: broker and workers together, MiB, shared pages counted
    for each. ``auc`` and ``baseline_auc`` are None where no label was joined, or of one class only.
    """

    model_config = ConfigDict(frozen=True)

    events: int
    dead: int
    dropped: int
    predictions: int
    late_rows: int
    lost: int
    duplicated: int
    labels_joined: int
    auc: float | None
    baseline_auc: float | None
    alerts: int
    events_per_second: float
    e2e_p50_ms: float | None
    e2e_p99_ms: float | None
    peak_rss_mb: float
    broker: str

    def failures(self) -> list[str]:
        """What is not as promised, in words; empty when all is well."""
        found = [
            f"{name} is {value}, and must be 0"
            for name, value in (("lost", self.lost), ("duplicated", self.duplicated), ("late_rows", self.late_rows))
            if value
        ]
        fates = self.predictions + self.dead + self.dropped
        if self.events != fates and not (self.lost or self.duplicated):
            found.append(f"events are {self.events}, and predictions + dead + dropped are {fates}")
        if self.auc is None or self.baseline_auc is None:
            found.append("no AUC: no labels of both classes met their predictions")
        elif self.auc <= self.baseline_auc:
            found.append(f"auc {self.auc:.4f} does not beat the baseline's {self.baseline_auc:.4f}")
        return found


def summarize(counts: Counts, tail: Tail, peak_rss_mb: float, broker: str) -> Summary:
    """The summary of a run."""
    p50, p99 = tail.latency.percentiles() or (None, None)
    return Summary(
        events=counts.events,
        dead=counts.dead,
        dropped=counts.dropped,
        predictions=counts.predictions,
        late_rows=counts.late_rows,
        lost=counts.lost,
        duplicated=counts.duplicated,
        labels_joined=len(counts.joined.times),
        auc=_rounded(counts.joined.auc(), 5),
        baseline_auc=_rounded(counts.joined.baseline_auc(), 5),
        alerts=counts.alerts,
        events_per_second=round(counts.events_per_second, 1),
        e2e_p50_ms=_rounded(p50, 1),
        e2e_p99_ms=_rounded(p99, 1),
        peak_rss_mb=round(peak_rss_mb, 1),
        broker=broker,
    )


def page(summary: Summary) -> str:
    """The page of results, for a terminal."""
    failures = summary.failures()
    rows = [
        ("raw messages", f"{summary.events:,}"),
        ("= predictions", f"{summary.predictions:,}"),
        ("+ dead letters", f"{summary.dead:,}"),
        ("+ dropped", f"{summary.dropped:,}"),
        ("lost, duplicated, late", f"{summary.lost}, {summary.duplicated}, {summary.late_rows}"),
        ("labels joined", f"{summary.labels_joined:,}"),
        ("AUC", f"{_told(summary.auc, '.4f')}, the baseline alone {_told(summary.baseline_auc, '.4f')}"),
        ("alerts", f"{summary.alerts:,}"),
        ("throughput", f"{summary.events_per_second:,.0f} events/s"),
        ("end to end", f"p50 {_told(summary.e2e_p50_ms, '.0f')} ms, p99 {_told(summary.e2e_p99_ms, '.0f')} ms"),
        ("peak memory", f"{summary.peak_rss_mb:,.0f} MiB, broker and workers"),
        ("broker", summary.broker),
    ]
    width = max(len(name) for name, _ in rows)
    verdict = "as promised" if not failures else "NOT as promised: " + "; ".join(failures)
    return "\n".join([*(f"  {name:<{width}}  {value}" for name, value in rows), "", f"  {verdict}"])


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)


def _told(value: float | None, form: str) -> str:
    return "unknown" if value is None else format(value, form)
