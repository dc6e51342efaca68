"""The command: its modules are loaded when called, and what goes wrong for a known reason is one line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from penstock.cli.app import SUB_COMMANDS, app, load_command
from penstock.plan import PlanError
from tests.onnx_models import plan


def test_every_sub_command_is_there_and_shown() -> None:
    shown = CliRunner().invoke(app, ["--help"])
    assert shown.exit_code == 0
    for name in SUB_COMMANDS:
        assert load_command(name) is not None
        assert f" {name} " in shown.output


@pytest.mark.parametrize("name", sorted(SUB_COMMANDS))
def test_a_sub_command_explains_itself(name: str) -> None:
    shown = CliRunner().invoke(app, [name, "--help"])
    assert shown.exit_code == 0, shown.output
    assert "Usage" in shown.output


def test_the_command_starts_without_what_is_heavy() -> None:
    code = (
        "import sys, penstock.cli.app; print([m for m in ('numpy', 'pyarrow', 'numba', 'feast') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


INTERRUPTED = """
import os, signal
os.kill(os.getpid(), signal.SIGINT)
for _ in range(1000):
    pass
raise SystemExit("Ctrl-C was not heard")
"""
SWALLOWS_IT = """
import os, signal
try:
    os.kill(os.getpid(), signal.SIGINT)
    for _ in range(1000):
        pass
except KeyboardInterrupt:
    raise SystemExit("Ctrl-C was this library's to handle") from None
raise SystemExit("Ctrl-C was not heard")
"""


@pytest.mark.parametrize("start", [["-m", "penstock"], [str(Path(sys.executable).with_name("penstock"))]])
@pytest.mark.parametrize(
    ("library", "command", "imported"),
    [
        ("typer", "demo", SWALLOWS_IT),
        ("rich", "dead list p.dead", SWALLOWS_IT),
        ("feast", "check a:b", INTERRUPTED),  # by the command itself, which may have something to end in order
    ],
)
def test_ctrl_c_while_libraries_are_imported_ends_quietly(
    start: list[str], library: str, command: str, imported: str, tmp_path: Path
) -> None:
    (tmp_path / f"{library}.py").write_text(imported)
    done = subprocess.run(
        [sys.executable, *start, *command.split()],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_a_command_that_is_to_ignore_ctrl_c_goes_on_ignoring_it(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text(INTERRUPTED)
    done = subprocess.run(
        ["sh", "-c", 'trap "" INT; exec "$0" -m penstock demo', sys.executable],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (1, "Ctrl-C was not heard\n")


def test_a_known_error_is_one_line_and_exit_1() -> None:
    failed = CliRunner().invoke(app, ["plan", "nowhere.pipeline:pipeline"])
    assert failed.exit_code == 1
    assert failed.stderr.startswith("penstock: 'nowhere.pipeline:pipeline': no module 'nowhere' on the path.")
    assert failed.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "command",
    [
        "run inference PLAN",
        "topics PLAN",
        "plan x:y",
        "dev x:y",
        "demo",
        "model list",
        "model status PLAN",
        "model promote PLAN 1.0.0",
        "schemas register .",
    ],
)
def test_every_command_that_reads_settings_names_the_wrong_ones(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    plan().save(Path("PLAN"))
    monkeypatch.setenv("PENSTOCK_GUARANTEE", "maybe")
    failed = CliRunner().invoke(app, command.split())
    assert failed.exit_code == 1
    assert failed.stderr == (
        "penstock: PENSTOCK_GUARANTEE='maybe' is not allowed. Give exactly_once or at_least_once\n"
    )


def test_a_slot_on_the_command_line_is_checked_as_one_in_the_environment(tmp_path: Path) -> None:
    plan().save(tmp_path / "plan.json")
    failed = CliRunner().invoke(app, ["run", "inference", str(tmp_path / "plan.json"), "--slot", "-1"])
    assert failed.exit_code == 1
    assert failed.stderr == "penstock: slot=-1 is not allowed. Give a whole number, at least 0\n"


def test_debug_shows_the_traceback() -> None:
    failed = CliRunner().invoke(app, ["--debug", "plan", "nowhere.pipeline:pipeline"])
    assert isinstance(failed.exception, PlanError)


def test_a_wrong_declaration_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "mistyped.py").write_text(
        "from penstock import Pipeline\npipeline = Pipeline(name='x', timestamp='t', feature_servis='f:s')\n"
    )
    failed = CliRunner().invoke(app, ["plan", "mistyped:pipeline"])
    assert failed.exit_code == 1
    assert failed.stderr.startswith("penstock: Pipeline(")
    assert failed.stderr.count("\n") == 1


def test_an_error_in_the_users_own_code_keeps_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "broken_pipeline.py").write_text("1 / 0\n")
    failed = CliRunner().invoke(app, ["plan", "broken_pipeline:pipeline"])
    assert isinstance(failed.exception, ZeroDivisionError)


def test_the_folder_of_the_call_is_on_the_path(tmp_path: Path) -> None:
    (tmp_path / "here_alone.py").write_text("pipeline = 1\n")
    done = subprocess.run(
        [sys.executable, "-c", "from penstock.cli.app import app; app()", "plan", "here_alone:pipeline"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "'here_alone:pipeline' is of type int, not a Pipeline" in done.stderr
