"""Every kind of case of the benchmark runs and counts what it must, on a few events: no figure is looked at."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from bench.run import CASES, run_cases

VARIANTS = {"ingest_json", "features_all", "inference_trees", "latency_20k"}
"""Run by the same code as the cases before them."""
KINDS = [name for name in CASES if name not in VARIANTS]


@pytest.mark.kafka
@pytest.mark.timeout(900)
def test_every_kind_of_case_runs_and_its_outputs_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KAFKA_BOOTSTRAP_SERVERS", raising=False)
    said = io.StringIO()
    found = run_cases(KINDS, 5_000, 1, tmp_path, "var/bench/models", quick=True, console=Console(file=said, width=200))
    assert list(found["cases"]) == KINDS
    for name, case in found["cases"].items():
        figure = "p99_ms" if name.startswith("latency") else "events_per_second"
        assert case[figure] > 0, name
        assert case["baseline"][figure] > 0, name
