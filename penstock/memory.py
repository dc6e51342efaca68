"""A worker's memory against its limit: above it nothing more is read, what is buffered is worked off and given back to
the system; where that does not help, the worker ends and is started anew, before the kernel kills it in the middle.

Looked at is what is resident: an address-space limit would count what compiled kernels and clients only reserve.
"""

import ctypes
import gc
import os
import subprocess
from pathlib import Path

MIB = 1 << 20
PATIENCE_S = 30.0
CGROUP_SHARE = 0.9
"""Of a container's limit, at which the kernel kills: it counts more than what is resident."""
CGROUP_FILES = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


class OutgrownError(Exception):
    """A worker needs more memory than it may have."""


class Memory:
    """Of this process. ``limit``: bytes."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._over_since: float | None = None

    def look(self, now: float) -> str | None:
        """Why nothing more may be read, or None; tries to make it less first. Raises ``OutgrownError`` where it is too
        much for ``PATIENCE_S``."""
        held = resident_bytes(os.getpid())
        if held > self.limit:
            _give_back()
            held = resident_bytes(os.getpid())
        if held <= self.limit:
            self._over_since = None
            return None
        why = f"{held // MIB:,} MiB are resident, and the limit is {self.limit // MIB:,} MiB"
        if self._over_since is None:
            self._over_since = now
        elif now - self._over_since > PATIENCE_S:
            raise OutgrownError(f"{why}, for {PATIENCE_S:.0f} s")
        return f"{why} (PENSTOCK_MEMORY_LIMIT_MB). Raise it, or add a worker"


def memory_within(limit_mb: int) -> Memory | None:
    """What a worker looks at once a second; None where nothing limits it. Raises ``OutgrownError`` where the worker
    holds more before it has read anything: it would take partitions and read nothing of them."""
    limit = memory_limit(limit_mb)
    if limit is None:
        return None
    if (held := resident_bytes(os.getpid())) > limit:
        raise OutgrownError(
            f"{held // MIB:,} MiB are resident before anything is read, and the limit is {limit // MIB:,} MiB"
        )
    return Memory(limit)


def memory_limit(limit_mb: int) -> int | None:
    """The limit in bytes: the one that is set, else most of the container's; None where there is neither."""
    if limit_mb:
        return limit_mb * MIB
    most = cgroup_limit()
    return None if most is None else int(most * CGROUP_SHARE)


def cgroup_limit() -> int | None:
    """Bytes that this container may use; None where nothing limits it."""
    for path in CGROUP_FILES:
        try:
            limit = int(path.read_text())
        except (OSError, ValueError):  # ValueError: "max"
            continue
        return limit if limit < 1 << 60 else None
    return None


def resident_bytes(pid: int) -> int:
    """Resident memory of a process; 0 when it is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_bytes().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        pass
    if Path("/proc/self").exists():
        return 0
    listed = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return int(listed.stdout.strip() or 0) * 1024


def _give_back() -> None:
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
