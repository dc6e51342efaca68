"""What a closed window says: how far it lies from the reference, whether that can be chance, and what people are
told.

An alarm needs four things: enough rows, an effect over its floor, a p-value below 0.05 after the correction over all
measures that close with it, and the same finding in the window before.
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from penstock.plan import MonitorPlan
from penstock.profiles.drift import benjamini_hochberg, g_test, js_distance, psi, rate_test
from penstock.profiles.ranking import auc_error, auc_of_counts
from penstock.profiles.reference import ReferenceProfile
from penstock.profiles.rows import CLASS, CONFIDENCE, OUTCOME, SCORE, Counts
from penstock_monitor.references import References
from penstock_monitor.windows import Window

SIGNIFICANCE = 0.05
UNSEEN_FLOOR = 0.01
AUC_FLOOR = 0.05

Before = Callable[[Window], Window | None]


@dataclass(frozen=True, slots=True)
class Finding:
    """One statistic of one window. ``p_value``: as computed, in an alert corrected; ``over_floor``: large enough to
    matter.
    """

    window: Window
    kind: str
    statistic: str
    value: float
    threshold: float
    p_value: float
    over_floor: bool
    message: str


@dataclass(frozen=True, slots=True)
class Alert:
    """A finding that is to be told. ``id`` is the same whenever it is sent again."""

    finding: Finding

    @property
    def id(self) -> str:
        window = self.finding.window
        name = f"{window.model}|{window.version}|{window.feature}|{self.finding.kind}|{window.start}"
        return hashlib.sha256(name.encode()).hexdigest()[:32]


def judge(closed: Sequence[Window], references: References, plan: MonitorPlan, before: Before) -> list[Alert]:
    """The alerts of windows that close now, whole families, oldest first. Notes in every window what it is over in; the
    caller keeps the windows.
    """
    alerts: list[Alert] = []
    for family in sorted({window.family for window in closed}):
        windows = [window for window in closed if window.family == family]
        findings = [finding for window in windows for finding in findings_of(window, references, plan)]
        corrected = benjamini_hochberg([finding.p_value for finding in findings])
        for window in windows:
            window.over = []
        for finding, p_value in zip(findings, corrected, strict=True):
            window = finding.window
            if window.rows < plan.minimum_rows or not finding.over_floor or p_value >= SIGNIFICANCE:
                continue
            window.over.append(finding.kind)
            earlier = before(window)
            if earlier is not None and finding.kind in earlier.over and finding.kind not in window.alerted:
                alerts.append(Alert(replace(finding, p_value=float(p_value))))
    return alerts


def findings_of(window: Window, references: References, plan: MonitorPlan) -> list[Finding]:
    """Every statistic of the window that its reference allows."""
    profile = references.by_version.get(window.version) if window.version else None
    profile = references.by_id(window.reference) or profile
    if profile is None or not window.rows:
        return []
    if window.feature == OUTCOME:
        return list(_rankings(window, profile))
    if window.feature == CONFIDENCE:
        return _compared(window, "confidence", profile.confidence, window.bins, plan)
    if window.feature == CLASS:
        counts = [profile.classes.get(name, 0) for name in ("0", "1")]
        return _compared(window, "class_share", counts, window.bins[:2], plan)
    column = profile.score if window.feature == SCORE else profile.columns.get(window.feature)
    if column is None or len(window.bins) != len(column.counts):
        return []
    found = _compared(window, "drift", column.counts, window.bins, plan)
    rate = window.nulls / window.rows
    found.append(
        Finding(
            window,
            "null_rate",
            "null_rate",
            rate,
            plan.null_rate,
            rate_test((column.nulls, column.n), (window.nulls, window.rows)),
            abs(rate - column.null_rate) > plan.null_rate,
            f"{rate:.1%} of {window.feature} are null, {column.null_rate:.1%} in the reference",
        )
    )
    if window.kind == "categorical" and column.complete:
        share = window.unseen / window.rows
        names = ", ".join(list(window.names)[:5])
        found.append(
            Finding(
                window,
                "unseen",
                "unseen_rate",
                share,
                UNSEEN_FLOOR,
                rate_test((0, column.n), (window.unseen, window.rows)),
                share > UNSEEN_FLOOR,
                f"{share:.1%} of {window.feature} are categories the reference never saw ({names})",
            )
        )
    return found


def drift_of(window: Window, references: References) -> tuple[float, float] | None:
    """PSI and Jensen-Shannon distance of a feature's window; None without a reference."""
    profile = references.by_id(window.reference)
    if profile is None or window.feature in (OUTCOME, CONFIDENCE, CLASS):
        return None
    column = profile.score if window.feature == SCORE else profile.columns.get(window.feature)
    if column is None or len(column.counts) != len(window.bins):
        return None
    return psi(column.counts, window.bins), js_distance(column.counts, window.bins)


def rankings_of(window: Window) -> dict[str, float]:
    """Areas under the ROC curve of an outcome's window: ``model`` and ``baseline``, where both classes came."""
    areas = {
        "model": auc_of_counts(window.positives, window.negatives),
        "baseline": auc_of_counts(window.baseline_positives, window.baseline_negatives),
    }
    return {name: area for name, area in areas.items() if area is not None}


def message_of(alert: Alert) -> str:
    """One line for people: what, when, how sure."""
    window = alert.finding.window
    day = datetime.fromtimestamp(window.start / 1000, UTC).strftime("%Y-%m-%d %H:%M")
    return (
        f"{alert.finding.message}; {window.rows} rows from {day} UTC, the second window in a row "
        f"(p = {alert.finding.p_value:.2g})"
    )


def _compared(window: Window, kind: str, reference: Sequence[int], counts: Counts, plan: MonitorPlan) -> list[Finding]:
    if len(reference) != len(counts):
        return []
    index, distance = psi(reference, counts), js_distance(reference, counts)
    what = {"drift": window.feature, "confidence": "the confidence", "class_share": "the mix of predicted classes"}[
        kind
    ]
    return [
        Finding(
            window,
            kind,
            "psi",
            index,
            plan.psi,
            g_test(reference, counts),
            # PSI alone is large where many bins are nearly empty; the bounded distance is not
            index > plan.psi and distance > plan.js,
            f"{what} has moved from the reference: PSI {index:.2f}, JS distance {distance:.2f}",
        )
    ]


def _rankings(window: Window, profile: ReferenceProfile) -> Iterable[Finding]:
    areas = rankings_of(window)
    if "model" not in areas:
        return
    area = areas["model"]
    error = auc_error(area, int(window.positives.sum()), int(window.negatives.sum()))
    against = {"auc": ("in the reference", profile.auc), "baseline": ("for the baseline alone", areas.get("baseline"))}
    floors = {"auc": AUC_FLOOR, "baseline": 0.0}
    for kind, (whose, other) in against.items():
        if other is None:
            continue
        floor = floors[kind]
        behind = other - floor - area
        yield Finding(
            window,
            kind,
            "auc",
            area,
            other - floor,
            _below(behind, error),
            behind > 0,
            f"AUC of version {window.version} is {area:.3f}, {other:.3f} {whose}",
        )


def _below(behind: float, error: float) -> float:
    """One-sided p-value that an estimate of this standard error lies ``behind`` by chance."""
    if error <= 0:
        return 0.0 if behind > 0 else 1.0
    return 0.5 * math.erfc(behind / error / math.sqrt(2))
