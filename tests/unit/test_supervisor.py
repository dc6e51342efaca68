"""The supervisor with tiny processes in the place of workers: what it does does not depend on what they do."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import penstock.local.supervisor as supervisor_module
from penstock.local.supervisor import Supervisor, Worker, WorkersFailed, environment_of
from penstock.memory import resident_bytes
from penstock.plan import Plan
from penstock.settings import Settings
from tests.unit.features_plan import plan as visits

SERVE = """
import json, os
from http.server import BaseHTTPRequestHandler, HTTPServer
class Answer(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"ready": not WAITING, "waiting_for": WAITING}).encode())
    def log_message(self, *args):
        pass
HTTPServer(("127.0.0.1", int(os.environ["PENSTOCK_METRICS_PORT"])), Answer).serve_forever()
"""
READY = f"WAITING = {{}}\n{SERVE}"
WAITS = f"WAITING = {{'model': 'no champion'}}\n{SERVE}"
FALLS = "import sys; sys.exit('out of luck')"
DEAF = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n{READY}"


@pytest.fixture
def one_stage() -> Plan:
    found = visits()
    return found.model_copy(update={"stages": found.stages[:1]})


def supervise(plan: Plan, folder: Path, script: str, slots: int = 1, tell: Callable[[str], None] = print) -> Supervisor:
    return Supervisor(
        plan,
        folder / "plan.json",
        Settings(),
        folder / "logs",
        {plan.stages[0].name: slots},
        tell,
        lambda worker, path: [sys.executable, "-c", script],
    )


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0]
    except OSError:
        return False
    return state not in b"ZX"


def until(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


def test_every_slot_of_a_stage_has_a_process_and_a_port_of_its_own(one_stage: Plan, tmp_path: Path) -> None:
    with supervise(one_stage, tmp_path, READY, slots=2) as supervisor:
        supervisor.wait_ready(20.0)
        assert len({worker.pid for worker in supervisor.workers}) == 2
        assert len({worker.port for worker in supervisor.workers}) == 2
        assert supervisor.resident_bytes() > 2 * 4 << 20
        pids = [worker.pid for worker in supervisor.workers]
    assert not any(is_alive(pid) for pid in pids if pid is not None)


def test_a_worker_that_is_killed_is_started_again(one_stage: Plan, tmp_path: Path) -> None:
    told: list[str] = []
    with supervise(one_stage, tmp_path, READY, tell=told.append) as supervisor:
        supervisor.wait_ready(20.0)
        worker = supervisor.workers[0]
        former = worker.pid
        assert former is not None
        os.kill(former, signal.SIGKILL)
        assert until(lambda: worker.running and worker.pid != former)
        supervisor.wait_ready(20.0)
    assert supervisor.restarted == 1
    assert any(worker.name in line and "starts again at once" in line for line in told)


def test_a_worker_that_cannot_be_started_again_is_told(
    one_stage: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no worker can be started")

    with supervise(one_stage, tmp_path, READY, tell=lambda line: None) as supervisor:
        supervisor.wait_ready(20.0)
        monkeypatch.setattr("penstock.local.forks.Forks.start", refuse)
        pid = supervisor.workers[0].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(WorkersFailed, match="no worker can be started"):
            supervisor.wait_ready(20.0)


def test_a_worker_that_keeps_falling_is_given_up_with_the_end_of_its_log(
    one_stage: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor_module, "LONGEST_DELAY_S", 0.2)
    with (
        supervise(one_stage, tmp_path, FALLS, tell=lambda line: None) as supervisor,
        pytest.raises(WorkersFailed, match=r"(?s)given up.*out of luck"),
    ):
        supervisor.wait_ready(60.0)


@pytest.mark.parametrize(
    "said",
    [
        "print(json.dumps({'level': 'ERROR', 'message': 'no such folder'}), flush=True); print('more', flush=True)",
        "print('penstock: no such folder', flush=True)",
    ],
)
def test_what_a_worker_said_last_is_told_with_its_end(one_stage: Plan, tmp_path: Path, said: str) -> None:
    told: list[str] = []
    script = f"import json, sys; {said}; sys.exit(3)"
    with supervise(one_stage, tmp_path, script, tell=told.append) as supervisor:
        deadline = time.monotonic() + 20
        while not told and time.monotonic() < deadline:
            time.sleep(0.05)
        log = supervisor.workers[0].log_path
    assert told[0].endswith(f"ended with exit code 3; it starts again at once (see {log}): no such folder")


def test_a_worker_that_was_killed_has_no_last_word(one_stage: Plan, tmp_path: Path) -> None:
    told: list[str] = []
    script = "import os; print('penstock: no such folder', flush=True); os.kill(os.getpid(), 9)"
    with supervise(one_stage, tmp_path, script, tell=told.append):
        deadline = time.monotonic() + 20
        while not told and time.monotonic() < deadline:
            time.sleep(0.05)
    assert told[0].endswith(".log)")


def test_what_is_not_ready_in_time_is_named_with_its_reason(one_stage: Plan, tmp_path: Path) -> None:
    with (
        supervise(one_stage, tmp_path, WAITS) as supervisor,
        pytest.raises(WorkersFailed, match=rf"(?s){one_stage.stages[0].name}.*no champion"),
    ):
        supervisor.wait_ready(3.0)


def test_a_worker_that_does_not_hear_sigterm_is_killed(one_stage: Plan, tmp_path: Path) -> None:
    supervisor = supervise(one_stage, tmp_path, DEAF)
    supervisor.start()
    supervisor.wait_ready(20.0)
    pid = supervisor.workers[0].pid
    supervisor.stop(grace=0.3)
    assert pid is not None
    assert not is_alive(pid)


def test_workers_die_with_a_supervisor_that_is_killed(tmp_path: Path) -> None:
    script = f"""
