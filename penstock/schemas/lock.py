"""The committed lock of a pipeline's schemas: one JSON object a line, only ever added to, the id of a schema being its
line number.

The schema's text stands in the line, so that ids resolve without a registry, and its fingerprint beside it, so that an
edited line is noticed. A folder's lock is ``pipelines/NAME/schemas.lock``.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penstock.codec.shapes import UnsupportedSchema, parse
from penstock.plan import fingerprint
from penstock.schemas.compatibility import IncompatibleSchema, check

NAME = "schemas.lock"


class DamagedLock(ValueError):
    """The lock is not what was appended; the message names the line and the mend."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One line. ``version`` counts from 1 within the subject; ``fingerprint``: of the whole schema, since a
    changed default or range is a new version too."""

    id: int
    subject: str
    version: int
    fingerprint: str
    schema: dict[str, Any]

    def line(self) -> str:
        body = {
            "subject": self.subject,
            "version": self.version,
            "fingerprint": self.fingerprint,
            "schema": self.schema,
        }
        return json.dumps(body, ensure_ascii=False, separators=(",", ":"))


class SchemaLock:
    """The entries of one lock file. ``path`` is None for a lock in memory."""

    def __init__(self, path: Path | None = None, entries: list[Entry] | None = None) -> None:
        self.path = path
        self._entries = entries or []

    @classmethod
    def load(cls, path: Path | str) -> "SchemaLock":
        """The lock at ``path``; an empty one where there is no file yet. Raises ``DamagedLock``."""
        path = Path(path)
        try:
            text = path.read_text("utf-8") if path.exists() else ""
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is no text"
            raise DamagedLock(f"{path} cannot be read: {why}. Restore the file from git.") from None
        lock = cls(path)
        for number, line in enumerate(text.splitlines(), 1):
            lock._entries.append(lock._read(number, line))
        if text and not text.endswith("\n"):
            raise DamagedLock(f"{path}: the last line is cut off. Restore the file from git.")
        return lock

    def _read(self, number: int, line: str) -> Entry:
        mend = "The lock is append-only: restore it from git."
        try:
            body = json.loads(line)
            entry = Entry(number, body["subject"], body["version"], body["fingerprint"], body["schema"])
        except (ValueError, KeyError, TypeError) as error:
            raise DamagedLock(f"{self.path}:{number}: no entry of a lock ({error}). {mend}") from None
        if entry.version != len(self.entries(entry.subject)) + 1:
            raise DamagedLock(f"{self.path}:{number}: v{entry.version} of {entry.subject!r} is out of turn. {mend}")
        if fingerprint(entry.schema) != entry.fingerprint:
            raise DamagedLock(
                f"{self.path}:{number}: the schema of {entry.subject!r} v{entry.version} was edited. {mend}"
            )
        return entry

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def subjects(self) -> list[str]:
        """All subjects, in the order of their first versions."""
        return list(dict.fromkeys(entry.subject for entry in self._entries))

    def entries(self, subject: str) -> list[Entry]:
        """The versions of a subject, oldest first; empty where it is unknown."""
        return [entry for entry in self._entries if entry.subject == subject]

    def schema(self, schema_id: int) -> dict[str, Any]:
        """The schema of an id. Raises ``KeyError``."""
        if not 1 <= schema_id <= len(self._entries):
            raise KeyError(f"schema id {schema_id} is not in {self.path or 'the lock'} ({len(self)} schemas).")
        return self._entries[schema_id - 1].schema

    def id_of(self, subject: str, schema: Mapping[str, Any]) -> int | None:
        """The id under which ``schema`` is locked for ``subject``; None where it is not."""
        for entry in self.entries(subject):
            if entry.schema == schema:
                return entry.id
        return None

    def latest(self, subject: str) -> Entry | None:
        """The newest version of a subject; None where it is unknown."""
        return next((entry for entry in reversed(self._entries) if entry.subject == subject), None)

    def append(self, subject: str, schema: Mapping[str, Any]) -> int:
        """Locks ``schema`` as the next version of ``subject`` and gives its id; one that is locked already keeps its
        own.

        Raises ``UnsupportedSchema`` or ``IncompatibleSchema``, and the file stays as it was.
        """
        known = self.id_of(subject, schema)
        if known is not None:
            return known
        try:
            parse(schema)
        except UnsupportedSchema as error:
            raise UnsupportedSchema(f"schema {subject!r}: {error}") from None
        before = self.entries(subject)
        found = check(schema, [entry.schema for entry in before])
        if found:
            raise IncompatibleSchema(subject, len(before) + 1, found)
        entry = Entry(len(self) + 1, subject, len(before) + 1, fingerprint(dict(schema)), dict(schema))
        if self.path is not None:
            _append_line(self.path, entry.line())
        self._entries.append(entry)
        return entry.id


def _append_line(path: Path, line: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # one write of one line: a reader sees all of it or nothing
    with path.open("ab") as file:
        file.write(f"{line}\n".encode())
        file.flush()
        os.fsync(file.fileno())
