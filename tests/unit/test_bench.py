"""The benchmark's own parts: what its figures are compared with must be right, and the table must be the file's; and
every kind of case runs.
"""

import io
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from bench.cards import data as cards
from bench.processes import Measured
from bench.results import BEGIN, END, markdown, verdict, write_readme
from bench.run import run_cases
from bench.workshop import result

SOME = ["card_windows", "latency_5k"]
"""One of each way of measuring; ``make bench BENCH=--quick`` runs all cases."""


def test_the_reference_of_the_card_windows_is_what_a_look_at_every_event_gives() -> None:
    n = 3_000
    wanted = cards.reference(n)
    for event in (0, 1, 17, 1_500, n - 1):
        minute = wanted["ts"][event] // cards.TILE_MS
        seen = (
            (wanted["card_id"] == wanted["card_id"][event])
            & (np.arange(n) <= event)
            & (wanted["ts"] // cards.TILE_MS > minute - cards.TILES)
        )
        assert wanted["count_1h"][event] == seen.sum()
        assert wanted["sum_1h"][event] == pytest.approx(wanted["amount"][seen].sum())
        assert wanted["max_1h"][event] == wanted["amount"][seen].max()


def test_old_events_leave_the_reference_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cards, "STEP_MS", cards.TILE_MS * 30)
    monkeypatch.setattr(cards, "CARDS", 1)
    assert cards.reference(5)["count_1h"].tolist() == [1, 2, 2, 2, 2]


def test_range_max_looks_at_the_range_and_nothing_else() -> None:
    rng = np.random.default_rng(1)
    values = rng.normal(size=200)
    first = rng.integers(0, np.arange(200) + 1)
    assert cards.range_max(values, first).tolist() == [values[a : i + 1].max() for i, a in enumerate(first.tolist())]


def measured(rate: float) -> Measured:
    return Measured(rate, rate / 2, rss_mb=300.0, state_mb=0.0, seconds=1.0, phases={})


def test_a_ratio_is_taken_to_the_baseline_of_the_same_pair_and_the_median_counts() -> None:
    pairs = [(measured(50), measured(100)), (measured(90), measured(100)), (measured(60), measured(100))]
    found = result("a case", pairs)
    assert found["ratios"] == [0.5, 0.9, 0.6]
    assert (found["ratio"], found["events_per_second"]) == (0.6, 60)


def results(ratio: float, events: int = 3_000_000) -> dict[str, object]:
    case = {**result("ingest, Avro", [(measured(1e6 * ratio), measured(1e6))])}
    machine = {
        "cores": 2,
        "cpu": "a processor",
        "date": "2025-01-01T00:00:00+00:00",
        "commit": "abc",
        "load_before": [0.1],
    }
    return {"machine": machine, "events": events, "minutes": 9.5, "cases": {"ingest": case}}


@pytest.mark.parametrize(("ratio", "said"), [(0.61, "ratio ≥ 0.6: reached"), (0.59, "ratio ≥ 0.6: not reached")])
def test_a_target_is_said_to_be_reached_only_when_it_is(ratio: float, said: str) -> None:
    assert verdict(results(ratio), "ingest") == said


def test_a_quick_run_says_nothing_about_targets() -> None:
    assert verdict(results(0.9, events=20_000), "ingest") == ""


def test_the_readmes_table_replaces_the_last_one_and_leaves_the_rest(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    assert write_readme(results(0.7), readme)
    assert readme.read_text() == f"before\n{BEGIN}\n{markdown(results(0.7))}\n{END}\nafter\n"
    assert "| ingest, Avro | 700,000 |" in readme.read_text()


def test_a_readme_without_a_place_for_the_table_is_left_alone(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("no table here\n")
    assert not write_readme(results(0.7), readme)
    assert readme.read_text() == "no table here\n"


@pytest.mark.kafka
@pytest.mark.timeout(900)
def test_cases_run_and_their_outputs_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a few events: no figure is looked at."""
    monkeypatch.delenv("KAFKA_BOOTSTRAP_SERVERS", raising=False)
    said = io.StringIO()
    found = run_cases(SOME, 5_000, 1, tmp_path, "var/bench/models", quick=True, console=Console(file=said, width=200))
    assert list(found["cases"]) == SOME
    for name, case in found["cases"].items():
        figure = "p99_ms" if name.startswith("latency") else "events_per_second"
        assert case[figure] > 0, name
        assert case["baseline"][figure] > 0, name
