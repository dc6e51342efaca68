"""A real Prometheus for the tests: from PATH, or Debian's package fetched and unpacked without root. Where neither
gives one, the run says so (see not_run.py).
"""

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import urlopen

FETCHED = Path(__file__).parents[1] / "var/test/prometheus"
PATIENCE_S = 60
QUICK = ["-o", "Acquire::Retries=0", "-o", "Acquire::http::Timeout=15", "-o", "Acquire::https::Timeout=15"]


@cache
def find_prometheus() -> Path | None:
    """The server's binary, or None where this machine can have none."""
    on_path = shutil.which("prometheus")
    if on_path:
        return Path(on_path)
    unpacked = FETCHED / "usr/bin/prometheus"
    if not unpacked.exists() and shutil.which("apt-get") and shutil.which("dpkg"):
        _fetch()
    return unpacked if unpacked.exists() else None


def _fetch() -> None:
    """First by the package lists of the machine, then by lists of our own: a bare container has none."""
    own = FETCHED / "apt"
    (own / "lists/partial").mkdir(parents=True, exist_ok=True)
    (own / "cache/archives/partial").mkdir(parents=True, exist_ok=True)
    private = ["-o", f"Dir::State::lists={own}/lists", "-o", f"Dir::Cache={own}/cache"]
    download = ["download", "prometheus"]
    for commands in ([download], [[*private, "update"], [*private, *download]]):
        if all(_runs("apt-get", "-qq", *QUICK, *command) for command in commands):
            [package, *_] = FETCHED.glob("prometheus_*.deb")
            _runs("dpkg", "-x", str(package), str(FETCHED))
            return


def _runs(*command: str) -> bool:
    try:
        return (
            subprocess.run(command, cwd=FETCHED, capture_output=True, timeout=PATIENCE_S, check=False).returncode == 0
        )
    except subprocess.TimeoutExpired:
        return False


class Server:
    """A running Prometheus at ``url``."""

    def __init__(self, url: str) -> None:
        self._url = url

    def get(self, path: str, **parameters: str) -> Any:
        """``data`` of the answer. Raises what urllib raises: an HTTPError for a query that is wrong."""
        with urlopen(f"{self._url}/api/v1/{path}?{urlencode(parameters)}", timeout=30) as answer:
            return json.load(answer)["data"]


@contextmanager
def running(binary: Path, config: Path, data: Path, patience: float = 30.0) -> Iterator[Server]:
    """Prometheus with the configuration, ended on leaving."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    log = data.with_suffix(".log")
    with (
        log.open("wb") as out,
        subprocess.Popen(
            [binary, f"--config.file={config}", f"--storage.tsdb.path={data}", f"--web.listen-address={address}"],
            stdout=out,
            stderr=subprocess.STDOUT,
        ) as process,
    ):
        try:
            deadline = time.monotonic() + patience
            while not _answers(f"http://{address}/-/ready"):
                coming = process.poll() is None and time.monotonic() < deadline
                assert coming, log.read_text()
                time.sleep(0.1)
            yield Server(f"http://{address}")
        finally:
            process.terminate()


def _answers(url: str) -> bool:
    try:
        with urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except (URLError, OSError):
        return False
