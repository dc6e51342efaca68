"""Where snapshots lie and what is in one: ``GROUP/TOPIC/PARTITION/NUMBER.snapshot`` below one fsspec URL.

A snapshot says of itself what it belongs to, and its digest comes first, so that nothing of a torn, altered or foreign
one is ever given to a stage. The numbers rise with each one written, whatever its offset: a topic that was made anew
begins at offset 0 again.
"""

import contextlib
import hashlib
import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from uuid import uuid4

import fsspec
import orjson
import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem
from pydantic import BaseModel, ConfigDict, ValidationError

from penstock.records import Partition
from penstock.transport.protocol import Position

log = logging.getLogger(__name__)

KEPT = 2
"""The newest may be torn, or lie beyond the committed offset when the group was set back."""
MAGIC = b"penstock snapshot 1\n"
_DIGEST_BYTES = 32
_SUFFIX = ".snapshot"


class Facts(BaseModel):
    """What a snapshot belongs to. ``topic``: the broker's identities of cluster and topic, since a name may be given
    again. ``state``: the version of the stage's state. ``offset``, ``watermark``: the position it was taken at.
    ``size``: bytes of the state as it comes out of the compression."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    topic: str
    state: str
    partition: int
    offset: int
    watermark: int
    size: int

    @property
    def position(self) -> Position:
        return Position(self.offset, self.watermark)


class Store:
    """Small files of each partition of one group below ``url``, any fsspec URL or path. Raises ``ValueError`` for one
    that fsspec does not know, ``OSError`` for one that cannot be read or written."""

    def __init__(self, url: str, group: str) -> None:
        try:
            self._files, root = fsspec.core.url_to_fs(url)
        except ImportError as error:
            raise ValueError(f"{url!r}: {error}. Set PENSTOCK_SNAPSHOTS_URL to a folder or fsspec URL") from None
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

    def put(self, partition: Partition, name: str, content: bytes, *, durable: bool = True) -> None:
        """All at once: a reader sees all of it or what was there before. ``durable``: also after a power cut."""
        path = self.path(partition, name)
        if isinstance(self._files, LocalFileSystem):
            _place(Path(path), content, durable=durable)
        else:
            self._files.pipe_file(path, content)

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

    def write(self, partition: Partition, facts: Facts, state: bytes) -> None:
        """Adds one, all at once, and removes all but the newest ``KEPT``, and what killed workers left unfinished."""
        body = b"\n".join((orjson.dumps(facts.model_dump()), pa.Codec("zstd").compress(state, asbytes=True)))
        content = MAGIC + hashlib.sha256(body).digest() + body
        names = self._store.names(partition)
        numbers = _numbers(names)
        self._store.put(partition, _name(numbers[-1] + 1 if numbers else 1), content)
        unfinished = [name for name in names if name.startswith(".") and f"{_SUFFIX}." in name]
        for name in [*map(_name, numbers[: len(numbers) + 1 - KEPT]), *unfinished]:
            self._store.remove(partition, name)

    def read(self, partition: Partition) -> Iterator[tuple[Facts, bytes]]:
        """The whole ones, newest first. What cannot be read is told in the log and passed over."""
        for number in reversed(_numbers(self._store.names(partition))):
            try:
                yield _parsed(self._store.get(partition, _name(number)))
            except (OSError, ValueError) as error:
                log.warning("snapshot %s is not used: %s", self._store.path(partition, _name(number)), error)


def _numbers(names: Iterable[str]) -> list[int]:
    stems = [name.removesuffix(_SUFFIX) for name in names if name.endswith(_SUFFIX)]
    return sorted(int(stem) for stem in stems if stem.isdecimal())


def _name(number: int) -> str:
    return f"{number:012}{_SUFFIX}"


def _place(path: Path, content: bytes, *, durable: bool) -> None:
    """Written aside and renamed: a reader sees all of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{uuid4().hex[:8]}")
    try:
        with aside.open("wb") as file:
            file.write(content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        aside.rename(path)
    finally:
        aside.unlink(missing_ok=True)


def _parsed(content: bytes) -> tuple[Facts, bytes]:
    """Raises ``ValueError`` for anything that is not exactly what ``write`` made."""
    digest_end = len(MAGIC) + _DIGEST_BYTES
    if not content.startswith(MAGIC):
        raise ValueError("it is no snapshot of this form")
    if hashlib.sha256(content[digest_end:]).digest() != content[len(MAGIC) : digest_end]:
        raise ValueError("its checksum is wrong: it is torn or was altered")
    head, _, packed = content[digest_end:].partition(b"\n")
    try:
        facts = Facts.model_validate(orjson.loads(head))
    except ValidationError as error:
        raise ValueError(f"its header is not understood: {error.errors()[0]['msg']}") from None
    return facts, pa.Codec("zstd").decompress(packed, facts.size, asbytes=True)
