"""What a broker leaves in its data folder: which Kafka wrote it, its ports, and the process if one runs.

Whether that process still is our broker is read from the operating system, since a process id alone may by now
belong to something else: the broker's command line carries the folder's cluster id.
"""

import os
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from pydantic import BaseModel, ValidationError

STATE_NAME = "broker.json"


class BrokerError(RuntimeError):
    """The embedded broker cannot start, stop or use its folder; the message says what to do."""


class BrokerState(BaseModel):
    """`broker.json` of a data folder; `pid` is None when the broker was stopped in order."""

    kafka: str
    cluster_id: str
    port: int
    controller_port: int
    pid: int | None = None
    started_at: float = 0.0

    @property
    def bootstrap(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def mark(self) -> str:
        """The argument by which the broker of this folder is known among processes."""
        return f"-Dpenstock.cluster={self.cluster_id}"

    def running_pid(self) -> int | None:
        """The process id if the broker of this folder runs now."""
        return self.pid if self.pid is not None and self.mark in _command_line(self.pid) else None


def read_state(data_dir: Path) -> BrokerState | None:
    """The state in `data_dir`, None in a fresh folder; raises `BrokerError` on one that cannot be read."""
    path = data_dir / STATE_NAME
    try:
        return BrokerState.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise BrokerError(f"{path} cannot be read: {error.strerror}. Choose another folder.") from error
    except ValidationError as error:
        raise BrokerError(
            f"{path} is not the state of a broker ({type(error).__name__}). "
            f"Delete the folder {data_dir} to start with an empty broker, or choose another."
        ) from error


def make_folder(folder: Path) -> None:
    """Makes ``folder`` if it is not there; raises `BrokerError` when it cannot be made or written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise BrokerError(
            f"the folder {folder} cannot be made or written to: {error.strerror}. "
            "Choose another, or make it one that you may write to."
        ) from error


def write_state(data_dir: Path, state: BrokerState) -> None:
    partial = data_dir / f".{STATE_NAME}.{os.getpid()}"
    partial.write_text(state.model_dump_json(indent=1) + "\n", encoding="utf-8")
    partial.replace(data_dir / STATE_NAME)


def stop_process(state: BrokerState, timeout: float, first: signal.Signals = signal.SIGTERM) -> None:
    """Send `first` to the broker of `state`, after `timeout` seconds SIGKILL; returns when it is gone."""
    deadline = time.monotonic() + timeout
    send_signal(state, first)
    # a paused process would never see the first signal
    send_signal(state, signal.SIGCONT)
    while state.running_pid() is not None:
        if time.monotonic() > deadline:
            send_signal(state, signal.SIGKILL)
        time.sleep(0.02)


def send_signal(state: BrokerState, number: signal.Signals) -> None:
    """Send a signal to the broker of `state`; nothing if it does not run."""
    pid = state.running_pid()
    if pid is None:
        return
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def is_stopped(pid: int) -> bool:
    """Whether SIGSTOP has reached the process."""
    try:
        state = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0].decode()
    except OSError:
        listed = subprocess.run(["ps", "-o", "state=", "-p", str(pid)], capture_output=True, text=True, check=False)
        state = listed.stdout.strip()
    return state.startswith("T")


def data_bytes(data_dir: Path) -> int:
    """Bytes on disk under `data_dir`; Kafka's preallocated index files count as what they really hold."""
    total = 0
    for folder, _, names in os.walk(data_dir):
        for name in names:
            try:
                total += os.lstat(os.path.join(folder, name)).st_blocks * 512
            except FileNotFoundError:
                continue
    return total


def _command_line(pid: int) -> str:
    """The arguments of a live process; empty for one that is gone or only waits to be reaped."""
    if not Path("/proc/self/cmdline").exists():
        listed = subprocess.run(["ps", "-o", "args=", "-p", str(pid)], capture_output=True, text=True, check=False)
        return listed.stdout
    try:
        for _ in range(100):
            arguments = Path(f"/proc/{pid}/cmdline").read_bytes()
            if arguments or Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] in b"ZX":
                return arguments.decode(errors="replace")
            # in the middle of its exec a process has no arguments
            time.sleep(0.001)
    except OSError:
        pass
    return ""
