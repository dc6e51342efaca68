"""Queries built from the metric objects that ``telemetry`` declares, never from typed names, so that a renamed metric
cannot leave a panel or an alert behind.
"""

from collections.abc import Sequence
from typing import NamedTuple

from prometheus_client import Counter, Gauge, Histogram

Metric = Counter | Gauge | Histogram


class Query(NamedTuple):
    """``rare``: what it counts need not happen in a healthy run; it shows a line at 0 then."""

    expr: str
    legend: str
    rare: bool = False


def series(metric: Metric) -> str:
    """The name under which ``/metrics`` exports the metric's values."""
    [family] = metric.describe()
    return f"{family.name}_total" if isinstance(metric, Counter) else family.name


def rate(metric: Counter, *by: str, rare: bool = False) -> Query:
    """Events a second, by labels."""
    return _named(f"sum by ({', '.join(by)}) (rate({series(metric)}[$__rate_interval]))", by, rare)


def gauge(metric: Gauge, fold: str, *by: str, scale: str = "") -> Query:
    """``fold`` is ``sum``, ``max`` or ``min`` over what is not in ``by``."""
    return _named(f"{fold} by ({', '.join(by)}) ({series(metric)}){scale}", by, rare=False)


def quantile(metric: Histogram, q: float, *by: str) -> Query:
    """A quantile from the histogram's buckets."""
    expr = (
        f"histogram_quantile({q}, sum by ({', '.join((*by, 'le'))}) (rate({series(metric)}_bucket[$__rate_interval])))"
    )
    return Query(expr, f"{legend(by)} p{q * 100:g}")


def mean(metric: Histogram, *by: str) -> Query:
    """The mean of what was observed."""
    over = f"sum by ({', '.join(by)}) (rate({series(metric)}_%s[$__rate_interval]))"
    return Query(f"{over % 'sum'} / {over % 'count'}", legend(by))


def _named(expr: str, by: Sequence[str], rare: bool) -> Query:
    return Query(f"{expr} or vector(0)" if rare else expr, legend(by), rare)


def legend(by: Sequence[str]) -> str:
    return " ".join(f"{{{{{label}}}}}" for label in by)