import sys, time
from pathlib import Path
import penstock.local.supervisor as supervisor_module
from penstock.local.supervisor import Supervisor
from penstock.settings import Settings
from tests.unit.features_plan import plan
found = plan()
found = found.model_copy(update={{"stages": found.stages[:1]}})
folder = Path({str(tmp_path)!r})
command = [sys.executable, "-c", {READY!r}]
supervisor = Supervisor(found, folder / "p", Settings(), folder, None, print, lambda worker, path: command)
supervisor.start()
supervisor.wait_ready(20.0)
print(supervisor.workers[0].pid, flush=True)
time.sleep(60)
"""
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    with parent.stdout:
        pid = int(parent.stdout.readline())
        assert is_alive(pid)
        parent.kill()
        parent.wait()
    assert until(lambda: not is_alive(pid))


def test_workers_get_the_settings_and_write_bytecode(
    one_stage: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setenv("PENSTOCK_SLOT", "7")
    script = (
        "import os, sys; print({k: v for k, v in os.environ.items() if k.startswith('P')}, file=sys.stderr)\n" + READY
    )
    with supervise(one_stage, tmp_path, script) as supervisor:
        supervisor.wait_ready(20.0)
        said = supervisor.workers[0].log_path.read_text()
    assert "PENSTOCK_COMMIT_INTERVAL_MS" in said
    assert "PENSTOCK_SLOT" not in said
    assert "PYTHONDONTWRITEBYTECODE" not in said


def test_settings_come_back_from_the_environment_that_is_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(
        bootstrap_servers="kafka:9093",
        security_protocol="SASL_SSL",
        sasl_mechanism="PLAIN",
        sasl_password="secret",
        commit_interval_ms=50,
    )
    for name, value in environment_of(settings).items():
        monkeypatch.setenv(name, value)
    assert Settings() == settings


def test_a_process_that_is_gone_has_no_memory() -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert resident_bytes(ended.pid) == 0
    assert resident_bytes(os.getpid()) > 10 << 20


def test_a_worker_that_does_not_listen_is_not_ready(tmp_path: Path) -> None:
    worker = Worker("ingest", 0, tmp_path / "log", port=1)
    worker.look()
    assert not worker.ready
    assert worker.waiting_for == {"start": "it does not answer yet"}
