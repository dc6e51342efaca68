"""What the figures were measured on, and what a process has used, from /proc."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import confluent_kafka

from penstock.local.jars import KAFKA_VERSION

PACKAGES = ("penstock", "confluent-kafka", "pyarrow", "pyruhvro", "numpy", "numba", "onnxruntime", "feast")
_TICKS = os.sysconf("SC_CLK_TCK")


def describe(broker: str) -> dict[str, object]:
    """Cores, processor, date, load average of now, versions, commit."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "cpu": _cpu(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "kernel": platform.release(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "load_before": [round(load, 2) for load in os.getloadavg()],
        "broker": broker,
        "commit": _commit(),
        "versions": {
            "python": platform.python_version(),
            "kafka": KAFKA_VERSION,
            "librdkafka": confluent_kafka.libversion()[0],
            **{name: version(_installed(name)) for name in PACKAGES},
        },
    }


def cpu_seconds(pid: int) -> float:
    """User and system time of a process and its threads, to 10 ms."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def peak_rss_mb(pid: int) -> float:
    """VmHWM: the largest resident memory that the process has had, in MiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    raise ProcessLookupError(f"process {pid} has no VmHWM: it has ended")


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def _commit() -> str | None:
    try:
        said = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"], capture_output=True, text=True, check=False
        )
    except OSError:
        return None
    return said.stdout.strip() or None


def _installed(name: str) -> str:
    """onnxruntime and onnxruntime-gpu are one module; one of them is installed."""
    if name != "onnxruntime":
        return name
    from importlib.metadata import PackageNotFoundError

    try:
        version(name)
    except PackageNotFoundError:
        return "onnxruntime-gpu"
    return name
