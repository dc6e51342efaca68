"""What a closed window says: alarms need rows, an effect, a corrected p-value and a second window that agrees."""

import numpy as np
import pyarrow as pa
import pytest
from penstock_monitor.evaluate import Alert, findings_of, judge, message_of
from penstock_monitor.publish import ALERTS, alert_rows
from penstock_monitor.references import References
from penstock_monitor.windows import Window

from penstock.plan import MonitorPlan
from penstock.profiles.reference import ReferenceProfile
from penstock.profiles.rows import OUTCOME

DAY = 86_400_000
PLAN = MonitorPlan(
    pane_ms=DAY, window_ms=DAY, idle_ms=1000, psi=0.2, js=0.1, null_rate=0.05, minimum_rows=500, baseline="delay"
)
RNG = np.random.default_rng(11)
SCORES = RNG.random(5000)
LABELS = (RNG.random(5000) < SCORES).astype(float)
PROFILE = ReferenceProfile.build(
    pa.table(
        {
            "delay": RNG.normal(0, 1, 5000),
            "carrier": RNG.choice(["AA", "UA", "B6"], 5000),
            **{f"clean{i}": RNG.normal(0, 1, 5000) for i in range(10)},
        }
    ),
    SCORES,
    LABELS,
    baseline="delay",
    version="1.0.0",
)
REFERENCES = References({"1.0.0": PROFILE})


def window(feature: str, counts: np.ndarray, day: int, **more: object) -> Window:
    rows = int(counts.sum()) + int(more.get("nulls", 0)) + int(more.get("unseen", 0))  # type: ignore[call-overload]
    kind = "categorical" if feature == "carrier" else "numeric"
    fields = {"rows": rows, "bins": counts.astype(np.int64), "applied": {0: 1}, **more}
    return Window("m", "", feature, kind, PROFILE.id, day * DAY, (day + 1) * DAY, **fields)  # type: ignore[arg-type]


def delays(shift: float, n: int, seed: int = 1) -> np.ndarray:
    values = np.random.default_rng(seed).normal(shift, 1, n)
    return np.bincount(np.searchsorted(PROFILE.columns["delay"].edges, values, side="right"), minlength=16)


def alerts(*days: list[Window]) -> list[Alert]:
    """The days close one after the other."""
    known: dict[tuple[str, str, int], Window] = {}
    found = []
    for closing in days:
        known.update({(w.version, w.feature, w.start): w for w in closing})
        some = judge(closing, REFERENCES, PLAN, lambda w: known.get((w.version, w.feature, w.start - DAY)))
        for alert in some:
            alert.finding.window.alerted.append(alert.finding.kind)
        found += some
    return found


def test_drift_is_told_in_the_second_window_that_shows_it() -> None:
    first, second = window("delay", delays(1, 2000), 0), window("delay", delays(1, 2000, 2), 1)
    assert alerts([first]) == []
    assert first.over == ["drift"]
    (alert,) = alerts([first], [second])
    assert (alert.finding.kind, alert.finding.statistic, alert.finding.window.start) == ("drift", "psi", DAY)
    assert alert.finding.value > 0.2
    assert alert.finding.p_value < 1e-6
    assert "delay has moved from the reference" in message_of(alert)
    assert "1970-01-02" in message_of(alert)


def test_a_single_odd_window_and_two_apart_are_not_told() -> None:
    odd = [window("delay", delays(1, 2000), 0)]
    assert alerts(odd, [window("delay", delays(0, 2000), 1)], [window("delay", delays(1, 2000), 2)]) == []


def test_few_rows_or_a_small_effect_are_no_alarm() -> None:
    few = [[window("delay", delays(2, 100, day), day)] for day in range(3)]
    small = [[window("delay", delays(0.15, 200_000, day), day)] for day in range(3)]
    assert alerts(*few) == []
    assert alerts(*small) == []
    (finding,) = [f for f in findings_of(small[0][0], REFERENCES, PLAN) if f.kind == "drift"]
    assert finding.p_value < 1e-10
    assert not finding.over_floor


def test_clean_features_stay_quiet_for_a_year() -> None:
    rng = np.random.default_rng(5)
    quiet = [
        [
            window(
                f"clean{i}",
                np.bincount(
                    np.searchsorted(PROFILE.columns[f"clean{i}"].edges, rng.normal(0, 1, 900), side="right"),
                    minlength=16,
                ),
                day,
            )
            for i in range(10)
        ]
        for day in range(365)
    ]
    assert alerts(*quiet) == []


def test_nulls_and_unseen_categories_are_told() -> None:
    days = []
    for day in range(2):
        counts = np.array([300, 300, 200, 0])
        days.append(
            [
                window("carrier", counts, day, unseen=60, names={"ZZ": 60}),
                window("delay", delays(0, 800, day), day, nulls=100),
            ]
        )
    told = {(a.finding.window.feature, a.finding.kind): a for a in alerts(*days)}
    assert ("carrier", "unseen") in told
    assert ("delay", "null_rate") in told
    assert "(ZZ)" in told["carrier", "unseen"].finding.message
    assert ("delay", "drift") not in told


def outcome(day: int, scores: np.ndarray, labels: np.ndarray, baseline: np.ndarray) -> Window:
    def counts(values: np.ndarray, n: int) -> np.ndarray:
        return np.bincount(np.minimum((values * n).astype(int), n - 1), minlength=n)

    positive = labels == 1
    return Window(
        "m", "1.0.0", OUTCOME, "outcome", "", day * DAY, (day + 1) * DAY,
        rows=len(scores), positives=counts(scores[positive], 1000), negatives=counts(scores[~positive], 1000),
        baseline_positives=counts(baseline[positive], 257), baseline_negatives=counts(baseline[~positive], 257),
        applied={0: 1},
    )  # fmt: skip


def test_a_model_that_ranks_no_better_than_chance_is_told_and_so_is_one_behind_its_baseline() -> None:
    rng = np.random.default_rng(4)
    labels = (rng.random(3000) < 0.4).astype(float)
    noise, good = rng.random(3000), np.clip(labels * 0.3 + rng.random(3000) * 0.7, 0, 1)
    bad = [[outcome(day, noise, labels, good)] for day in range(2)]
    assert {alert.finding.kind for alert in alerts(*bad)} == {"auc", "baseline"}
    fine = [[outcome(day, SCORES[:3000], LABELS[:3000], noise)] for day in range(2)]
    assert alerts(*fine) == []


def test_an_alert_is_told_once_and_has_the_same_id_when_it_is_sent_again() -> None:
    days = [[window("delay", delays(1, 2000, day), day)] for day in range(2)]
    (alert,) = alerts(*days)
    assert alerts(days[0], days[1]) == []
    days[1][0].alerted.clear()
    (again,) = alerts(*days)
    assert again.id == alert.id


def test_alerts_are_rows_of_their_schema() -> None:
    told = alerts(*[[window("delay", delays(1, 2000, day), day)] for day in range(2)])
    rows = alert_rows(told)
    assert rows.schema == ALERTS
    (row,) = rows.to_pylist()
    assert (row["model"], row["feature"], row["kind"], row["alert_id"]) == ("m", "delay", "drift", told[0].id)
    assert row["value"] > row["threshold"] == pytest.approx(0.2)


def test_without_a_reference_nothing_can_be_said() -> None:
    assert findings_of(window("delay", delays(3, 2000), 0), References(), PLAN) == []
