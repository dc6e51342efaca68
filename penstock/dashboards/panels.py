"""What the dashboard shows: rows of panels, each with its queries and what a person reads it for."""

from collections.abc import Sequence
from typing import NamedTuple

from penstock import telemetry
from penstock.dashboards.queries import Query, gauge, mean, quantile, rate, series


class Panel(NamedTuple):
    """``unit`` as Grafana names it."""

    title: str
    description: str
    unit: str
    queries: Sequence[Query]


ROWS: dict[str, list[Panel]] = {
    "Lag": [
        Panel(
            "Lag, records",
            "Records between the committed offset and the end of each input. Scaling follows it.",
            "short",
            [gauge(telemetry.LAG_RECORDS, "sum", "stage", "topic")],
        ),
        Panel(
            "Lag, seconds",
            "Age of the oldest record that is not yet committed.",
            "s",
            [gauge(telemetry.LAG_SECONDS, "max", "stage", "topic")],
        ),
        Panel(
            "Event time reached",
            "The slowest partition's watermark: how far in the events' own time each stage has come.",
            "dateTimeAsIso",
            [gauge(telemetry.WATERMARK, "min", "stage", scale=" * 1000")],
        ),
        Panel(
            "Workers",
            "Ready workers, and partitions they own.",
            "short",
            [gauge(telemetry.READY, "sum", "stage"), gauge(telemetry.ASSIGNED, "sum", "stage")],
        ),
        Panel(
            "Rebuilding state",
            "Rows read again after a start, and rows left until every partition is live.",
            "short",
            [gauge(telemetry.REPLAY_LEFT, "sum", "stage"), rate(telemetry.REPLAYED, "stage", rare=True)],
        ),
        Panel(
            "Assignments that changed",
            "And rows thrown away because their partition was revoked after they were fetched: another has them.",
            "ops",
            [rate(telemetry.REBALANCES, "stage"), rate(telemetry.STALE_ROWS, "stage", rare=True)],
        ),
    ],
    "Rates": [
        Panel(
            "Rows in",
            "Rows read whose transaction is committed.",
            "ops",
            [rate(telemetry.RECORDS_IN, "stage", "topic")],
        ),
        Panel("Rows out", "Rows written and committed.", "ops", [rate(telemetry.RECORDS_OUT, "stage", "topic")]),
        Panel(
            "Rows of a batch", "Mean. Larger batches cost less a row.", "short", [mean(telemetry.BATCH_ROWS, "stage")]
        ),
        Panel(
            "Where the time goes",
            "Seconds a second that each phase of the loop takes; together at most 1 a worker.",
            "percentunit",
            [rate(telemetry.PHASE_SECONDS, "stage", "phase")],
        ),
        Panel(
            "Transactions",
            "By outcome. An abort is ordinary in a rebalance: the same rows are sent again.",
            "ops",
            [rate(telemetry.TRANSACTIONS, "stage", "outcome")],
        ),
        Panel(
            "Feast",
            "Rows written to Feast's stores, writes that failed and were tried again, and rows that cannot be read.",
            "ops",
            [
                rate(telemetry.FEAST_ROWS, "view", "store"),
                rate(telemetry.FEAST_FAILURES, "view", "store", rare=True),
                rate(telemetry.FEAST_UNREADABLE, "view", "reason", rare=True),
            ],
        ),
        Panel(
            "Snapshots",
            "Of a partition's state, written or failed: what a restart need not replay.",
            "ops",
            [rate(telemetry.SNAPSHOTS, "stage", "outcome", rare=True)],
        ),
    ],
    "Latency": [
        Panel(
            "End to end, p99",
            "From the append of the raw record to the commit of what this stage made of it.",
            "s",
            [quantile(telemetry.END_TO_END_SECONDS, 0.99, "stage")],
        ),
        Panel(
            "End to end, p50", "The same for the median.", "s", [quantile(telemetry.END_TO_END_SECONDS, 0.5, "stage")]
        ),
        Panel(
            "Commit, p99", "Time of a transaction's commit.", "s", [quantile(telemetry.COMMIT_SECONDS, 0.99, "stage")]
        ),
        Panel(
            "One run of the model",
            "Median and p99 of a batch.",
            "s",
            [quantile(telemetry.INFERENCE_SECONDS, q, "model") for q in (0.5, 0.99)],
        ),
    ],
    "Dead letters": [
        Panel(
            "Dead letters by reason",
            "Rows that could not go on. Each one's headers say where and why.",
            "ops",
            [rate(telemetry.DEAD_LETTERS, "stage", "reason", rare=True)],
        ),
        Panel(
            "Dropped",
            "Valid rows left out for a stated reason.",
            "ops",
            [rate(telemetry.DROPPED, "stage", "reason", rare=True)],
        ),
        Panel(
            "Rows that kill",
            "Partitions taken up from a worker that died, partitions read row by row to find the guilty one, and rows"
            " in quarantine.",
            "short",
            [
                rate(telemetry.UNCLEAN_STARTS, "stage", rare=True),
                gauge(telemetry.SINGLE_STEPPING, "sum", "stage"),
                gauge(telemetry.QUARANTINED, "sum", "stage"),
            ],
        ),
        Panel(
            "Late rows",
            "Older than their partition's watermark less the lateness: their windows are partly closed.",
            "ops",
            [rate(telemetry.LATE_ROWS, "stage", rare=True)],
        ),
    ],
    "Drift": [
        Panel(
            "Distance from the reference, PSI",
            "The last closed window of each feature. 0.1 is worth a look, 0.25 a cause.",
            "none",
            [
                Query(f'max by (model, feature) ({series(telemetry.DRIFT)}{{statistic="psi"}})', "{{feature}}"),
            ],
        ),
        Panel(
            "Distance from the reference, Jensen-Shannon",
            "The same by another measure, bounded by 1.",
            "none",
            [Query(f'max by (model, feature) ({series(telemetry.DRIFT)}{{statistic="js"}})', "{{feature}}")],
        ),
        Panel(
            "Nulls",
            "Share in the last closed window.",
            "percentunit",
            [gauge(telemetry.NULL_RATE, "max", "model", "feature")],
        ),
        Panel(
            "Unseen categories",
            "Share of values that the reference never saw.",
            "percentunit",
            [gauge(telemetry.UNSEEN, "max", "model", "feature")],
        ),
        Panel(
            "Profiles",
            "Rows reduced to profiles, and windows closed.",
            "ops",
            [rate(telemetry.PROFILE_ROWS, "topic"), rate(telemetry.WINDOWS_CLOSED, "model")],
        ),
        Panel("Alerts", "Published on the alerts topic.", "ops", [rate(telemetry.ALERTS, "model", "kind", rare=True)]),
    ],
    "Model": [
        Panel(
            "Accuracy",
            "Against the labels that have arrived, last closed window.",
            "percentunit",
            [gauge(telemetry.ACCURACY, "max", "model", "version")],
        ),
        Panel(
            "AUC",
            "The model's ranking beside the baseline's.",
            "none",
            [gauge(telemetry.AUC, "max", "model", "version", "ranking")],
        ),
        Panel(
            "Labels",
            "Labels that met their prediction, and those (either side) left without.",
            "ops",
            [rate(telemetry.LABELS_JOINED, "model"), rate(telemetry.LABELS_UNMATCHED, "model", "side", rare=True)],
        ),
        Panel(
            "Confidence",
            "Mean, last closed window.",
            "percentunit",
            [gauge(telemetry.CONFIDENCE, "max", "model", "version")],
        ),
        Panel(
            "Predicted classes",
            "Share of each, last closed window.",
            "percentunit",
            [gauge(telemetry.CLASS_SHARE, "max", "model", "version", "label")],
        ),
        Panel(
            "Who serves",
            "Predictions by what served them, and rows without a usable score.",
            "ops",
            [
                rate(telemetry.PREDICTIONS, "model", "version", "served_by"),
                rate(telemetry.MODEL_FAILURES, "model", "version", "reason", rare=True),
            ],
        ),
        Panel(
            "Version",
            "1 for the version that serves, by worker's provider.",
            "none",
            [gauge(telemetry.MODEL_INFO, "max", "model", "version", "role", "provider")],
        ),
    ],
}
