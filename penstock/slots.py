"""A worker's slot on one machine, held by a file lock, so that two processes never share one transactional id by
mistake. Across machines the pod's name is the slot and Kafka fences the older holder.
"""

import fcntl
import os
from pathlib import Path
from types import TracebackType

from penstock.settings import InvalidSettings


class SlotTaken(Exception):
    """Another process on this machine holds the slot."""


class Slot:
    """Held while entered; given back by the kernel even after kill -9. Entering raises ``SlotTaken``, and
    ``InvalidSettings`` where nothing can be written to ``state_dir``."""

    def __init__(self, state_dir: Path, group: str, number: int) -> None:
        self._state_dir = state_dir
        self._path = state_dir / "slots" / f"{group}.{number}.lock"
        self._name = f"{group}.{number}"

    def __enter__(self) -> "Slot":
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("a+")
        except OSError as error:
            raise InvalidSettings(
                f"PENSTOCK_STATE_DIR={str(self._state_dir)!r}: {self._path} cannot be written: {error.strerror}. "
                "Set it to a folder that you may write to"
            ) from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.seek(0)
            holder = self._file.read().strip() or "unknown"
            self._file.close()
            raise SlotTaken(
                f"slot {self._name} is held by process {holder}. Give this worker another PENSTOCK_SLOT or stop that"
            ) from None
        self._file.truncate(0)
        self._file.write(str(os.getpid()))
        self._file.flush()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
