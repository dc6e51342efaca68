"""Snapshots: what is written comes back whole or not at all, and only where it belongs."""

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from penstock_features.duplicates import Seen

from penstock.records import Batch, Partition, Result, State
from penstock.settings import InvalidSettings
from penstock.snapshots import files as files_module
from penstock.snapshots.files import Facts, SnapshotFiles
from penstock.snapshots.taking import Snapshots
from penstock.stage import Stage
from penstock.transport.protocol import Position

PLACE = Partition("in", 3)


def facts(offset: int = 10, topic: str = "t", state: str = "v") -> Facts:
    return Facts(topic=topic, state=state, partition=3, offset=offset, watermark=1000 + offset)


def holding(text: str) -> State:
    """A state of two parts."""
    return {"text": pa.table({"x": [text]}), "rows": pa.table({"n": range(1000)}).replace_schema_metadata({"a": "b"})}


def paths(folder: Path) -> list[Path]:
    return sorted((folder / "g/in/3").iterdir())


@pytest.fixture(params=["folder", "memory://snapshots"])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> SnapshotFiles:
    url = str(tmp_path) if request.param == "folder" else f"{request.param}/{tmp_path.name}"
    return SnapshotFiles(url, "g")


def test_the_newest_two_are_kept_and_read_newest_first(files: SnapshotFiles) -> None:
    for offset in (10, 20, 30):
        files.write(PLACE, facts(offset), holding(f"at {offset}"))
    assert [(found.offset, state) for found, state in files.read(PLACE)] == [
        (30, holding("at 30")),
        (20, holding("at 20")),
    ]
    assert list(files.read(Partition("in", 4))) == []


def test_a_topic_made_anew_begins_at_offset_0_and_its_snapshots_are_the_newest(files: SnapshotFiles) -> None:
    files.write(PLACE, facts(5000), holding("older"))
    files.write(PLACE, facts(2, topic="anew"), holding("newer"))
    assert [found.offset for found, _ in files.read(PLACE)] == [2, 5000]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda content: content[:-3], "torn or was altered"),
        (lambda content: content[:-3] + bytes([content[-3] ^ 1]) + content[-2:], "torn or was altered"),
        (lambda content: content[:30], "torn or was altered"),
        (lambda content: content[:10], "no snapshot of this form"),
        (lambda content: b"", "no snapshot of this form"),
        (lambda content: content.replace(b"snapshot 2", b"snapshot 1"), "no snapshot of this form"),
    ],
)
def test_a_torn_or_altered_one_is_passed_over_for_the_one_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, change: Callable[[bytes], bytes], why: str
) -> None:
    files = SnapshotFiles(str(tmp_path), "g")
    for offset in (10, 20):
        files.write(PLACE, facts(offset), holding(f"at {offset}"))
    newest = paths(tmp_path)[-1]
    newest.write_bytes(change(newest.read_bytes()))
    assert [found.offset for found, _ in files.read(PLACE)] == [10]
    assert why in caplog.text
    assert newest.name in caplog.text


def test_what_is_half_written_is_not_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = SnapshotFiles(str(tmp_path), "g")
    files.write(PLACE, facts(10), holding("at 10"))

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files_module.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        files.write(PLACE, facts(20), holding("at 20"))
    assert len(paths(tmp_path)) == 1
    assert [found.offset for found, _ in files.read(PLACE)] == [10]


def test_what_a_killed_worker_left_half_written_goes_with_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = SnapshotFiles(str(tmp_path), "g")
    with monkeypatch.context() as killed:
        killed.setattr(Path, "rename", lambda *_: None)
        killed.setattr(Path, "unlink", lambda *_, **__: None)
        files.write(PLACE, facts(10), holding("at 10"))
    assert [path.name.startswith(".") for path in paths(tmp_path)] == [True]
    files.write(PLACE, facts(20), holding("at 20"))
    assert [path.name for path in paths(tmp_path)] == ["000000000001.snapshot"]


def test_a_state_in_many_slices_comes_back(files: SnapshotFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files_module, "SLICE_BYTES", 1000)
    ids, times = pa.array([f"id {n}" for n in range(999)]), np.arange(999)
    seen, nothing = Seen(10_000), np.full(999, -1)
    assert seen.firsts(ids, times, times, (times, times), (nothing, nothing)) is None
    state = {"ids": seen.snapshot(), "none": Seen(5).snapshot()}
    files.write(PLACE, facts(), state)
    ((_, found),) = files.read(PLACE)
    assert found["ids"].column("entry").num_chunks > 10
    assert len(Seen.restore(5, found["none"])) == 0
    again = Seen.restore(10_000, found["ids"])
    assert again.snapshot().equals(state["ids"], check_metadata=True)
    firsts = again.firsts(ids, times, times + 999, (times, times), (nothing, nothing))
    assert firsts is not None
    assert firsts[:, 1].tolist() == list(range(999))


