"""The jars of Apache Kafka, fetched once per user and checked against the committed lock.

`kafka-jars.lock` names every jar and its sha256; only bytes that hash to it are ever used, wherever they came from.
The addresses of the repositories are jgo's (its default and the `[repositories]` of its settings), so a mirror is
set once, there.
"""

import hashlib
import os
import shutil
import ssl
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from http.client import HTTPException
from importlib import resources
from pathlib import Path

ROOTS = ("org.apache.kafka:kafka_2.13:4.3.1", "org.slf4j:slf4j-simple:1.7.36")
KAFKA_VERSION = ROOTS[0].rpartition(":")[2]
LOCK_NAME = "kafka-jars.lock"
PARALLEL = 8
ATTEMPTS = 3

Progress = Callable[[int, int], None]


class JarsUnavailable(RuntimeError):
    """A jar is neither in a cache nor to be had from a repository."""


@dataclass(frozen=True)
class Jar:
    """One line of the lock: a Maven coordinate `group:artifact:version` and the sha256 of its jar."""

    coordinate: str
    sha256: str

    @property
    def name(self) -> str:
        _, artifact, version = self.coordinate.split(":")
        return f"{artifact}-{version}.jar"

    @property
    def maven_path(self) -> str:
        group, artifact, version = self.coordinate.split(":")
        return f"{group.replace('.', '/')}/{artifact}/{version}/{self.name}"


def read_lock() -> list[Jar]:
    """The jars of the committed lock, in class path order."""
    text = resources.files("penstock.local").joinpath(LOCK_NAME).read_text(encoding="utf-8")
    lines = (line.split() for line in text.splitlines() if line and not line.startswith("#"))
    return [Jar(coordinate, sha256) for coordinate, sha256 in lines]


def cache_dir(environ: Mapping[str, str] = os.environ) -> Path:
    """Penstock's folder in the user's cache: `$XDG_CACHE_HOME/penstock`, else `~/.cache/penstock`."""
    configured = environ.get("XDG_CACHE_HOME", "")
    # the XDG specification says to ignore relative paths
    root = Path(configured) if os.path.isabs(configured) else Path.home() / ".cache"
    return root / "penstock"


def fetch_jars(
    progress: Progress | None = None,
    *,
    lock: Sequence[Jar] | None = None,
    cache: Path | None = None,
    maven_cache: Path | None = None,
    repositories: Sequence[str] | None = None,
) -> list[Path]:
    """The paths of all jars of the lock, fetching those that the cache lacks or holds damaged.

    `progress(done, total)` is called as missing jars arrive; never when all are there. Every jar is hashed at each
    call (0.1 s for 44 MB), so a damaged one is fetched again. Raises `JarsUnavailable` naming the jar, the places
    and the mend.
    """
    lock = read_lock() if lock is None else lock
    cache = cache_dir() / "jars" if cache is None else cache
    paths = [cache / jar.name for jar in lock]
    with ThreadPoolExecutor(PARALLEL) as pool:
        intact = list(pool.map(_is_intact, paths, lock))
        missing = [jar for jar, there in zip(lock, intact, strict=True) if not there]
        if not missing:
            return paths
        try:
            cache.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise JarsUnavailable(
                f"cannot make the jar cache {cache}: {error}. Set XDG_CACHE_HOME to a folder that can be written."
            ) from error
        if repositories is None or maven_cache is None:
            configured, local = _jgo_places(cache)
            repositories = configured if repositories is None else repositories
            maven_cache = local if maven_cache is None else maven_cache
        tls = _tls_context()
        futures = {pool.submit(_fetch, jar, cache, maven_cache, repositories, tls): jar for jar in missing}
        try:
            for done, future in enumerate(as_completed(futures), start=len(lock) - len(missing) + 1):
                future.result()
                if progress is not None:
                    progress(done, len(lock))
        except OSError as error:
            pool.shutdown(wait=False, cancel_futures=True)
            raise JarsUnavailable(
                f"Apache Kafka {KAFKA_VERSION} needs {len(missing)} jar(s) that are not on this machine, and "
                f"{futures[future].coordinate} could not be had: looked in {cache}, {maven_cache} and "
                f"{', '.join(repositories)} ({error}). Connect to the network once, name a mirror under "
                "[repositories] in ~/.config/jgo.conf, or set KAFKA_BOOTSTRAP_SERVERS to a broker you have."
            ) from error
        except KeyboardInterrupt:
            # leaving the pool would otherwise first fetch all that is queued
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return paths


