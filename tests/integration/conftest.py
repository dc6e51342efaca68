"""Tests that need a Prometheus are left out where none can be had, and the run says so."""

from pathlib import Path

import pytest

from tests import not_run
from tests.prometheus import find_prometheus

NEEDING = Path(__file__).with_name("test_prometheus.py")
LEFT_OUT = pytest.StashKey[bool]()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    wanted = any(item.path == NEEDING for item in items)
    config.stash[LEFT_OUT] = wanted and find_prometheus() is None and not_run.leave_out(config, items, NEEDING)


def pytest_report_collectionfinish(config: pytest.Config) -> str | None:
    return "not run: Prometheus" if config.stash.get(LEFT_OUT, False) else None


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if config.stash.get(LEFT_OUT, False):
        not_run.tell(terminalreporter, "Prometheus")
