"""A real schema registry on this machine: Apicurio Registry, which speaks Confluent's API, from its archive by Maven
coordinates.

Its schemas live in memory and end with it; the embedded default needs no registry, since ids come from the lock. The
archive (109 MB) is fetched once per user, checked against ``apicurio.lock`` and unpacked beside Kafka's jars.
"""

import shutil
import subprocess
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from types import TracebackType
from typing import Self

from penstock.local.jars import Jar, JarsUnavailable, cache_dir, fetch_jars
from penstock.local.java import find_java
from penstock.local.launch import launch
from penstock.local.ports import free_port

LOCK_NAME = "apicurio.lock"
API = "/apis/ccompat/v7"
START_TIMEOUT_S = 60.0
_TAIL = 20


class ApicurioError(RuntimeError):
    """The registry could not be had or did not start."""


@dataclass(frozen=True)
class Archive(Jar):
    """A line of the lock: ``group:artifact:version:classifier:extension`` and the sha256 of the file."""

    @property
    def name(self) -> str:
        _, artifact, version, classifier, extension = self.coordinate.split(":")
        return f"{artifact}-{version}-{classifier}.{extension}"

    @property
    def maven_path(self) -> str:
        group, artifact, version, *_ = self.coordinate.split(":")
        return f"{group.replace('.', '/')}/{artifact}/{version}/{self.name}"

    @property
    def runner(self) -> str:
        """The jar inside that runs."""
        _, artifact, version, *_ = self.coordinate.split(":")
        return f"{artifact}-{version}-runner.jar"


def read_lock() -> Archive:
    """The archive that the committed lock names."""
    text = resources.files("penstock.local").joinpath(LOCK_NAME).read_text(encoding="utf-8")
    line = next(line for line in text.splitlines() if line and not line.startswith("#"))
    return Archive(*line.split())


def fetch_apicurio(cache: Path | None = None) -> Path:
    """The path of the runnable jar, fetched and unpacked where it is not there yet. Raises ``ApicurioError``."""
    archive = read_lock()
    cache = cache_dir() / "apicurio" if cache is None else cache
    folder = cache / archive.sha256[:16]
    if (folder / archive.runner).exists():
        return folder / archive.runner
    try:
        (packed,) = fetch_jars(lock=[archive], cache=cache)
    except JarsUnavailable as error:
        raise ApicurioError(f"the schema registry {archive.name} could not be had: {error}") from error
    part = Path(tempfile.mkdtemp(prefix=".unpack-", dir=cache))
    try:
        with tarfile.open(packed) as tar:
            tar.extractall(part, filter="data")
        part.rename(folder)
    except OSError:
        # another process was faster
        if not (folder / archive.runner).exists():
            raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
    packed.unlink(missing_ok=True)
    return folder / archive.runner


class Apicurio:
    """A registry that runs while the context is open; its log is ``folder/apicurio.log``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port = 0
        self._leash: subprocess.Popen[str] | None = None

    @property
    def url(self) -> str:
        """Confluent's API of the running registry."""
        return f"http://127.0.0.1:{self._port}{API}"

    def __enter__(self) -> Self:
        java, jar = find_java(), fetch_apicurio()
        self._folder.mkdir(parents=True, exist_ok=True)
        self._port = free_port()
        flags = [
            "-Xmx384m",
            "-XX:+UseSerialGC",
            "-XX:TieredStopAtLevel=1",
            "-Dquarkus.http.host=127.0.0.1",
            f"-Dquarkus.http.port={self._port}",
        ]
        self._leash, pid = launch([str(java.executable), *flags, "-jar", str(jar)], self._folder, self._log)
        if pid is None:
            raise ApicurioError(self._failure("could not be launched"))
        try:
            self._await_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Ends the registry; its schemas are gone."""
        if self._leash is not None:
            # closing the leash's stdin makes it kill the registry, which has nothing to save
            with self._leash:
                pass
            self._leash = None

    @property
    def _log(self) -> Path:
        return self._folder / "apicurio.log"

    def _await_ready(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            if self._leash is None or self._leash.poll() is not None:
                raise ApicurioError(self._failure("ended while starting"))
            try:
                with urllib.request.urlopen(f"{self.url}/subjects", timeout=2.0) as response:
                    if response.status == 200:
                        return
            except (OSError, urllib.error.URLError):
                time.sleep(0.1)
        raise ApicurioError(self._failure(f"did not answer within {START_TIMEOUT_S:g} s"))

    def _failure(self, what: str) -> str:
        tail = "\n".join(self._log.read_text(errors="replace").splitlines()[-_TAIL:]) or "(it is empty)"
        return f"Apicurio {what}. The end of {self._log}:\n{tail}"
