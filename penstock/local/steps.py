"""The slow steps before workers can start (compiling imports feast, training imports a machine-learning library), each
a process of its own on a leash: the demo stays small, goes on beside them, and takes them along when it ends.
"""

import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from penstock.local.launch import launch
from penstock.local.supervisor import OWN, tail

FOLLOW_EVERY_S = 0.05


class StepFailed(Exception):
    """A step did not succeed; the message holds the end of its log."""


class Step:
    """``python -m ARGUMENTS`` as it runs; a context manager that ends it. ``name`` is for people."""

    def __init__(self, name: str, arguments: Sequence[str], log_path: Path) -> None:
        self.name, self._log_path, self._read = name, log_path, 0
        log_path.parent.mkdir(parents=True, exist_ok=True)
        environ = {k: v for k, v in os.environ.items() if k not in OWN} | {"PYTHONUNBUFFERED": "1"}
        self._leash, self._pid = launch([sys.executable, "-m", *arguments], Path.cwd(), log_path, environ=environ)

    def wait(self, progress: Callable[[str], None] = lambda line: None) -> str:
        """Returns the last line that it said; ``progress`` hears those before. Raises ``StepFailed``."""
        last = ""
        while True:
            ended = self._leash.poll()
            for line in self._new_lines():
                if last:
                    progress(last)
                last = line
            if ended is not None:
                break
            time.sleep(FOLLOW_EVERY_S)
        self.close()
        if ended != 0:
            raise StepFailed(
                f"{self.name} failed (exit code {ended}). The end of {self._log_path}:\n{tail(self._log_path)}"
            )
        return last

    def close(self) -> None:
        """End it if it still runs."""
        with self._leash:  # its stdin closes, and what is left of the step is killed
            pass

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _new_lines(self) -> list[str]:
        with self._log_path.open("rb") as log:
            log.seek(self._read)
            said = log.read()
        whole = said.rpartition(b"\n")[0]
        self._read += len(whole) + 1 if whole else 0
        return whole.decode(errors="replace").splitlines() if whole else []
