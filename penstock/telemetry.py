"""Every metric of Penstock, declared in one place; the loop and the adapters emit them. Dashboards and alert rules are
generated from these names and checked against what ``/metrics`` really exports.
"""

from prometheus_client import Counter, Gauge, Histogram

# The loop, every stage
RECORDS_IN = Counter("penstock_records_in", "Rows read and finished (their transaction committed)", ["stage", "topic"])
RECORDS_OUT = Counter("penstock_records_out", "Rows written and committed", ["stage", "topic"])
DEAD_LETTERS = Counter("penstock_dead_letters", "Rows sent to the dead letters, by reason", ["stage", "reason"])
DROPPED = Counter("penstock_dropped", "Valid rows that are left out for a stated reason", ["stage", "reason"])
LATE_ROWS = Counter("penstock_late_rows", "Rows older than their partition's watermark less the lateness", ["stage"])
BATCH_ROWS = Histogram(
    "penstock_batch_rows", "Rows of a batch", ["stage"], buckets=(1, 8, 64, 512, 2048, 8192, 16384, 65536)
)
PHASE_SECONDS = Counter(
    "penstock_phase_seconds",
    "Time of the loop by phase: poll, decode, process, encode, send, commit",
    ["stage", "phase"],
)
COMMIT_SECONDS = Histogram(
    "penstock_commit_seconds",
    "Time of a transaction's commit",
    ["stage"],
    buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 2, 10),
)
TRANSACTIONS = Counter("penstock_transactions", "Transactions by outcome: committed, aborted", ["stage", "outcome"])
END_TO_END_SECONDS = Histogram(
    "penstock_end_to_end_seconds",
    "From the append of the raw record to the commit of the row that this stage made of it",
    ["stage"],
    buckets=(0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60),
)
LAG_RECORDS = Gauge(
    "penstock_consumer_lag_records", "Records between the committed offset and the end", ["stage", "topic", "partition"]
)
LAG_SECONDS = Gauge(
    "penstock_consumer_lag_seconds",
    "Age of the oldest row that is not yet committed; 0 without lag",
    ["stage", "topic", "partition"],
)
WATERMARK = Gauge(
    "penstock_watermark_seconds", "Largest event time, seconds since epoch", ["stage", "topic", "partition"]
)
ASSIGNED = Gauge("penstock_assigned_partitions", "Partitions this worker owns", ["stage"])
REBALANCES = Counter("penstock_rebalances", "Assignments that changed", ["stage"])
STALE_ROWS = Counter(
    "penstock_stale_rows", "Rows thrown away because their partition was revoked since they were fetched", ["stage"]
)
READY = Gauge("penstock_ready", "1 when the worker is ready", ["stage"])
STOPPED = Gauge(
    "penstock_reading_stopped", "1 while a worker reads nothing more: schemas, dead letters, memory", ["stage", "what"]
)
REPLAYED = Counter("penstock_replayed_records", "Rows read again to rebuild state", ["stage"])
REPLAY_LEFT = Gauge(
    "penstock_replay_records_left", "Rows still to be read before a partition is live", ["stage", "topic", "partition"]
)
STATE_BYTES = Gauge("penstock_state_bytes", "Memory of the state: a view's windows, the label join", ["stage", "view"])
MEMORY_LIMIT = Gauge("penstock_memory_limit_bytes", "What the worker's container may use; 0: no limit", ["stage"])
STATE_KEYS = Gauge("penstock_state_keys", "Keys in a view's windows, entries of the label join", ["stage", "view"])

UNCLEAN_STARTS = Counter("penstock_unclean_starts", "Partitions taken up whose worker had died with them", ["stage"])
SINGLE_STEPPING = Gauge(
    "penstock_single_stepping_partitions", "Partitions whose rows are taken one by one, for one may kill", ["stage"]
)
QUARANTINED = Gauge(
    "penstock_quarantined_rows", "Rows of this worker's partitions that killed one: never decoded again", ["stage"]
)

SNAPSHOTS = Counter("penstock_snapshots", "Snapshots by outcome: written, failed", ["stage", "outcome"])
SNAPSHOT_BYTES = Gauge(
    "penstock_snapshot_bytes", "Size of a partition's newest snapshot, unpacked", ["stage", "topic", "partition"]
)
SNAPSHOT_SECONDS = Histogram(
    "penstock_snapshot_seconds",
    "How long the loop stood still for a snapshot",
    ["stage"],
    buckets=(0.001, 0.01, 0.05, 0.1, 0.5, 2, 10),
)

# Feast writer
FEAST_ROWS = Counter("penstock_feast_rows", "Rows written to a store of Feast: online, offline", ["view", "store"])
FEAST_FAILURES = Counter(
    "penstock_feast_failures", "Writes to a store of Feast that failed and were tried again", ["view", "store"]
)
FEAST_UNREADABLE = Counter(
    "penstock_feast_unreadable", "Rows of a view's topic that cannot be decoded and are left out", ["view", "reason"]
)

# Inference
MODEL_INFO = Gauge(
    "penstock_model_info", "1 for the model version that serves", ["model", "version", "role", "provider"]
)
INFERENCE_SECONDS = Histogram(
    "penstock_inference_seconds",
    "Time of one run of the model",
    ["model"],
    buckets=(0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.05, 0.2, 1),
)
PREDICTIONS = Counter("penstock_predictions", "Predictions by what served them", ["model", "version", "served_by"])
MODEL_FAILURES = Counter(
    "penstock_model_failures", "Batches or rows for which a model gave no usable score", ["model", "version", "reason"]
)

# Monitor and the Faust merge
PROFILE_ROWS = Counter("penstock_profile_rows", "Rows reduced to profiles", ["topic"])
LABELS_JOINED = Counter("penstock_labels_joined", "Labels that met their prediction", ["model"])
LABELS_UNMATCHED = Counter(
    "penstock_labels_unmatched",
    "Labels without a prediction within the horizon, and predictions without a label",
    ["model", "side"],
)
DRIFT = Gauge(
    "penstock_drift",
    "Distance of the last closed window from the reference, by statistic: psi, js",
    ["model", "feature", "statistic"],
)
NULL_RATE = Gauge("penstock_null_rate", "Share of nulls in the last closed window", ["model", "feature"])
UNSEEN = Gauge("penstock_unseen_rate", "Share of categories the reference never saw", ["model", "feature"])
CONFIDENCE = Gauge("penstock_confidence_mean", "Mean confidence in the last closed window", ["model", "version"])
CLASS_SHARE = Gauge(
    "penstock_class_share", "Share of a predicted class in the last closed window", ["model", "version", "label"]
)
ACCURACY = Gauge(
    "penstock_accuracy", "Accuracy against the labels that arrived, last closed window", ["model", "version"]
)
AUC = Gauge(
    "penstock_auc",
    "Area under the ROC curve against the labels that arrived, last closed window",
    ["model", "version", "ranking"],
)
WINDOWS_CLOSED = Counter("penstock_windows_closed", "Monitoring windows closed", ["model"])
ALERTS = Counter("penstock_alerts", "Alerts published", ["model", "kind"])
