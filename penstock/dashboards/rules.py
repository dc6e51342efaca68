"""What a person is told, and what to do about it. The monitor's own findings come corrected for multiple testing: they
are passed on as they are.
"""

from typing import NamedTuple

from penstock import telemetry
from penstock.dashboards.queries import series


class Alert(NamedTuple):
    """``held``: how long the condition lasts before it is told."""

    name: str
    expr: str
    held: str
    severity: str
    summary: str
    mend: str


RULES = [
    Alert(
        "PenstockLag",
        f"max by (stage, topic) ({series(telemetry.LAG_SECONDS)}) > 60",
        "5m",
        "warning",
        "{{ $labels.stage }} is {{ $value | humanizeDuration }} behind on {{ $labels.topic }}",
        "Add a worker, up to one a partition, or look at where its time goes.",
    ),
    Alert(
        "PenstockNotReady",
        f"min by (stage, instance) ({series(telemetry.READY)}) == 0",
        "5m",
        "critical",
        "{{ $labels.stage }} on {{ $labels.instance }} has not been ready for five minutes",
        "/health/ready of that worker says what it waits for.",
    ),
    Alert(
        "PenstockReadingStopped",
        f"max by (stage, what) ({series(telemetry.STOPPED)}) == 1",
        "1m",
        "critical",
        "{{ $labels.stage }} reads nothing more: {{ $labels.what }}",
        "/health/ready of that worker says what it found and what mends it. Nothing is lost; the lag grows.",
    ),
    Alert(
        "PenstockDeadLetters",
        f"sum by (stage) (rate({series(telemetry.DEAD_LETTERS)}[5m]))"
        f" > 0.01 * sum by (stage) (rate({series(telemetry.RECORDS_IN)}[5m]))",
        "5m",
        "warning",
        "more than 1 % of what {{ $labels.stage }} reads becomes dead letters",
        "The dead letters' headers name the reasons; a producer has likely changed its schema.",
    ),
    Alert(
        "PenstockAborts",
        f'sum by (stage) (rate({series(telemetry.TRANSACTIONS)}{{outcome="aborted"}}[5m]))'
        f" > 0.1 * sum by (stage) (rate({series(telemetry.TRANSACTIONS)}[5m]))",
        "10m",
        "warning",
        "one transaction in ten of {{ $labels.stage }} is aborted",
        "Look for rebalances, fenced workers and rows that the broker refuses in the worker's log.",
    ),
    Alert(
        "PenstockModelFailures",
        f"sum by (model, version) (rate({series(telemetry.MODEL_FAILURES)}[5m])) > 0",
        "5m",
        "critical",
        "{{ $labels.model }} {{ $labels.version }} gives rows without a usable score",
        "Promote the last good version with `penstock model promote`, then look at the dead letters.",
    ),
    Alert(
        "PenstockFeastWrites",
        f"sum by (view, store) (rate({series(telemetry.FEAST_FAILURES)}[5m])) > 0",
        "5m",
        "warning",
        "writes of {{ $labels.view }} to Feast's {{ $labels.store }} store fail and are tried again",
        "What is served grows old until they succeed: look at the store.",
    ),
    Alert(
        "PenstockMonitorAlert",
        f"sum by (model, kind) (increase({series(telemetry.ALERTS)}[15m])) > 0",
        "0m",
        "warning",
        "the monitor has published alerts of kind {{ $labels.kind }} about {{ $labels.model }}",
        "The records on the pipeline's alerts topic name features, windows and values.",
    ),
]
