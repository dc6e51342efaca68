"""``penstock demo`` and ``penstock dev`` as a person runs them, on a slice of the year: what they count, and that
nothing is left when they are interrupted or killed. The expensive part, compiling and training, is done once.
"""

import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import pytest

from penstock.local.resolve import VARIABLE

pytestmark = pytest.mark.kafka

KEYS = (
    "events dead dropped predictions late_rows lost duplicated labels_joined auc baseline_auc alerts "
    "events_per_second e2e_p50_ms e2e_p99_ms peak_rss_mb broker"
)
DEPARTURES, BROKEN = 8_000, 300


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


ON_A_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
"""Makes standard input the terminal of its session: Ctrl-C there reaches all who are in its foreground."""


class Run:
    """A command with its own mark in the environment, which everything that it starts inherits. ``terminal``: on one of
    its own, else it writes to a pipe."""

    def __init__(self, *arguments: str, terminal: bool = False) -> None:
        self.mark = f"PENSTOCK_TEST_MARK={uuid4().hex}"
        name, _, value = self.mark.partition("=")
        environ = {k: v for k, v in os.environ.items() if k != VARIABLE} | {name: value, "PYTHONUNBUFFERED": "1"}
        ours, its = pty.openpty() if terminal else os.pipe()
        self.process = subprocess.Popen(
            [sys.executable, *(["-c", ON_A_TERMINAL] if terminal else []), "-m", "penstock", *arguments],
            stdin=its if terminal else None,
            stdout=its,
            stderr=its,
            env=environ | ({"TERM": "xterm", "COLUMNS": "140", "LINES": "50"} if terminal else {}),
            start_new_session=terminal,
        )
        os.close(its)
        self.output = os.fdopen(ours, errors="replace")
        self.lines: list[str] = []

    def said(self) -> Iterator[str]:
        """Lines as they come."""
        with suppress(OSError):  # which is how a terminal ends
            yield from (line.rstrip() for line in self.output)

    def read_until(self, part: str) -> None:
        """Reads lines until one holds ``part``."""
        for line in self.said():
            self.lines.append(line)
            if part in line:
                return
        raise AssertionError(f"it ended without saying {part!r}:\n" + "\n".join(self.lines[-30:]))

    def end(self, how: signal.Signals | bytes) -> int:
        """By a signal, or by keys pressed on its terminal."""
        if isinstance(how, bytes):
            os.write(self.output.fileno(), how)
        else:
            self.process.send_signal(how)
        self.lines += self.said()
        return self.process.wait(60)

    def left(self, seconds: float) -> list[str]:
        """What still runs of it after up to ``seconds``."""
        deadline = time.monotonic() + seconds
        while (found := list(self._marked())) and time.monotonic() < deadline:
            time.sleep(0.1)
        return found

    def _marked(self) -> Iterator[str]:
        for environ in Path("/proc").glob("[0-9]*/environ"):
            try:
                if self.mark.encode() in environ.read_bytes():
                    state = environ.with_name("stat").read_bytes().rpartition(b")")[2].split()[0]
                    if state not in b"ZX":
                        command = environ.with_name("cmdline").read_bytes().replace(b"\0", b" ").decode()
                        yield f"{environ.parent.name}: {command[:200]}"
            except OSError:
                continue

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self.output.close()


def demo(folder: Path, *more: str, terminal: bool = False) -> Run:
    return Run("demo", "--folder", str(folder), *more, terminal=terminal)