def _is_intact(path: Path, jar: Jar) -> bool:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == jar.sha256
    except OSError:
        return False


def _jgo_places(cache: Path) -> tuple[list[str], Path]:
    try:
        from jgo.config import GlobalSettings
        from jgo.constants import MAVEN_CENTRAL_URL
    except ImportError as error:
        raise JarsUnavailable(
            f"Apache Kafka {KAFKA_VERSION} is not in {cache} and jgo, which knows where to fetch it, is not installed. "
            "Install penstock[local], or set KAFKA_BOOTSTRAP_SERVERS to a broker you have."
        ) from error
    settings = GlobalSettings.load()
    repositories = [url.rstrip("/") for url in [*settings.repositories.values(), MAVEN_CENTRAL_URL]]
    return list(dict.fromkeys(repositories)), Path(settings.repo_cache)


def _tls_context() -> ssl.SSLContext:
    """The default trust (SSL_CERT_FILE included) and what requests and curl would trust besides."""
    context = ssl.create_default_context()
    for variable in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        bundle = os.environ.get(variable)
        if bundle and os.path.exists(bundle):
            is_folder = os.path.isdir(bundle)
            context.load_verify_locations(capath=bundle if is_folder else None, cafile=None if is_folder else bundle)
    if not context.cert_store_stats()["x509_ca"]:
        import certifi  # some Pythons of macOS come without any trust; certifi comes with jgo

        context.load_verify_locations(cafile=certifi.where())
    return context


def _fetch(jar: Jar, cache: Path, maven_cache: Path, repositories: Sequence[str], tls: ssl.SSLContext) -> None:
    """Put one verified jar into the cache; the rename is the last step, so that no reader sees half a jar."""
    handle, part = tempfile.mkstemp(prefix=f".{jar.name}.", suffix=".part", dir=cache)
    os.close(handle)
    partial = Path(part)
    try:
        local = maven_cache / jar.maven_path
        if _is_intact(local, jar):
            shutil.copyfile(local, partial)
        else:
            _download_from_any(jar, partial, repositories, tls)
        partial.chmod(0o644)
        partial.replace(cache / jar.name)
    finally:
        partial.unlink(missing_ok=True)


def _download_from_any(jar: Jar, target: Path, repositories: Sequence[str], tls: ssl.SSLContext) -> None:
    reasons = []
    for repository in repositories:
        try:
            _download(f"{repository}/{jar.maven_path}", target, tls)
        except (OSError, HTTPException) as error:
            reasons.append(str(error) or type(error).__name__)
            continue
        if _is_intact(target, jar):
            return
        reasons.append(f"what {repository} sent does not have the sha256 of {LOCK_NAME}")
    raise OSError("; ".join(reasons) or "no repository is configured")


def _download(url: str, target: Path, tls: ssl.SSLContext) -> None:
    for attempt in range(1, ATTEMPTS + 1):
        try:
            with urllib.request.urlopen(url, timeout=30, context=tls) as response, target.open("wb") as file:
                shutil.copyfileobj(response, file, 1 << 18)
            return
        except urllib.error.HTTPError as error:
            error.close()
            if attempt == ATTEMPTS or (error.code < 500 and error.code != 429):
                raise
        except (OSError, HTTPException):
            if attempt == ATTEMPTS:
                raise
        time.sleep(0.5 * attempt)


def resolve_lock() -> str:
    """The text of a fresh lock: `ROOTS` and their runtime dependencies as jgo resolves them (half a minute)."""
    from jgo.maven import MavenContext

    context = MavenContext()
    inputs, transitive = context.resolver.resolve([context.create_dependency(root) for root in ROOTS])
    lines = ["# Jars of the embedded broker and their sha256, written by `python -m penstock.local.jars`:"]
    lines += [f"# {' + '.join(ROOTS)}, runtime scope."]
    for dependency in sorted([*inputs, *transitive], key=lambda found: (found.groupId, found.artifactId)):
        digest = hashlib.sha256(dependency.artifact.resolve().read_bytes()).hexdigest()
        lines.append(f"{dependency.groupId}:{dependency.artifactId}:{dependency.version} {digest}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    Path(__file__).with_name(LOCK_NAME).write_text(resolve_lock(), encoding="utf-8")
