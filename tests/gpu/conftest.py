"""Tests that need a CUDA device are left out where there is none, and the run says so instead of counting them as
passed or skipped.
"""

from functools import cache
from pathlib import Path

import pytest
from penstock_inference.providers import CUDA, choose, no_cuda
from penstock_inference.session import ScoreSession

from penstock.models.manifest import Manifest
from penstock.models.verification import VerifiedModel
from tests.onnx_models import linear, plan

HERE = Path(__file__).parent


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if _missing() is None:
        return
    left_out = [item for item in items if HERE in item.path.parents]
    items[:] = [item for item in items if item not in left_out]
    config.hook.pytest_deselected(items=left_out)


def pytest_report_collectionfinish() -> str | None:
    return _not_run()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    missing = _not_run()
    if missing:
        terminalreporter.write_line(missing)


def _not_run() -> str | None:
    why = _missing()
    return None if why is None else f"not run: tests/gpu, no CUDA device ({why})"


@cache
def _missing() -> str | None:
    why = no_cuda()
    if why is not None:
        return why
    content = {"model.onnx": linear().SerializeToString()}
    verified = VerifiedModel(Manifest.of(plan(), "1.0.0", content), "d" * 64, content)
    session = ScoreSession(verified, choose("auto"))
    return None if session.provider == CUDA else "the device is there, but CUDA's libraries for ONNX Runtime are not"
