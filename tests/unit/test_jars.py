"""The jars come from wherever they can be had, and only bytes that match the lock are ever used."""

import hashlib
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from penstock.local.jars import ROOTS, Jar, JarsUnavailable, cache_dir, fetch_jars, read_lock

CONTENTS = {f"org.example:part-{number}:1.{number}": b"jar %d " % number * 1000 for number in range(12)}
LOCK = [Jar(coordinate, hashlib.sha256(content).hexdigest()) for coordinate, content in CONTENTS.items()]


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        del args


def write_repository(root: Path, contents: dict[str, bytes] = CONTENTS) -> None:
    for coordinate, content in contents.items():
        path = root / Jar(coordinate, "").maven_path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    root = tmp_path / "repository"
    root.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(root)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", root
    server.shutdown()
    thread.join()
    server.server_close()


def test_missing_jars_are_fetched_and_the_next_call_needs_no_network(
    tmp_path: Path, repository: tuple[str, Path]
) -> None:
    address, root = repository
    write_repository(root)
    steps: list[tuple[int, int]] = []
    fetch = partial(fetch_jars, lock=LOCK, cache=tmp_path / "cache", maven_cache=tmp_path / "m2")

    paths = fetch(lambda done, total: steps.append((done, total)), repositories=[address])

    assert [path.read_bytes() for path in paths] == list(CONTENTS.values())
    assert steps == [(done, 12) for done in range(1, 13)]
    steps.clear()
    assert fetch(lambda done, total: steps.append((done, total)), repositories=[]) == paths
    assert steps == []


def test_a_damaged_jar_is_fetched_again_and_the_intact_ones_are_not(
    tmp_path: Path, repository: tuple[str, Path]
) -> None:
    address, root = repository
    write_repository(root)
    fetch = partial(
        fetch_jars, lock=LOCK, cache=tmp_path / "cache", maven_cache=tmp_path / "m2", repositories=[address]
    )
    paths = fetch()
    paths[3].write_bytes(b"half a j")
    untouched = [path.stat().st_mtime_ns for path in paths[:3]]

    steps: list[tuple[int, int]] = []
    fetch(lambda done, total: steps.append((done, total)))

    assert paths[3].read_bytes() == list(CONTENTS.values())[3]
    assert steps == [(12, 12)]
    assert [path.stat().st_mtime_ns for path in paths[:3]] == untouched


def test_bytes_that_do_not_match_the_lock_never_reach_the_cache(tmp_path: Path, repository: tuple[str, Path]) -> None:
    address, root = repository
    write_repository(root, CONTENTS | {LOCK[5].coordinate: b"something else"})

    with pytest.raises(JarsUnavailable, match="does not have the sha256") as failure:
        fetch_jars(lock=LOCK, cache=tmp_path / "cache", maven_cache=tmp_path / "m2", repositories=[address])

    assert LOCK[5].coordinate in str(failure.value)
    assert not (tmp_path / "cache" / LOCK[5].name).exists()
    assert not list((tmp_path / "cache").glob(".*.part"))


def test_jars_of_the_maven_cache_are_reused_when_they_match(tmp_path: Path) -> None:
    write_repository(tmp_path / "m2")

    paths = fetch_jars(lock=LOCK, cache=tmp_path / "cache", maven_cache=tmp_path / "m2", repositories=[])

    assert [path.read_bytes() for path in paths] == list(CONTENTS.values())


def test_the_second_repository_serves_what_the_first_lacks(tmp_path: Path, repository: tuple[str, Path]) -> None:
    address, root = repository
    write_repository(root / "mirror", dict(list(CONTENTS.items())[:6]))
    write_repository(root / "main", dict(list(CONTENTS.items())[6:]))

    paths = fetch_jars(
        lock=LOCK,
        cache=tmp_path / "cache",
        maven_cache=tmp_path / "m2",
        repositories=[f"{address}/mirror", f"{address}/main"],
    )

    assert [path.read_bytes() for path in paths] == list(CONTENTS.values())


def test_the_error_names_the_jar_the_places_and_the_mend(tmp_path: Path, repository: tuple[str, Path]) -> None:
    address, _ = repository

    with pytest.raises(JarsUnavailable) as failure:
        fetch_jars(lock=LOCK[:1], cache=tmp_path / "cache", maven_cache=tmp_path / "m2", repositories=[address])

    message = str(failure.value)
    for part in (LOCK[0].coordinate, str(tmp_path / "cache"), str(tmp_path / "m2"), address, "404"):
        assert part in message
    assert "KAFKA_BOOTSTRAP_SERVERS" in message


def test_two_fetches_at_once_leave_whole_jars(tmp_path: Path, repository: tuple[str, Path]) -> None:
    address, root = repository
    write_repository(root)
    fetch = partial(
        fetch_jars, lock=LOCK, cache=tmp_path / "cache", maven_cache=tmp_path / "m2", repositories=[address]
    )
    other = threading.Thread(target=fetch)
    other.start()
    paths = fetch()
    other.join()

    assert [path.read_bytes() for path in paths] == list(CONTENTS.values())
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == sorted(jar.name for jar in LOCK)


def test_the_committed_lock_holds_the_roots_once_each_and_full_digests() -> None:
    lock = read_lock()

    assert len(lock) == 46
    assert set(ROOTS) < {jar.coordinate for jar in lock}
    # the cache is flat, so file names must tell the jars apart
    assert len({jar.name for jar in lock}) == len(lock)
    assert all(len(bytes.fromhex(jar.sha256)) == 32 for jar in lock)


@pytest.mark.parametrize(
    ("variable", "expected"),
    [("/elsewhere", Path("/elsewhere/penstock")), ("relative", Path.home() / ".cache" / "penstock")],
)
def test_the_cache_follows_xdg_cache_home_if_it_is_absolute(variable: str, expected: Path) -> None:
    assert cache_dir({"XDG_CACHE_HOME": variable}) == expected
