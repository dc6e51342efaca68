"""The fork server, asked for small Python modules: what a child is given, how its end is told, who dies with whom."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock.local.forks import Child, Forks
from tests.unit.test_supervisor import is_alive, until

SLEEPER = """
import os, sys, threading, time
print(sys.argv[1:], os.environ["GIVEN"], "MARK" in os.environ, "penstock.worker" in sys.modules, flush=True)
print(threading.active_count(), __name__, flush=True)
time.sleep(60)
"""


class Asker:
    """``Forks`` with a folder of modules to run."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.ended = folder, threading.Event()
        given = {"PYTHONPATH": str(folder), "MARK": "of the server"}
        self.forks = Forks(folder / "forks.log", dict(os.environ) | given, self.ended.set)

    def start(self, script: str, *arguments: str) -> Child:
        name = f"module_{len(list(self.folder.glob('*.py')))}"
        (self.folder / f"{name}.py").write_text(script)
        self.log = self.folder / f"{name}.log"
        return self.forks.start([sys.executable, "-m", name, *arguments], self.log, {"GIVEN": "é\udcff"})

    def said(self) -> list[str]:
        return self.log.read_text(errors="replace").splitlines()


@pytest.fixture(scope="module")
def asker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asker]:
    """Its server has its libraries loaded once for all of these tests."""
    found = Asker(tmp_path_factory.mktemp("forks"))
    yield found
    found.forks.close()


def test_a_module_runs_in_a_fork_with_its_own_arguments_environment_and_log(asker: Asker) -> None:
    child = asker.start("import sys; sys.stdout.reconfigure(errors='surrogateescape')" + SLEEPER, "--slot", "3")
    assert until(lambda: asker.log.exists() and len(asker.said()) == 2, 60)
    assert asker.said()[0].startswith("['--slot', '3']")
    assert asker.said()[0].endswith("False True"), "nothing of the server's environment, all of its libraries"
    assert asker.said()[1] == "1 __main__"
    assert child.poll() is None
    if sys.platform == "linux":
        shown = Path(f"/proc/{child.pid}/cmdline").read_bytes().rstrip(b"\0").decode()
        assert " -m module_" in shown, "as `ps` and `pkill -f` see it"
        assert shown.rstrip().endswith("--slot 3")


@pytest.mark.parametrize(
    ("script", "code", "last"),
    [
        ("import sys; sys.exit(3)", 3, None),
        ("print('done')", 0, "done"),
        ("raise RuntimeError('out of luck')", 1, "RuntimeError: out of luck"),
        ("import os; os.kill(os.getpid(), 9)", 137, None),
        ("import atexit; atexit.register(print, 'at the end')", 0, "at the end"),
    ],
)
def test_a_child_ends_as_any_python_does(asker: Asker, script: str, code: int, last: str | None) -> None:
    asker.ended.clear()
    child = asker.start(script)
    assert child.wait(60) == code == child.poll()
    assert asker.ended.wait(5)
    assert asker.said()[-1:] == ([last] if last else [])


def test_any_other_command_is_executed(asker: Asker) -> None:
    script = "import os, sys; print(os.environ['GIVEN'] == 'x', 'penstock' in sys.modules)"
    asker.log = asker.folder / "other.log"
    child = asker.forks.start([sys.executable, "-c", script], asker.log, {"GIVEN": "x"})
    assert child.wait(60) == 0
    assert asker.said() == ["True False"]
    assert asker.forks.start(["/no/such/program"], asker.log, {}).wait(60) == 1
    assert asker.said()[-1].startswith("cannot run /no/such/program")


def test_children_die_with_the_server_and_the_next_one_gets_another(asker: Asker) -> None:
    child = asker.start(SLEEPER)
    server = int(Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(server, signal.SIGKILL)
    assert child.wait(20) == 137
    assert until(lambda: not is_alive(child.pid))
    assert asker.start("import sys; sys.exit(4)").wait(60) == 4


def test_closing_takes_along_what_is_left(tmp_path: Path) -> None:
    asker = Asker(tmp_path)
    child = asker.start(SLEEPER)
    asker.forks.close()
    assert child.poll() == 137
    assert until(lambda: not is_alive(child.pid))


def test_a_server_that_cannot_start_says_where_to_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asker = Asker(tmp_path)
    monkeypatch.setattr("penstock.local.forkserver.__name__", "no_such_module")
    with pytest.raises(OSError, match=r"no worker can be started.*forks\.log"):
        asker.start(SLEEPER)
    assert "no_such_module" in (asker.folder / "forks.log").read_text()