class Kept(Stage):
    """Its state is a text."""

    def __init__(self, version: str = "v") -> None:
        self.version, self.state = version, holding("state")

    def process(self, batch: Batch) -> Result:
        return Result()

    def reach(self, topic: str) -> int | None:
        return 1000 if topic == "in" else None

    def snapshot(self, partition: Partition) -> State:
        return self.state

    def state_version(self) -> str:
        return self.version


@pytest.mark.parametrize(
    ("found", "low", "committed", "why"),
    [
        (facts(topic="former"), 0, 50, "another topic of the name"),
        (facts(state="former"), 0, 50, "another definition"),
        (facts(51), 0, 50, "not committed"),
        (facts(10), 11, 50, "the log begins at 11"),
    ],
)
def test_one_that_does_not_belong_here_is_not_used_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, found: Facts, low: int, committed: int, why: str
) -> None:
    files = SnapshotFiles(str(tmp_path), "g")
    files.write(PLACE, facts(11), holding("right"))
    files.write(PLACE, found, holding("wrong"))
    snapshots = Snapshots(files, Kept(), "test", lambda topic: "t", 0.0)
    caplog.set_level("INFO")
    assert list(snapshots.usable(PLACE, low, committed)) == [(Position(11, 1011), holding("right"))]
    assert why in caplog.text
    snapshots.close(settled=True)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def taken(files: SnapshotFiles) -> dict[int, list[int]]:
    return {n: [found.offset for found, _ in files.read(Partition("in", n))] for n in (0, 1)}


def test_each_partition_is_taken_once_an_interval_after_it_moved(tmp_path: Path) -> None:
    files, clock = SnapshotFiles(str(tmp_path), "g"), Clock()
    snapshots = Snapshots(files, Kept(), "test", lambda topic: "t", 10.0, clock)
    for n in (0, 1):
        assert list(snapshots.usable(Partition("in", n), 0, 0)) == []
    for second in range(35):
        clock.now = float(second)
        snapshots.committed({Partition("in", 0): Position(second), Partition("other", 0): Position(second)})
        snapshots.drained()
    assert taken(files)[1] == []
    assert taken(files)[0] == [30, 20]
    snapshots.close(settled=True)
    assert taken(files)[0] == [34, 30]
    assert not (tmp_path / "g/other").exists()


def test_what_is_not_settled_is_not_taken_when_a_partition_goes(tmp_path: Path) -> None:
    files = SnapshotFiles(str(tmp_path), "g")
    snapshots = Snapshots(files, Kept(), "test", lambda topic: "t", 10.0, Clock())
    for n in (0, 1):
        assert list(snapshots.usable(Partition("in", n), 0, 0)) == []
        snapshots.committed({Partition("in", n): Position(7)})
    snapshots.release([Partition("in", 0)], settled=False)
    snapshots.release([Partition("in", 1)], settled=True)
    snapshots.close(settled=True)
    assert taken(files) == {0: [], 1: [7]}


def test_a_store_that_cannot_be_written_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, clock = SnapshotFiles(str(tmp_path), "g"), Clock()
    snapshots = Snapshots(files, Kept(), "test", lambda topic: "t", 0.0, clock)
    assert list(snapshots.usable(Partition("in", 0), 0, 0)) == []
    write, tried = files.write, threading.Event()

    def gone(partition: Partition, found: Facts, state: State) -> None:
        tried.set()
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(files, "write", gone)
    snapshots.committed({Partition("in", 0): Position(7)})
    assert tried.wait(10)
    snapshots.drained()
    assert "no snapshot could be written, a restart will replay more" in caplog.text
    monkeypatch.setattr(files, "write", write)
    snapshots.committed({Partition("in", 0): Position(9)})
    snapshots.close(settled=True)
    assert taken(files)[0] == [9]


def test_a_url_that_nothing_understands_is_refused() -> None:
    with pytest.raises(InvalidSettings, match=r"PENSTOCK_SNAPSHOTS_URL='nosuch://bucket' cannot be used: .*Set it to"):
        SnapshotFiles("nosuch://bucket", "g")
