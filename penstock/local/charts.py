"""The report's plots, as SVG text to put into a page: one function each, all in one look."""

import io
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib import dates
from matplotlib.figure import Figure

from penstock.local.drift_history import DriftHistory
from penstock.local.verify_counts import Joined
from penstock.profiles.ranking import auc

Floats = npt.NDArray[np.float64]
BLUE, ORANGE, GREY, RED, INK = "#2563a8", "#d9822b", "#9aa3ad", "#c0392b", "#22303c"
DAY_MS = 86_400_000
WEEK_MS = 7 * DAY_MS
FEWEST = 200
STYLE = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.grid": True,
    "grid.color": "#e6e9ec",
    "axes.axisbelow": True,
    "legend.frameon": False,
}


class _Drawing:
    svg = ""


@contextmanager
def drawing(width: float = 9.0, height: float = 3.0) -> Iterator[tuple[Any, _Drawing]]:
    """Axes to draw on; afterwards the drawing holds the SVG."""
    result = _Drawing()
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure.add_subplot(), result
        sink = io.StringIO()
        figure.savefig(sink, format="svg", transparent=True, metadata={"Date": None})
    result.svg = sink.getvalue()[sink.getvalue().index("<svg") :]


def delay_by_month(joined: Joined) -> str:
    """Share of late flights and mean prediction, by month."""
    months = joined.times.astype("datetime64[ms]").astype("datetime64[M]")
    names = [month for month in np.unique(months) if (months == month).sum() >= FEWEST]
    truth = np.array([joined.truth[months == m].mean() for m in names])
    said = np.array([np.nanmean(joined.scores[months == m]) for m in names])
    with drawing() as (axes, drawn):
        places = np.arange(len(names))
        axes.bar(places - 0.2, 100 * truth, 0.38, color=BLUE, label="late, of those that landed")
        axes.bar(places + 0.2, 100 * said, 0.38, color=ORANGE, label="mean prediction")
        axes.set_xticks(places, [datetime.fromisoformat(f"{m}-01").strftime("%b") for m in names])
        axes.set_ylabel("%")
        axes.grid(axis="x", visible=False)
        axes.legend(ncols=2, loc="upper center", bbox_to_anchor=(0.5, 1.15))
    return drawn.svg


def quality_by_week(joined: Joined) -> str:
    """AUC and accuracy by week, with what they have to beat."""
    weeks = joined.times // WEEK_MS
    starts = [week for week in np.unique(weeks) if (weeks == week).sum() >= FEWEST]
    parts = [weeks == week for week in starts]
    x = [_day(int(week) * WEEK_MS) for week in starts]

    def by_week(values: Floats) -> list[float]:
        return [area if (area := auc(values[part], joined.truth[part])) is not None else np.nan for part in parts]

    with drawing(height=3.4) as (axes, drawn):
        axes.plot(x, by_week(joined.scores), color=BLUE, lw=2, label="AUC of the model")
        axes.plot(x, by_week(joined.baseline), color=BLUE, lw=1.2, ls="--", label="AUC of the delay alone")
        axes.plot(x, [joined.correct[p].mean() for p in parts], color=ORANGE, lw=2, label="accuracy")
        rates = [joined.truth[p].mean() for p in parts]
        axes.plot(x, [max(r, 1 - r) for r in rates], color=ORANGE, lw=1.2, ls="--", label="of the commoner answer")
        _months(axes)
        axes.legend(ncols=4, loc="upper center", bbox_to_anchor=(0.5, 1.16), fontsize=9)
    return drawn.svg


def drift(history: DriftHistory) -> str:
    """PSI by feature and week, the most drifted feature on top."""
    rows = history.most_drifted()
    with drawing(height=1.2 + 0.22 * len(rows)) as (axes, drawn):
        image = axes.imshow(history.psi[rows], aspect="auto", cmap="YlOrRd", vmin=0, vmax=0.5, interpolation="nearest")
        axes.set_yticks(range(len(rows)), [history.features[row] for row in rows], fontsize=8)
        shown = range(0, len(history.weeks), max(1, len(history.weeks) // 9))
        axes.set_xticks(list(shown), [_day(history.weeks[i]).strftime("%d %b") for i in shown])
        axes.grid(visible=False)
        bar = axes.figure.colorbar(image, ax=axes, pad=0.01, fraction=0.03, extend="max")
        bar.set_label("PSI against the training data")
    return drawn.svg


def latency(at: Floats, ms: Floats) -> str:
    """p50 and p99 by second of the run."""
    seconds = np.floor(at - at.min()).astype(np.int64) if len(at) else np.empty(0, np.int64)
    present = np.unique(seconds)
    low, high = ([float(np.percentile(ms[seconds == second], q)) for second in present] for q in (50, 99))
    with drawing() as (axes, drawn):
        axes.plot(present, high, color=ORANGE, lw=1.2, label="p99")
        axes.plot(present, low, color=BLUE, lw=2, label="p50")
        axes.set_ylim(bottom=0)
        axes.set_xlabel("seconds since the first prediction")
        axes.set_ylabel("ms")
        axes.legend(ncols=2, loc="upper right")
    return drawn.svg


def throughput(appended: npt.NDArray[np.int64]) -> str:
    """Predictions committed in each second of the run."""
    seconds = (appended - appended.min()) // 1000 if len(appended) else appended
    counts = np.bincount(seconds)
    with drawing(height=2.6) as (axes, drawn):
        axes.fill_between(np.arange(len(counts)), counts, step="mid", color=BLUE, alpha=0.8, lw=0)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("seconds since the first prediction")
        axes.set_ylabel("predictions / s")
    return drawn.svg


def dead_letters(reasons: Counter[str]) -> str:
    """How many by reason."""
    ranked = reasons.most_common()[::-1]
    with drawing(height=0.8 + 0.24 * max(1, len(ranked))) as (axes, drawn):
        bars = axes.barh([reason for reason, _ in ranked], [n for _, n in ranked], color=RED, height=0.7)
        axes.bar_label(bars, padding=3, fontsize=8)
        axes.grid(axis="y", visible=False)
    return drawn.svg


def _months(axes: Any) -> None:
    axes.xaxis.set_major_locator(dates.MonthLocator())
    axes.xaxis.set_major_formatter(dates.DateFormatter("%b"))


def _day(ms: int) -> datetime:
    return datetime.fromtimestamp(ms / 1000, UTC)
