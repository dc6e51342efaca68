"""Where snapshots lie and what is in one: ``GROUP/TOPIC/PARTITION/NUMBER.snapshot`` below one fsspec URL.

A snapshot says of itself what it belongs to, and its digest comes last, so that nothing of a torn, altered or foreign
one is ever given to a stage. It is written in slices, so that memory holds no second whole one. The numbers rise with
each one written, whatever its offset: a topic that was made anew begins at offset 0 again.
"""

import contextlib
import hashlib
import io
import logging
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO
from uuid import uuid4

import fsspec
import orjson
import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem
from pydantic import BaseModel, ConfigDict, ValidationError

from penstock.records import Partition, State
from penstock.settings import InvalidSettings
from penstock.transport.protocol import Position

log = logging.getLogger(__name__)

KEPT = 2
"""The newest may be torn, or lie beyond the committed offset when the group was set back."""
MAGIC = b"penstock snapshot 2\n"
SLICE_BYTES = 1 << 20
_DIGEST_BYTES = 32
SUFFIX = ".snapshot"


class Facts(BaseModel):
    """What a snapshot belongs to. ``topic``: the broker's identities of cluster and topic, since a name may be given
    again. ``state``: the version of the stage's state. ``offset``, ``watermark``: the position it was taken at."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    topic: str
    state: str
    partition: int
    offset: int
    watermark: int

    @property
    def position(self) -> Position:
        return Position(self.offset, self.watermark)


class _Header(BaseModel):
    """The first line. ``parts``: the names of the tables that follow, in this order."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    facts: Facts
    parts: list[str]


