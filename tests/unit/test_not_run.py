"""What a machine lacks is said where a run begins and at its end, with xdist as `make test` has it."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_without_a_prometheus_the_run_says_so_at_both_ends_and_fails_nothing(tmp_path: Path) -> None:
    away, said = tmp_path / "tests", tmp_path / "said"
    # a checkout in which nothing was fetched, on a machine whose PATH has neither Prometheus nor apt
    away.mkdir()
    for part in ("__init__.py", "conftest.py", "not_run.py", "prometheus.py"):
        (away / part).write_text((ROOT / "tests" / part).read_text())
    (away / "integration").mkdir()
    (away / "integration/test_prometheus.py").write_text("def test_scraped() -> None:\n    raise AssertionError\n")
    (away / "integration/test_other.py").write_text("def test_other() -> None:\n    pass\n")
    (tmp_path / "pyproject.toml").write_text('[tool.pytest.ini_options]\ntestpaths = ["tests"]\npythonpath = ["."]\n')
    environ = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_XDIST")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-n", "1", "tests/integration"],
        cwd=tmp_path,
        env={**environ, "PATH": "", "PENSTOCK_NOT_RUN": str(said)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    line = "not run: Prometheus, neither PATH nor apt gives one"
    assert done.stdout.splitlines().count(line) == 2
    assert "1 passed" in done.stdout
    assert said.read_text().splitlines() == [line]
