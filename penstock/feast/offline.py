"""The offline store's writing side: a folder of Parquet files per view that only gains files, for a stock FileSource.

A file is named by partition and offset range, and is written aside and renamed. So the newest file says where to
resume, not the group's offset, and every row of the log is in exactly one file whatever was killed when. Of which topic
the offsets are, by the broker's ids, stands in the file's metadata: a topic made anew begins at 0 again.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

CREATED_TIME = "_created_time"
"""When the row was appended to the view's topic: what a FileSource may declare as its created_timestamp_column."""

TOPIC_ID = b"penstock.topic_id"
_NAME = re.compile(r"^(?P<topic>.+)-(?P<partition>\d+)-(?P<first>\d{12,})-(?P<last>\d{12,})\.parquet$")


class OfflineAppender:
    """Appends to ``folder`` the rows of ``topic``. One process per partition at a time, as a consumer group has it."""

    def __init__(self, folder: Path, topic: str) -> None:
        self.folder, self._topic = folder, topic
        folder.mkdir(parents=True, exist_ok=True)

    def resume_at(self, partition: int) -> int | None:
        """The offset after the newest file's last row; None where the partition has no file yet."""
        return max((last + 1 for number, _, last in self._files() if number == partition), default=None)

    def topic_id(self, partition: int) -> str | None:
        """Which topic the newest file's rows are of; None where there is no file, or one of a version that did not
        say."""
        newest = max(((last, first) for number, first, last in self._files() if number == partition), default=None)
        if newest is None:
            return None
        metadata = pq.read_schema(self.folder / self._name(partition, newest[1], newest[0])).metadata or {}
        return metadata[TOPIC_ID].decode() if TOPIC_ID in metadata else None

    def clean(self, partition: int) -> None:
        """Remove what a killed writer left unfinished. Readers never saw it: its name begins with a dot."""
        for path in self.folder.glob(f".{self._topic}-{partition}-*"):
            path.unlink(missing_ok=True)

    def append(self, partition: int, offsets: NDArray[np.int64], rows: pa.Table, topic_id: str) -> int:
        """Write rows as one file; those that a file holds already are left out. Returns how many rows were written.

        ``offsets``: int64[n], ascending, the rows' offsets in the topic that ``topic_id`` names. Durable when it
        returns. Raises ``OSError``.
        """
        begin = int(np.searchsorted(offsets, self.resume_at(partition) or 0))
        rows, offsets = rows.slice(begin), offsets[begin:]
        if not len(rows):
            return 0
        rows = rows.replace_schema_metadata({**(rows.schema.metadata or {}), TOPIC_ID: topic_id.encode()})
        name = self._name(partition, offsets[0], offsets[-1])
        aside = self.folder / f".{name}.{os.getpid()}"
        with aside.open("wb") as file:
            pq.write_table(rows, file, compression="zstd")
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, self.folder / name)
        _sync_folder(self.folder)
        return len(rows)

    def _name(self, partition: int, first: int, last: int) -> str:
        return f"{self._topic}-{partition}-{first:012d}-{last:012d}.parquet"

    def _files(self) -> Iterator[tuple[int, int, int]]:
        for name in os.listdir(self.folder):
            found = _NAME.match(name)
            if found and found["topic"] == self._topic:
                yield int(found["partition"]), int(found["first"]), int(found["last"])


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
