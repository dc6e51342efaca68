"""Files of history: each row of the log in exactly one, whatever is delivered again or killed when."""

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.feast.offline import OfflineAppender

TOPIC = "flights.view.aircraft_delays"


def append(appender: OfflineAppender, partition: int, offsets: list[int]) -> int:
    rows = pa.table({"partition": [partition] * len(offsets), "offset": offsets})
    return appender.append(partition, np.array(offsets, np.int64), rows, "a cluster/a topic")


def stored(folder: Path) -> list[tuple[int, int]]:
    table = pq.read_table(folder)
    return sorted(zip(table["partition"].to_pylist(), table["offset"].to_pylist(), strict=True))


def test_a_file_is_named_by_partition_and_offset_range(tmp_path: Path) -> None:
    append(OfflineAppender(tmp_path, TOPIC), 0, list(range(5000)))
    assert [path.name for path in tmp_path.iterdir()] == [f"{TOPIC}-0-000000000000-000000004999.parquet"]


def test_the_newest_file_of_a_partition_says_where_to_resume(tmp_path: Path) -> None:
    appender = OfflineAppender(tmp_path / "new" / "folder", TOPIC)
    assert appender.resume_at(0) is None
    append(appender, 0, [3, 4, 9])
    append(appender, 1, [100])
    append(appender, 0, [12])
    again = OfflineAppender(tmp_path / "new" / "folder", TOPIC)
    assert (again.resume_at(0), again.resume_at(1), again.resume_at(2)) == (13, 101, None)


def test_the_newest_file_of_a_partition_says_which_topic_its_rows_are_of(tmp_path: Path) -> None:
    appender = OfflineAppender(tmp_path, TOPIC)
    assert appender.topic_id(0) is None
    append(appender, 0, [0, 1])
    assert (appender.topic_id(0), appender.topic_id(1)) == ("a cluster/a topic", None)
    appender.append(0, np.array([2]), pa.table({"partition": [0], "offset": [2]}), "another")
    assert appender.topic_id(0) == "another"
    assert stored(tmp_path) == [(0, 0), (0, 1), (0, 2)]
    pq.write_table(
        pa.table({"partition": [1], "offset": [0]}), tmp_path / f"{TOPIC}-1-000000000000-000000000000.parquet"
    )
    assert appender.topic_id(1) is None, "a file of a version that did not say"


def test_files_of_another_topic_do_not_count(tmp_path: Path) -> None:
    append(OfflineAppender(tmp_path, TOPIC + "_more"), 0, [7])
    assert OfflineAppender(tmp_path, TOPIC).resume_at(0) is None


def test_rows_delivered_again_are_left_out(tmp_path: Path) -> None:
    appender = OfflineAppender(tmp_path, TOPIC)
    assert append(appender, 0, [0, 1, 2]) == 3
    assert append(appender, 0, [1, 2]) == 0
    assert append(appender, 0, [2, 3]) == 1
    assert stored(tmp_path) == [(0, n) for n in range(4)]


class Killed(BaseException):
    """What stops a process no one may catch."""


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 6), st.sampled_from(["", "before", "after"])), max_size=12))
def test_each_row_is_in_exactly_one_file_wherever_the_writer_was_killed(
    tmp_path_factory: pytest.TempPathFactory, lives: list[tuple[int, str]]
) -> None:
    folder, log, replace = tmp_path_factory.mktemp("history"), list(range(40)), os.replace

    with pytest.MonkeyPatch.context() as patch:
        for batch, death in [*lives, (40, "")]:
            appender = OfflineAppender(folder, TOPIC)
            appender.clean(0)

            def rename(source: Path, target: Path, death: str = death) -> None:
                if death == "before":
                    raise Killed
                replace(source, target)
                if death == "after":
                    raise Killed

            patch.setattr("penstock.feast.offline.os.replace", rename)
            start = appender.resume_at(0) or 0
            try:
                if start < len(log):
                    append(appender, 0, log[start : start + batch])
            except Killed:
                continue
    assert stored(folder) == [(0, n) for n in log]
    assert all(path.name.endswith(".parquet") for path in folder.iterdir())


def test_an_unfinished_file_is_seen_by_no_reader(tmp_path: Path) -> None:
    appender = OfflineAppender(tmp_path, TOPIC)
    append(appender, 0, [0])
    (tmp_path / f".{TOPIC}-0-000000000001-000000000002.parquet.123").write_bytes(b"half a file")
    assert stored(tmp_path) == [(0, 0)]
    assert appender.resume_at(0) == 1
    appender.clean(0)
    assert len(list(tmp_path.iterdir())) == 1
