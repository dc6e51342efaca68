"""The command: its modules are loaded when called, and what goes wrong for a known reason is one line."""

import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner

from penstock.cli import dead
from penstock.cli.app import SUB_COMMANDS, app, load_command
from penstock.cli.new import make_pipeline
from penstock.dead.letters import Letter, Place
from penstock.models.control_topic import ControlUnavailable, read_control
from penstock.plan import PlanError
from penstock.settings import Settings
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


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("run nostage plan.json", "penstock: plan of 'shop' has no stage 'nostage'; it has inference"),
        ("run inference nosuch.json", "penstock: no plan at nosuch.json. Make it with"),
        ("run inference folder", "penstock: folder is no plan that can be read: Is a directory"),
        ("run inference cut.json", "penstock: cut.json: Invalid JSON: "),
        ("topics cut.json", "penstock: cut.json: Invalid JSON: "),
        ("plan nosuch", "penstock: 'nosuch' is not of the form module:name"),
        ("check nosuch", "'nosuch' is not of the form module:name"),
        ("doctor nosuch", "penstock: 'nosuch' is not of the form module:name"),
        (
            "dev nosuch --folder file",
            "penstock: the folder file/logs cannot be made or written to: Not a directory",
        ),
        ("demo --folder file", "penstock: the folder file/logs cannot be made or written to: Not a directory"),
        (
            "new shop --dir file",
            "penstock: file/shop cannot be made: Not a directory. Choose another folder with --dir",
        ),
        ("new file", "penstock: file cannot be made: File exists"),
        ("new class", "penstock: 'class' is a word of Python's own, so no module can be named so. Choose another name"),
        ("new async", "penstock: 'async' is a word of Python's own"),
        (
            "new numpy",
            "penstock: 'numpy' is an installed package, which the folder would hide. Choose another name",
        ),
        ("schemas check damaged", "damaged/schemas.lock cannot be read: Is a directory. Restore the file from git."),
        ("schemas register damaged --url http://127.0.0.1:1", "penstock: damaged/schemas.lock cannot be read"),
        ("model show shop 1.0.0 --registry file", "penstock: model shop 1.0.0: no manifest.json in file"),
        ("model list --registry http://127.0.0.1:1/x", "penstock: the registry cannot be used: "),
        ("model register folder", "penstock: folder/manifest.json: No such file or directory"),
        ("model status cut.json", "penstock: cut.json: Invalid JSON: "),
        ("dead list shop", "penstock: 'shop' is no topic of dead letters"),
        ("dead show shop.dead 0@0 --plan nosuch.json", "penstock: no plan at nosuch.json"),
        ("dead show shop.dead 0@0 --lock folder", "penstock: folder cannot be read: Is a directory"),
        (
            "dead replay shop.dead --patch nosuch",
            "penstock: 'nosuch' is not of the form module:name, e.g. mends:amount",
        ),
        ("broker start --data-dir /proc/x", "penstock broker: the folder /proc/x cannot be made or written to"),
        ("broker start --data-dir file", "penstock broker: file/broker.json cannot be read: Not a directory"),
        ("broker stop --data-dir file", "penstock broker: file/broker.json cannot be read: Not a directory"),
    ],
)
def test_wrong_input_is_a_line_that_names_it(
    command: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", "127.0.0.1:1")
    Path("folder").mkdir()
    Path("damaged/schemas.lock").mkdir(parents=True)
    Path("file").touch()
    Path("cut.json").write_text("{")
    plan().save(Path("plan.json"))
    failed = CliRunner().invoke(app, command.split())
    assert isinstance(failed.exception, SystemExit), failed.exception
    assert failed.exit_code in (1, 2)
    (line,) = [line for line in (failed.stdout + failed.stderr).splitlines() if said in line]
    assert not line.startswith("{")
    assert failed.stderr.count("\n") <= 1
    assert capfd.readouterr() == ("", "")
    assert {path.name for path in Path().iterdir()} <= {"folder", "damaged", "file", "cut.json", "plan.json"}


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("topics nosuch.json --json", "no plan at nosuch.json. Make it with"),
        ("model show shop 1.0.0 --json", "PENSTOCK_COMMIT_INTERVAL_MS='soon' is not allowed"),
        ("doctor nosuch --json", "PENSTOCK_COMMIT_INTERVAL_MS='soon' is not allowed"),
        ("dead list shop --json", "'shop' is no topic of dead letters"),
        ("demo --json --folder folder", "PENSTOCK_COMMIT_INTERVAL_MS='soon' is not allowed"),
        ("schemas register folder --json", "PENSTOCK_COMMIT_INTERVAL_MS='soon' is not allowed"),
        ("quarantine list nosuch.json --json", "PENSTOCK_COMMIT_INTERVAL_MS='soon' is not allowed"),
    ],
)
def test_a_program_hears_of_wrong_input_and_settings_in_json(
    command: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PENSTOCK_COMMIT_INTERVAL_MS", "soon")
    failed = CliRunner().invoke(app, command.split())
    assert failed.exit_code == 1
    assert said in json.loads(failed.stdout)["error"]
    assert failed.stderr == ""


def test_a_pipeline_may_be_made_in_an_empty_folder_that_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("waiting_shop").mkdir()
    assert make_pipeline("waiting_shop", Path()) == Path("waiting_shop")
    assert Path("waiting_shop/event.avsc").exists()


def test_who_serves_is_asked_without_a_word_of_the_client(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ControlUnavailable, match=r"shop.control cannot be read at 127\.0\.0\.1:1: .*Start the broker"):
        read_control(Settings(bootstrap_servers="127.0.0.1:1"), plan(), timeout=0.5)
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("option", "value", "limit"),
    [("--port", "99999999", "65535"), ("--heap-mb", "1", "64"), ("--heap-mb", "-5", "64")],
)
def test_a_number_that_a_broker_cannot_start_with_is_refused(option: str, value: str, limit: str) -> None:
    failed = CliRunner().invoke(app, ["broker", "start", option, value])
    assert failed.exit_code == 2
    assert option in failed.stderr
    assert limit in failed.stderr


