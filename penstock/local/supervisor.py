"""Runs every stage of a plan as processes, restarts the ones that exit, and ends them all with itself.

Workers are forks of one process that has their libraries loaded (see forkserver.py): one that fell is back soon, and
nothing is left behind even when this process is killed with -9. A worker that keeps falling is not restarted for ever:
the supervisor gives up and says what its log ends with.
"""

import http.client
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import orjson
from pydantic import SecretStr

from penstock.local.forks import Child, Forks
from penstock.local.ports import free_port
from penstock.memory import resident_bytes
from penstock.plan import Plan
from penstock.settings import Settings

MOST_RESTARTS, RESTARTS_WITHIN_S = 8, 60.0
"""Two rows that kill their worker take six restarts to be found (``penstock.journal``)."""
FIRST_DELAY_S, LONGEST_DELAY_S = 0.2, 5.0
"""Before the second restart within that time, and at most. The first is at once."""
LOOK_EVERY_S = 0.1
TAIL_LINES = 12
OWN = ("PENSTOCK_SLOT", "PENSTOCK_METRICS_PORT", "PYTHONDONTWRITEBYTECODE")
"""Variables that a worker must not inherit: its own are set, and without bytecode each start is seconds slower."""


class WorkersFailed(Exception):
    """A worker cannot be kept running, or is not ready in time; the message holds why and where its log is."""


