"""Asks the fork server (see forkserver.py) for processes, and knows how they ended."""

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from queue import Empty, Queue
from typing import IO

from penstock.local import forkserver

START_S = 60.0
"""Before its first child the server loads libraries, on a busy machine without bytecode for long."""


class Child:
    """A process of the fork server, with as much of ``Popen`` as is needed."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._gone = threading.Event()

    def end(self, code: int) -> None:
        """It has ended with ``code``, as shells have it."""
        self.returncode = code
        self._gone.set()

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Its code. Raises ``subprocess.TimeoutExpired``."""
        if not self._gone.wait(timeout) or self.returncode is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout or 0.0)
        return self.returncode


class Forks:
    """The fork server of one asker. It is started for the first child, and anew for the next one should it have died;
    its children die with it. One thread at a time may call ``start``.

    ``log_path``: where the server's own words go; ``ended`` is called whenever a child has ended, in another thread.
    """

    def __init__(self, log_path: Path, environ: Mapping[str, str], ended: Callable[[], None]) -> None:
        self._log_path, self._ended = log_path, ended
        self._environ = dict(environ) | forkserver.ENVIRONMENT
        self._server: subprocess.Popen[str] | None = None
        self._started: Queue[Child | None] = Queue()
        self._reader = threading.Thread()

    def start(self, command: Sequence[str], log_path: Path, environ: Mapping[str, str]) -> Child:
        """Runs ``command`` with exactly this environment, its output appended to ``log_path``. What cannot be run ends
        at once and says why there. Raises OSError when the server itself cannot be started."""
        server = self._serving()
        assert server.stdin is not None
        try:
            asked = {"argv": list(command), "log": str(log_path), "environ": dict(environ)}
            server.stdin.write(json.dumps(asked) + "\n")
            server.stdin.flush()
            child = self._started.get(timeout=START_S)
        except (BrokenPipeError, Empty):
            child = None
        if child is None:
            server.kill()  # it may hang, and would not hear that its stdin ends
            self.close()
            raise OSError(f"no worker can be started. The end of {self._log_path} says why")
        return child

    def close(self) -> None:
        """Ends the server and every child that is left."""
        if self._server is None:
            return
        assert self._server.stdin is not None
        with suppress(BrokenPipeError):  # of a request that a dead server did not read
            self._server.stdin.close()
        self._reader.join()
        with self._server:
            self._server = None

    def _serving(self) -> "subprocess.Popen[str]":
        if self._server is not None and self._server.poll() is not None:
            self.close()
        if self._server is None:
            with self._log_path.open("ab") as log:
                self._server = subprocess.Popen(
                    [sys.executable, "-m", forkserver.__name__, forkserver.ROOM],
                    env=self._environ,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                    # Ctrl-C on the terminal is for the asker, who ends all in order
                    start_new_session=True,
                )
            assert self._server.stdout is not None
            self._started = Queue()
            self._reader = threading.Thread(target=self._read, args=[self._server.stdout], name="forks", daemon=True)
            self._reader.start()
        return self._server

    def _read(self, said: IO[str]) -> None:
        children: dict[int, Child] = {}
        started = self._started
        for line in said:
            word = json.loads(line)
            if "started" in word:
                child = children[word["started"]] = Child(word["started"])
                started.put(child)
            else:
                children.pop(word["ended"]).end(word["code"])
                self._ended()
        for child in children.values():  # they died with the server
            child.end(128 + signal.SIGKILL)
        started.put(None)
        self._ended()
