"""Workers and bare copies as processes of their own, started as production starts them, and followed from outside."""

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from prometheus_client.parser import text_string_to_metric_families

from bench.cluster import BenchError, Moving, Progress
from bench.machine import cpu_seconds, peak_rss_mb
from penstock.local.launch import launch
from penstock.local.ports import free_port
from penstock.plan import Plan

LOOK_S = 0.02
REST_S = 2.5
"""Silence after which stages whose number of rows is not known beforehand have read all there is."""
START_S, STILL_S = 90.0, 60.0


@dataclass(frozen=True, slots=True)
class Measured:
    """One run. ``rows`` a second of wall clock and of the processes' CPU, between the first and the last commit;
    ``rss_mb`` of the process that took most beside its state, over its whole life, and how much its state takes."""

    rows_per_second: float
    rows_per_cpu_second: float
    rss_mb: float
    state_mb: float
    seconds: float
    phases: dict[str, float]


class Process:
    """A context manager around one command."""

    def __init__(self, name: str, command: list[str], folder: Path, environ: dict[str, str]) -> None:
        self.name = name
        folder.mkdir(parents=True, exist_ok=True)
        self._log = folder / f"{name}.log"
        self._command, self._environ = command, {**os.environ, **environ}
        self._leash: subprocess.Popen[str] | None = None
        self.pid = 0

    def __enter__(self) -> Self:
        self._leash, pid = launch(self._command, Path.cwd(), self._log, environ=self._environ)
        if pid is None:
            raise BenchError(f"{self.name} could not be started; see {self._log}")
        self.pid = pid
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._leash is None:
            return
        if self._leash.poll() is None:
            try:
                os.kill(self.pid, signal.SIGTERM)
                self._leash.wait(20)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                pass
        with self._leash:  # closing its stdin ends what did not end by itself
            pass
        if self._leash.returncode and error is None:
            raise BenchError(f"{self.name} ended with status {self._leash.returncode}:\n{self.tail()}")

    def check(self) -> None:
        """Raises ``BenchError`` when the process has ended."""
        if self._leash is None or self._leash.poll() is not None:
            raise BenchError(f"{self.name} has ended:\n{self.tail()}")

    def wait(self, timeout: float) -> None:
        """Until it has ended by itself."""
        assert self._leash is not None
        try:
            self._leash.wait(timeout)
        except subprocess.TimeoutExpired:
            raise BenchError(f"{self.name} did not end within {timeout:.0f} s:\n{self.tail()}") from None

    def tail(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-12:])

    @property
    def ready(self) -> bool:
        return True

    def phases(self) -> dict[str, float]:
        """Seconds by phase of the loop; a bare copy has none."""
        return {}

    def state_mb(self) -> float:
        """What the state takes: windows, the label join."""
        return 0.0

    def wait_ready(self) -> None:
        deadline = time.monotonic() + START_S
        while not self.ready:
            self.check()
            if time.monotonic() > deadline:
                raise BenchError(f"{self.name} was not ready within {START_S:.0f} s:\n{self.tail()}")
            time.sleep(0.05)


class Worker(Process):
    """``penstock run STAGE PLAN``."""

    def __init__(self, stage: str, plan: Path, bootstrap: str, models: str, commit_ms: int, folder: Path) -> None:
        self._port, self._views = free_port(), Plan.load(plan).views
        environ = {
            "KAFKA_BOOTSTRAP_SERVERS": bootstrap,
            "PENSTOCK_COMMIT_INTERVAL_MS": str(commit_ms),
            "PENSTOCK_METRICS_PORT": str(self._port),
            "PENSTOCK_STATE_DIR": str(folder),
            "PENSTOCK_MODELS_URL": models,
        }
        super().__init__(stage, [sys.executable, "-m", "penstock", "run", stage, str(plan)], folder, environ)

    @property
    def ready(self) -> bool:
        return self._ask("/health/ready")[0] == 200

    def phases(self) -> dict[str, float]:
        found = {labels["phase"]: round(value, 3) for labels, value in self._metric("penstock_phase_seconds")}
        return dict(sorted(found.items(), key=lambda pair: -pair[1]))

    def state_mb(self) -> float:
        """What the plan says for the keys that the views hold; of the label join and the event ids, what they say."""
        held = {labels["view"]: value for labels, value in self._metric("penstock_state_bytes")}
        keys = {labels["view"]: value for labels, value in self._metric("penstock_state_keys")}
        planned = {view.name: view.key_bytes * keys[view.name] for view in self._views if view.name in keys}
        return sum({**held, **planned}.values()) / 2**20

    def _metric(self, name: str) -> list[tuple[dict[str, str], float]]:
        families = [f for f in text_string_to_metric_families(self._ask("/metrics")[1]) if f.name == name]
        return [(s.labels, s.value) for f in families for s in f.samples if not s.name.endswith("_created")]

    def _ask(self, path: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=5.0)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        except OSError:
            return 0, ""
        finally:
            connection.close()


class Copy(Process):
    """One bare copy of ``sources`` to ``target``."""

    def __init__(
        self, group: str, sources: list[str], target: str, bootstrap: str, commit_ms: int, folder: Path
    ) -> None:
        self._ready = folder / f"{group}.ready"
        self._ready.unlink(missing_ok=True)
        told = {
            "group": group,
            "sources": sources,
            "target": target,
            "commit_ms": commit_ms,
            "ready": str(self._ready.absolute()),
        }
        command = [sys.executable, "-m", "bench.bare_copy", json.dumps(told)]
        super().__init__(group, command, folder, {"KAFKA_BOOTSTRAP_SERVERS": bootstrap})

    @property
    def ready(self) -> bool:
        return self._ready.exists()


def follow(processes: Iterable[Process], first: Progress, others: Iterable[Moving] = ()) -> Measured:
    """Watches until ``first`` has committed all its rows and ``others`` have come to rest. The clock runs from the
    first commit that is seen to the last, so that neither side's start counts.
    """
    processes, others = list(processes), list(others)
    start: tuple[float, float, float] | None = None
    began = moved = time.perf_counter()
    end = (moved, 0.0)
    reached: tuple[float, ...] = ()
    while True:
        done = first.done()
        at = (done, *(other.offsets() for other in others))
        now, cpu = time.perf_counter(), sum(cpu_seconds(process.pid) for process in processes)
        if start is None and done > 0:
            # a quick run may be over with its first transaction
            start = (now, done, cpu) if done < first.rows else (began, 0.0, 0.0)
        if at != reached:
            reached, moved, end = at, now, (now, cpu)
        if start is not None and done >= first.rows and (not others or now - moved > REST_S):
            return _measured(processes, first.rows - start[1], end[0] - start[0], end[1] - start[2])
        for process in processes:
            process.check()
        if now - moved > (STILL_S if start else START_S):
            told = "\n".join(process.tail() for process in processes)
            raise BenchError(f"nothing was committed for {now - moved:.0f} s; committed so far: {at}\n{told}")
        time.sleep(LOOK_S)


def _measured(processes: list[Process], rows: float, seconds: float, cpu: float) -> Measured:
    phases: dict[str, float] = {}
    for process in processes:
        prefix = f"{process.name} " if len(processes) > 1 else ""
        phases |= {prefix + phase: spent for phase, spent in process.phases().items()}
    sizes = [(peak_rss_mb(process.pid), process.state_mb()) for process in processes]
    rss, state = max(sizes, key=lambda size: size[0] - size[1])
    return Measured(rows / max(seconds, LOOK_S), rows / max(cpu, LOOK_S), rss, state, seconds, phases)
