"""Starts a command under the leash (see leash.py), in its own session and with its output in a file."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from penstock.local import leash


def launch(
    command: Sequence[str],
    folder: Path,
    log_path: Path,
    *,
    detached: bool = False,
    environ: Mapping[str, str] | None = None,
) -> tuple[subprocess.Popen[str], int | None]:
    """The leash's process and the command's pid (None if it could not be started); `folder` is where it runs.

    The leash ends with the command. To end the command, signal it or close the leash's stdin. `environ`
    is its environment, this process' own if not given.
    """
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", leash.__file__, "release" if detached else "keep", *command],
            cwd=folder,
            env=environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            # Ctrl-C on the terminal is for the workers; the broker must outlast their last commit
            start_new_session=True,
        )
    assert process.stdout is not None
    said = process.stdout.readline().strip()
    return process, int(said) if said.isdigit() else None