class Store:
    """Files of each partition of one group below ``url``, any fsspec URL or path. Raises ``InvalidSettings`` for one
    that fsspec does not know, ``OSError`` for one that cannot be read or written."""

    def __init__(self, url: str, group: str) -> None:
        try:
            self._files, root = fsspec.core.url_to_fs(url)
        except (ValueError, ImportError) as error:
            raise InvalidSettings(
                f"PENSTOCK_SNAPSHOTS_URL={url!r} cannot be used: {error}. Set it to a folder or fsspec URL"
            ) from None
        self._root = f"{str(root).rstrip('/')}/{group}"

    def path(self, partition: Partition, name: str) -> str:
        return f"{self._folder(partition)}/{name}"

    def names(self, partition: Partition) -> list[str]:
        folder = self._folder(partition)
        self._files.invalidate_cache(folder)
        try:
            return [str(name).rsplit("/", 1)[-1] for name in self._files.ls(folder, detail=False)]
        except FileNotFoundError:
            return []

    @contextlib.contextmanager
    def writing(self, partition: Partition, name: str, *, durable: bool = True) -> Iterator[IO[bytes]]:
        """A file that is there all at once when the block is left without an error: a reader sees all of it or what
        was there before. ``durable``: also after a power cut."""
        path = self.path(partition, name)
        if isinstance(self._files, LocalFileSystem):
            with _aside(Path(path), durable=durable) as file:
                yield file
            return
        with tempfile.NamedTemporaryFile() as file:
            yield file
            file.flush()
            self._files.put_file(file.name, path)

    @contextlib.contextmanager
    def reading(self, partition: Partition, name: str) -> Iterator[IO[bytes]]:
        path = self.path(partition, name)
        if isinstance(self._files, LocalFileSystem):
            with Path(path).open("rb") as file:
                yield file
            return
        with tempfile.NamedTemporaryFile() as file:
            self._files.get_file(path, file.name)
            yield file

    def put(self, partition: Partition, name: str, content: bytes, *, durable: bool = True) -> None:
        """As ``writing``, for what is small."""
        with self.writing(partition, name, durable=durable) as file:
            file.write(content)

    def get(self, partition: Partition, name: str) -> bytes:
        content: bytes = self._files.cat_file(self.path(partition, name))
        return content

    def remove(self, partition: Partition, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._files.rm_file(self.path(partition, name))

    def _folder(self, partition: Partition) -> str:
        return f"{self._root}/{partition.topic}/{partition.number}"


class SnapshotFiles:
    """The snapshots of one group; ``url`` and what is raised as in ``Store``."""

    def __init__(self, url: str, group: str) -> None:
        self._store = Store(url, group)

    def write(self, partition: Partition, facts: Facts, state: State) -> None:
        """Adds one, all at once, and removes all but the newest ``KEPT``, and what killed workers left unfinished."""
        names = self._store.names(partition)
        numbers = _numbers(names)
        with self._store.writing(partition, _name(numbers[-1] + 1 if numbers else 1)) as file:
            _write(file, facts, state)
        unfinished = [name for name in names if name.startswith(".") and f"{SUFFIX}." in name]
        for name in [*map(_name, numbers[: len(numbers) + 1 - KEPT]), *unfinished]:
            self._store.remove(partition, name)

    def read(self, partition: Partition) -> Iterator[tuple[Facts, State]]:
        """The whole ones, newest first. What cannot be read is told in the log and passed over."""
        for number in reversed(_numbers(self._store.names(partition))):
            name = _name(number)
            try:
                with self._store.reading(partition, name) as file:
                    found = _read(file)
            except (OSError, ValueError) as error:
                log.warning("snapshot %s is not used: %s", self._store.path(partition, name), error)
                continue
            yield found


class _Digesting(io.RawIOBase):
    """Writes on to ``file`` and keeps the digest of all of it. Closing it leaves the file open."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._hash = file, hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, piece: "bytes | pa.Buffer", /) -> int:
        self._hash.update(piece)
        return self._file.write(piece)

    def digest(self) -> bytes:
        return self._hash.digest()


def _write(file: IO[bytes], facts: Facts, state: State) -> None:
    out = _Digesting(file)
    out.write(MAGIC + orjson.dumps(_Header(facts=facts, parts=list(state)).model_dump()) + b"\n")
    with pa.CompressedOutputStream(pa.PythonFile(out, "w"), "zstd") as packed:
        for table in state.values():
            rows = max(1, table.num_rows * SLICE_BYTES // max(table.nbytes, 1))
            with pa.ipc.new_stream(packed, table.schema) as writer:
                writer.write_table(table, max_chunksize=rows)
    file.write(out.digest())


def _read(file: IO[bytes]) -> tuple[Facts, State]:
    """Raises ``ValueError`` for anything that is not exactly what ``_write`` made."""
    if file.read(len(MAGIC)) != MAGIC:
        raise ValueError("it is no snapshot of this form")
    left = max(file.seek(0, os.SEEK_END) - _DIGEST_BYTES, 0)
    file.seek(left)
    wanted, digest = file.read(), hashlib.sha256()
    file.seek(0)
    while left and (piece := file.read(min(left, SLICE_BYTES))):
        digest.update(piece)
        left -= len(piece)
    if digest.digest() != wanted:
        raise ValueError("its checksum is wrong: it is torn or was altered")
    file.seek(len(MAGIC))
    try:
        header = _Header.model_validate(orjson.loads(file.readline()))
    except ValidationError as error:
        raise ValueError(f"its header is not understood: {error.errors()[0]['msg']}") from None
    with pa.CompressedInputStream(pa.PythonFile(file, "r"), "zstd") as packed:
        return header.facts, {name: pa.ipc.open_stream(packed).read_all() for name in header.parts}


def _numbers(names: Iterable[str]) -> list[int]:
    stems = [name.removesuffix(SUFFIX) for name in names if name.endswith(SUFFIX)]
    return sorted(int(stem) for stem in stems if stem.isdecimal())


def _name(number: int) -> str:
    return f"{number:012}{SUFFIX}"


@contextlib.contextmanager
def _aside(path: Path, *, durable: bool) -> Iterator[IO[bytes]]:
    """Written aside and renamed: a reader sees all of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{uuid4().hex[:8]}")
    try:
        with aside.open("wb") as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        aside.rename(path)
    finally:
        aside.unlink(missing_ok=True)
