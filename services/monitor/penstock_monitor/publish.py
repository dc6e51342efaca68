"""A closed window told to the outside: metrics for Prometheus, rows for ``NAME.alerts``."""

from collections.abc import Iterable, Sequence

import pyarrow as pa

from penstock import telemetry
from penstock.plan import Plan
from penstock.profiles.rows import CLASS, CONFIDENCE, OUTCOME, SCORE, ProfileRow
from penstock_monitor.evaluate import Alert, drift_of, message_of, rankings_of
from penstock_monitor.references import References
from penstock_monitor.windows import Window

ALERTS = pa.schema(
    [
        ("alert_id", pa.string()),
        ("model", pa.string()),
        ("version", pa.string()),
        ("feature", pa.string()),
        ("kind", pa.string()),
        ("statistic", pa.string()),
        ("value", pa.float64()),
        ("threshold", pa.float64()),
        ("p_value", pa.float64()),
        ("rows", pa.int64()),
        ("window_start", pa.timestamp("ms")),
        ("window_end", pa.timestamp("ms")),
        ("message", pa.string()),
    ]
)


class Gauges:
    """Sets the metrics of closed windows. A late partial may close an old window again: a gauge shows the newest
    window only.
    """

    def __init__(self, plan: Plan) -> None:
        self._shown: dict[tuple[str, str, str], int] = {}
        # one measure of each topic stands for its rows
        topic = plan.pipeline.__add__
        self._topics = {SCORE: topic(".predictions"), OUTCOME: topic(".outcomes")}
        self._topics[plan.service.columns[0].name] = topic(".features")

    def count(self, rows: Iterable[ProfileRow]) -> None:
        """Counters of partials that were merged for the first time."""
        for row in rows:
            if row.feature in self._topics:
                telemetry.PROFILE_ROWS.labels(self._topics[row.feature]).inc(row.rows)
            if row.feature != OUTCOME:
                continue
            telemetry.LABELS_JOINED.labels(row.model).inc(row.rows)
            for side, count in (("prediction", row.expired_predictions), ("label", row.expired_labels)):
                if count:
                    telemetry.LABELS_UNMATCHED.labels(row.model, side).inc(count)

    def show(self, windows: Iterable[Window], references: References) -> None:
        """``windows``: just closed, oldest first."""
        for window in windows:
            telemetry.WINDOWS_CLOSED.labels(window.model).inc()
            measure = (window.model, window.version, window.feature)
            if not window.rows or window.start < self._shown.get(measure, window.start):
                continue
            self._shown[measure] = window.start
            self._show(window, references)

    def _show(self, window: Window, references: References) -> None:
        if window.feature == OUTCOME:
            telemetry.ACCURACY.labels(window.model, window.version).set(window.correct / window.rows)
            for ranking, area in rankings_of(window).items():
                telemetry.AUC.labels(window.model, window.version, ranking).set(area)
        elif window.feature == CONFIDENCE:
            telemetry.CONFIDENCE.labels(window.model, window.version).set(window.mean)
        elif window.feature == CLASS:
            total = max(int(window.bins.sum()), 1)
            for label, count in zip(("0", "1"), window.bins.tolist(), strict=False):
                telemetry.CLASS_SHARE.labels(window.model, window.version, label).set(count / total)
        else:
            telemetry.NULL_RATE.labels(window.model, window.feature).set(window.nulls / window.rows)
            if window.kind == "categorical":
                telemetry.UNSEEN.labels(window.model, window.feature).set(window.unseen / window.rows)
            drift = drift_of(window, references)
            if drift is not None:
                for statistic, value in zip(("psi", "js"), drift, strict=True):
                    telemetry.DRIFT.labels(window.model, window.feature, statistic).set(value)


def alert_rows(alerts: Sequence[Alert]) -> "pa.RecordBatch":
    """The alerts under ``ALERTS``."""
    columns = {
        "alert_id": [alert.id for alert in alerts],
        **{name: [getattr(a.finding.window, name) for a in alerts] for name in ("model", "version", "feature", "rows")},
        **{
            name: [getattr(a.finding, name) for a in alerts]
            for name in ("kind", "statistic", "value", "threshold", "p_value")
        },
        "window_start": [alert.finding.window.start for alert in alerts],
        "window_end": [alert.finding.window.end for alert in alerts],
        "message": [message_of(alert) for alert in alerts],
    }
    return pa.RecordBatch.from_arrays([pa.array(columns[field.name], field.type) for field in ALERTS], schema=ALERTS)