def test_letters_of_one_millisecond_are_listed_by_number_and_those_there_are_where_none_is_chosen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    facts = {"penstock.reason": "wrong type", "__connect.errors.stage": "ingest"}
    found = [
        Letter(Place("shop.dead", 3, n), datetime(2026, 1, 1, tzinfo=UTC), None, b"", [], facts) for n in (10, 2, 11, 1)
    ]
    monkeypatch.setattr(dead, "letters", lambda _, __, chosen: filter(chosen.takes, found))
    listed = CliRunner().invoke(app, ["dead", "list", "shop.dead", "--json"])
    assert [json.loads(line)["letter"] for line in listed.stdout.splitlines()] == ["3@1", "3@2", "3@10", "3@11"]
    none = CliRunner().invoke(app, ["dead", "list", "shop.dead", "--reason", "wrongtype"])
    assert (none.exit_code, none.stdout) == (
        0,
        "no such letter in shop.dead; there are 4 of stage ingest for 'wrong type'\n",
    )


@pytest.mark.parametrize("out", ["file/plan.json", "folder"])
def test_a_plan_that_cannot_be_written_is_a_line(out: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(PlanError, match=f"the plan cannot be written to .*{out}: .*Name a file that you may write to"):
        plan().save(tmp_path / out)


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


def test_a_file_that_is_no_python_is_a_line_that_names_file_and_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "half_written.py").write_text("x = 1\ndef f(:\n")
    failed = CliRunner().invoke(app, ["plan", "half_written:pipeline"])
    assert failed.exit_code == 1
    assert failed.stderr == (
        f"penstock: {tmp_path}/half_written.py:2: invalid syntax. Mend that line, for 'half_written:pipeline'\n"
    )


def test_an_error_in_the_users_own_code_keeps_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "broken_pipeline.py").write_text("1 / 0\n")
    failed = CliRunner().invoke(app, ["plan", "broken_pipeline:pipeline"])
    assert isinstance(failed.exception, ZeroDivisionError)
    assert failed.stdout == ""
    asked = CliRunner().invoke(app, ["check", "broken_pipeline:pipeline", "--json"])
    assert isinstance(asked.exception, ZeroDivisionError)
    assert json.loads(asked.stdout) == {"error": "ZeroDivisionError: division by zero"}


def test_a_variable_that_is_nearly_a_setting_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_MAX_BATCHROWS", "3")
    told = CliRunner().invoke(app, ["plan", "no_such_module:pipeline", "--json"])
    assert "PENSTOCK_MAX_BATCHROWS is no setting and changes nothing. Is PENSTOCK_MAX_BATCH_ROWS meant?" in told.stderr
    assert set(json.loads(told.stdout)) == {"error"}


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
