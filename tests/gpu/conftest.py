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
from tests import not_run
from tests.onnx_models import linear, plan

HERE = Path(__file__).parent


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if _missing() is None:
        return
    not_run.leave_out(config, items, HERE)


def pytest_report_collectionfinish() -> str | None:
    return f"not run: {_what()}" if _missing() else None


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _missing():
        not_run.tell(terminalreporter, _what())


def _what() -> str:
    return f"tests/gpu, no CUDA device ({_missing()})"


@cache
def _missing() -> str | None:
    why = no_cuda()
    if why is not None:
        return why
    content = {"model.onnx": linear().SerializeToString()}
    verified = VerifiedModel(Manifest.of(plan(), "1.0.0", content), "d" * 64, content)
    session = ScoreSession(verified, choose("auto"))
    return None if session.provider == CUDA else "the device is there, but CUDA's libraries for ONNX Runtime are not"