@dataclass(slots=True)
class Worker:
    """One process of one stage. ``restarts``: when it was started again, seconds of the monotonic clock."""

    stage: str
    slot: int
    log_path: Path
    port: int = 0
    pid: int | None = None
    process: "Child | subprocess.Popen[str] | None" = None
    restarts: deque[float] = field(default_factory=deque)
    due: float | None = None
    waiting_for: dict[str, str] = field(default_factory=dict)
    ready: bool = False

    @property
    def name(self) -> str:
        return f"{self.stage}.{self.slot}"

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def ask(self, path: str, timeout: float = 1.0) -> tuple[int, bytes] | None:
        """Status and body of the worker's HTTP server; None when it does not answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()

    def look(self) -> None:
        """Refresh ``ready`` and ``waiting_for``."""
        answer = self.ask("/health/ready")
        if answer is None:
            self.ready, self.waiting_for = False, {"start": "it does not answer yet"}
            return
        said = orjson.loads(answer[1])
        self.ready, self.waiting_for = bool(said["ready"]), said["waiting_for"]


class Supervisor:
    """Keeps ``workers[stage]`` processes of every stage of ``plan`` running; a context manager.

    ``plan_path``: the plan as the workers load it. ``tell`` hears of exits and restarts; ``command`` says how a worker
    is started. Logs are ``log_dir/STAGE.SLOT.log``, with those of earlier processes of the slot before.
    """

    def __init__(
        self,
        plan: Plan,
        plan_path: Path,
        settings: Settings,
        log_dir: Path,
        workers: Mapping[str, int] | None = None,
        tell: Callable[[str], None] = lambda line: None,
        command: Callable[["Worker", Path], list[str]] | None = None,
    ) -> None:
        counts = {stage.name: 1 for stage in plan.stages} | dict(workers or {})
        for stage in counts:
            plan.stage(stage)  # raises where the plan has none of that name
        self.workers = [
            Worker(stage, slot, log_dir / f"{stage}.{slot}.log") for stage, n in counts.items() for slot in range(n)
        ]
        self._plan_path, self._log_dir, self._tell = plan_path, log_dir, tell
        self._command = command or run_command
        inherited = {k: v for k, v in os.environ.items() if k not in OWN}
        self._environment = inherited | environment_of(settings)
        self._wake = threading.Event()
        self._forks = Forks(log_dir / "forks.log", inherited, self._wake.set)
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._failure: str | None = None
        self._watcher = threading.Thread(target=self._watch, name="supervisor", daemon=True)

    def start(self) -> None:
        """Start all workers; returns at once."""
        self._log_dir.mkdir(parents=True, exist_ok=True)
        for worker in self.workers:
            worker.log_path.unlink(missing_ok=True)
            self._launch(worker)
        self._watcher.start()

    def wait_ready(self, timeout: float = 60.0, progress: Callable[[int, int], None] = lambda done, of: None) -> None:
        """Return once every worker is ready. Raises ``WorkersFailed``, naming those that are not and why."""
        deadline = time.monotonic() + timeout
        missing = list(self.workers)
        while missing:
            self.check()
            for worker in missing:
                worker.look()
            missing = [worker for worker in self.workers if not worker.ready]
            progress(len(self.workers) - len(missing), len(self.workers))
            if missing and time.monotonic() > deadline:
                raise WorkersFailed(f"not ready after {timeout:.0f} s:\n" + "\n".join(map(_why_not, missing)))
            if missing:
                time.sleep(LOOK_EVERY_S)

    def check(self) -> None:
        """Raises ``WorkersFailed`` when a worker was given up."""
        if self._failure is not None:
            raise WorkersFailed(self._failure)

    @property
    def restarted(self) -> int:
        """How many times a worker was started again."""
        return sum(len(worker.restarts) for worker in self.workers)

    def resident_bytes(self) -> int:
        """Resident memory of all workers now; pages that they share count for each."""
        return sum(resident_bytes(worker.pid) for worker in self.workers if worker.pid is not None and worker.running)

    def stop(self, grace: float = 20.0) -> None:
        """SIGTERM to all, after ``grace`` seconds SIGKILL; returns when none is left. Safe to repeat."""
        self._stopping.set()
        self._wake.set()
        with self._lock:
            for worker in self.workers:
                _signal(worker, signal.SIGTERM)
            deadline = time.monotonic() + grace
            while (left := [w for w in self.workers if w.running]) and time.monotonic() < deadline:
                time.sleep(0.02)
            for worker in left:
                self._tell(f"{worker.name} did not stop within {grace:.0f} s and is killed; see {worker.log_path}")
                _signal(worker, signal.SIGKILL)
            for worker in self.workers:
                worker.pid = None
            self._forks.close()
        if self._watcher.is_alive():
            self._watcher.join()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop(grace=2.0)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _launch(self, worker: Worker) -> None:
        worker.port, worker.due, worker.ready = free_port(), None, False
        command = self._command(worker, self._plan_path)
        environ = self._environment | {"PENSTOCK_METRICS_PORT": str(worker.port)}
        worker.process = self._forks.start(command, worker.log_path, environ)
        worker.pid = worker.process.pid

    def _watch(self) -> None:
        while not self._stopping.is_set():
            self._wake.wait(LOOK_EVERY_S)
            self._wake.clear()
            with self._lock:
                if self._stopping.is_set() or self._failure is not None:
                    continue
                for worker in self.workers:
                    self._tend(worker, time.monotonic())

    def _tend(self, worker: Worker, now: float) -> None:
        if worker.due is None and not worker.running and worker.process is not None:
            self._plan_restart(worker, worker.process.poll(), now)
        if worker.due is not None and now >= worker.due:
            worker.restarts.append(now)
            try:
                self._launch(worker)
            except OSError as error:
                self._failure = str(error)
                self._tell(self._failure)

    def _plan_restart(self, worker: Worker, code: int | None, now: float) -> None:
        recent = sum(now - at < RESTARTS_WITHIN_S for at in worker.restarts)
        if recent >= MOST_RESTARTS:
            self._failure = (
                f"{worker.name} ended {recent + 1} times within {RESTARTS_WITHIN_S:.0f} s and is given up. "
                f"The end of {worker.log_path}:\n{tail(worker.log_path)}"
            )
            self._tell(self._failure)
            return
        delay = min(FIRST_DELAY_S * 2 ** (recent - 1), LONGEST_DELAY_S) if recent else 0.0
        worker.due, worker.ready = now + delay, False
        when = f"in {delay:.1f} s" if delay else "at once"
        why = last_said(worker.log_path) if code and 0 < code < 128 else None  # a signal leaves no last word
        self._tell(
            f"{worker.name} ended with exit code {code}; it starts again {when} (see {worker.log_path})"
            + (f": {why}" if why else "")
        )


def run_command(worker: Worker, plan_path: Path) -> list[str]:
    """``penstock run`` by this interpreter."""
    return [sys.executable, "-m", "penstock", "run", worker.stage, str(plan_path), "--slot", str(worker.slot)]


def environment_of(settings: Settings) -> dict[str, str]:
    """The variables from which ``Settings()`` reads the same settings again."""
    found = {}
    for name in Settings.model_fields:
        value = getattr(settings, name)
        if isinstance(value, SecretStr):
            value = value.get_secret_value()
        if value is not None and name not in ("slot", "metrics_port"):
            found[f"PENSTOCK_{name.upper()}"] = str(value)
    return found


def tail(log_path: Path, lines: int = TAIL_LINES) -> str:
    """The last lines of a log, for an error message."""
    try:
        said = log_path.read_text(errors="replace").splitlines()[-lines:]
    except OSError as error:
        return f"({error})"
    return "\n".join(said) or "(it is empty)"


def last_said(log_path: Path) -> str | None:
    """The message of the last line that says an error; None where there is none."""
    for line in reversed(tail(log_path).splitlines()):
        try:
            said = orjson.loads(line)
        except orjson.JSONDecodeError:
            if line.startswith("penstock: "):
                return line.removeprefix("penstock: ")
            continue
        if isinstance(said, dict) and said.get("level") in ("ERROR", "CRITICAL"):
            return str(said["message"])
    return None


def _why_not(worker: Worker) -> str:
    why = "; ".join(f"{what}: {reason}" for what, reason in worker.waiting_for.items())
    return f"  {worker.name}: {why or 'no answer'}. The end of {worker.log_path}:\n{tail(worker.log_path, 3)}"


def _signal(worker: Worker, number: signal.Signals) -> None:
    if worker.pid is None or not worker.running:
        return
    try:
        os.kill(worker.pid, number)
    except ProcessLookupError:
        return
