"""The embedded online store: SQLite, one packed row per entity, read and written by several processes at once.

``feature_store.yaml``: ``online_store: {type: penstock.feast.online_store.PenstockOnlineStore, path: online.db}``;
a relative path starts at that file's folder.
"""

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from feast import Entity, FeatureView
from feast.repo_config import FeastConfigBaseModel, RepoConfig
from pydantic import StrictStr

from penstock.feast.online_rows import Layout
from penstock.feast.packed_store import PackedOnlineStore, PackedRows

CHUNK = 512
"""Entities asked for in one query; SQLite takes up to 999 parameters everywhere."""


class PenstockOnlineStoreConfig(FeastConfigBaseModel):  # type: ignore[misc]  # feast ships no types
    """``path``: the database file. ``busy_timeout_s``: how long a writer waits for another one's lock."""

    type: StrictStr = "penstock.feast.online_store.PenstockOnlineStore"
    path: StrictStr = "data/online.db"
    busy_timeout_s: float = 5.0


class PenstockOnlineStore(PackedOnlineStore):
    """Rows in a table per view, layouts in a table of their own."""

    def __init__(self) -> None:
        self._connection: sqlite3.Connection | None = None
        self._inode: int | None = None
        self._lock = threading.Lock()
        self._layouts: dict[bytes, Layout] = {}
        self._remembered: set[bytes] = set()
        self._tables: set[str] = set()

    @contextmanager
    def _transaction(self, config: RepoConfig) -> Iterator[sqlite3.Connection]:
        """The one connection, for one thread at a time; committed at the end, rolled back where anything raises."""
        with self._lock:
            path = _path(config)
            if self._connection is not None and _inode(path) != self._inode:
                self._forget()  # the file was removed or replaced, and nobody would read what the old one gets
            if self._connection is None:
                self._connection = _connect(path, config.online_store.busy_timeout_s)
                self._inode = _inode(path)
            try:
                with self._connection as connection:
                    yield connection
            except sqlite3.Error:
                self._forget()
                raise

    def _forget(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None
        self._tables.clear()
        self._remembered.clear()

    def disconnect(self) -> None:
        """Close the database; the next call opens it again."""
        with self._lock:
            self._forget()

    def _table(self, connection: sqlite3.Connection, config: RepoConfig, view: str) -> str:
        name = _quoted(f"{config.project}_{view}")
        if name not in self._tables:
            connection.execute(
                f"CREATE TABLE IF NOT EXISTS {name} (entity_key BLOB PRIMARY KEY, event_time INTEGER NOT NULL, "
                "version INTEGER NOT NULL, row BLOB NOT NULL) WITHOUT ROWID"
            )
            self._tables.add(name)
        return name

    def put(self, config: RepoConfig, view: str, rows: PackedRows) -> None:
        with self._transaction(config) as connection:
            table = self._table(connection, config, view)
            connection.executemany(
                f"INSERT INTO {table} VALUES (?, ?, ?, ?) ON CONFLICT (entity_key) DO UPDATE SET "
                "event_time = excluded.event_time, version = excluded.version, row = excluded.row "
                "WHERE (excluded.event_time, excluded.version) >= (event_time, version)",
                zip(rows.keys, rows.times, rows.offsets, rows.rows, strict=True),
            )

    def get(self, config: RepoConfig, view: str, keys: Sequence[bytes]) -> dict[bytes, tuple[int, bytes]]:
        found: dict[bytes, tuple[int, bytes]] = {}
        with self._transaction(config) as connection:
            table = self._table(connection, config, view)
            for start in range(0, len(keys), CHUNK):
                part = keys[start : start + CHUNK]
                query = f"SELECT entity_key, event_time, row FROM {table} WHERE entity_key IN ({_marks(len(part))})"
                found.update((key, (time, row)) for key, time, row in connection.execute(query, part))
        return found

    def remember_layout(self, config: RepoConfig, layout: Layout) -> None:
        if layout.id in self._remembered:
            return
        with self._transaction(config) as connection:
            connection.execute("INSERT OR IGNORE INTO _penstock_layouts VALUES (?, ?)", (layout.id, layout.dump()))
        self._remembered.add(layout.id)
        self._layouts[layout.id] = layout

    def recall_layout(self, config: RepoConfig, layout_id: bytes) -> Layout:
        if layout_id not in self._layouts:
            with self._transaction(config) as connection:
                held = connection.execute("SELECT fields FROM _penstock_layouts WHERE id = ?", (layout_id,)).fetchone()
            if held is None:
                raise LookupError(
                    f"the online store has rows of an unknown layout {layout_id.hex()}. Write the view again"
                )
            self._layouts[layout_id] = Layout.load(held[0])
        return self._layouts[layout_id]

    def update(
        self,
        config: RepoConfig,
        tables_to_delete: Sequence[FeatureView],
        tables_to_keep: Sequence[FeatureView],
        entities_to_delete: Sequence[Entity],
        entities_to_keep: Sequence[Entity],
        partial: bool,
    ) -> None:
        with self._transaction(config) as connection:
            for view in tables_to_keep:
                self._table(connection, config, view.name)
            for view in tables_to_delete:
                self._drop(connection, config, view)

    def teardown(self, config: RepoConfig, tables: Sequence[FeatureView], entities: Sequence[Entity]) -> None:
        with self._transaction(config) as connection:
            for view in tables:
                self._drop(connection, config, view)

    def _drop(self, connection: sqlite3.Connection, config: RepoConfig, view: FeatureView) -> None:
        name = _quoted(f"{config.project}_{view.name}")
        connection.execute(f"DROP TABLE IF EXISTS {name}")
        self._tables.discard(name)


def _path(config: RepoConfig) -> Path:
    path = Path(config.online_store.path)
    return Path(config.repo_path) / path if config.repo_path and not path.is_absolute() else path


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return None


def _connect(path: Path, timeout_s: float) -> sqlite3.Connection:
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path, timeout=timeout_s, check_same_thread=False)
    connection.execute("PRAGMA journal_mode = WAL")  # readers go on while a writer writes
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("CREATE TABLE IF NOT EXISTS _penstock_layouts (id BLOB PRIMARY KEY, fields TEXT NOT NULL)")
    return connection


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _marks(n: int) -> str:
    return ",".join("?" * n)