@pytest.mark.timeout(600)
def test_a_slice_of_the_year_is_counted_exactly_and_kept_until_ctrl_c(folder: Path) -> None:
    with demo(folder, "--limit", str(DEPARTURES), "--speed", "max", "--keep") as run:
        run.read_until("Ctrl-C ends everything")
        assert any("/metrics" in line for line in run.lines)
        assert len(run.left(0)) > 8
        code = run.end(signal.SIGINT)
        assert run.left(10) == []
    assert run.lines[0].startswith("broker: embedded Apache Kafka")
    summary = json.loads((folder / "summary.json").read_text())
    assert list(summary) == KEYS.split()
    assert summary["events"] == DEPARTURES + BROKEN
    assert summary["dead"] == BROKEN
    assert summary["events"] == summary["predictions"] + summary["dead"] + summary["dropped"]
    assert (summary["lost"], summary["duplicated"], summary["late_rows"]) == (0, 0, 0)
    assert 0 < summary["predictions"] - summary["labels_joined"] < 0.02 * DEPARTURES
    # about 0.008 more, by data, seed and slice that never change; the order of partitions moves it by far less
    assert summary["auc"] > summary["baseline_auc"] + 0.003
    assert summary["auc"] > 0.8
    assert 1 <= summary["e2e_p50_ms"] <= summary["e2e_p99_ms"]
    assert summary["peak_rss_mb"] > 500
    assert code == 0
    report = (folder / "report.html").read_text()
    assert report.count("<svg") == 6
    assert "unknown schema id" in report


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("moment", "number", "departures"),
    [
        ("broker:", signal.SIGINT, 20_000),  # the broker is being started
        ("kept", signal.SIGTERM, 20_000),  # topics are made, nothing runs yet
        ("starting", signal.SIGINT, 20_000),  # workers are starting
        ("counting: late rows", signal.SIGINT, 2_000),  # it waits for the last windows
    ],
)
def test_an_interrupt_at_any_moment_leaves_no_process_behind(
    folder: Path, moment: str, number: signal.Signals, departures: int
) -> None:
    with demo(folder, "--limit", str(departures), "--speed", "max") as run:
        run.read_until(moment)
        time.sleep(0.5)
        assert run.end(number) == 130
        assert run.left(10) == []


@pytest.mark.timeout(600)
def test_an_interrupt_while_it_compiles_leaves_nothing_behind(tmp_path: Path) -> None:
    with demo(tmp_path, "--limit", "20000") as run:
        run.read_until("compiling")
        time.sleep(0.5)
        assert run.end(signal.SIGINT) == 130
        assert run.left(10) == []
    assert run.lines[-1] == "interrupted; everything that was started has ended"


@pytest.mark.timeout(600)
def test_on_a_terminal_the_view_is_shown_and_ctrl_c_in_the_middle_of_the_replay_ends_all(folder: Path) -> None:
    with demo(folder, "--limit", "20000", terminal=True) as run:
        for part in (" messages, ", "so far", "most drifted (PSI)"):
            run.read_until(part)
        assert run.end(b"\x03") == 130
        assert run.left(10) == []
    assert not any("events/s ·" in line for line in run.lines)  # what is told where there is no terminal
    assert run.lines[-1].endswith("\x1b[2Kinterrupted; everything that was started has ended")  # below no picture
    shown = "\n".join(run.lines)
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")  # the cursor is there again


@pytest.mark.timeout(600)
def test_a_demo_that_is_killed_takes_broker_and_workers_along(folder: Path) -> None:
    with demo(folder, "--limit", "20000") as run:
        run.read_until("sent")
        assert len(run.left(0)) > 8
        run.process.kill()
        run.process.wait()
        assert run.left(20) == []


@pytest.mark.timeout(600)
def test_dev_starts_any_pipeline_and_ends_with_ctrl_c(tmp_path: Path) -> None:
    with Run("dev", "pipelines.fraud.pipeline:pipeline", "--folder", str(tmp_path), "--json") as run:
        run.read_until('"bootstrap"')
        told = json.loads(run.lines[-1])
        assert told["topics"]["fraud.raw"] >= 1
        assert any(name.startswith("ingest.0") for name in told["workers"])
        run.read_until("ready")
        assert run.end(signal.SIGINT) == 0
        assert run.left(10) == []
