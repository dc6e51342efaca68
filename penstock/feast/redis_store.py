"""The online store of production: Redis, one packed row per entity, compared and replaced inside the server.

``feature_store.yaml``: ``online_store: {type: penstock.feast.redis_store.PenstockRedisOnlineStore, url: redis://host:6379/0}``.
One server with its replicas; a cluster is refused, because a batch of entities is written by one script.
"""

import struct
from collections.abc import Sequence
from typing import Any

import redis
from feast import Entity, FeatureView
from feast.repo_config import FeastConfigBaseModel, RepoConfig
from pydantic import SecretStr, StrictStr

from penstock.feast.online_rows import Layout
from penstock.feast.packed_store import PackedOnlineStore, PackedRows

CHUNK = 1024
"""Entities written or read in one round trip."""

VERSION = struct.Struct(">qq")
"""Event time in µs and offset, before every packed row."""

WRITE = """
for i, key in ipairs(KEYS) do
  local held = redis.call('GETRANGE', key, 0, 15)
  local newer = held == ''
  if not newer then
    local time, offset = struct.unpack('>i8i8', held)
    local new_time, new_offset = struct.unpack('>i8i8', ARGV[i])
    newer = new_time > time or (new_time == time and new_offset >= offset)
  end
  if newer then redis.call('SET', key, ARGV[i]) end
end
"""


class PenstockRedisOnlineStoreConfig(FeastConfigBaseModel):  # type: ignore[misc]  # feast ships no types
    """``url``: redis:// or rediss:// (TLS); ``password`` where it is not in the URL."""

    type: StrictStr = "penstock.feast.redis_store.PenstockRedisOnlineStore"
    url: StrictStr = "redis://localhost:6379/0"
    password: SecretStr | None = None
    timeout_s: float = 5.0


class PenstockRedisOnlineStore(PackedOnlineStore):
    """Keys are project, view and Feast's entity key; layouts are one hash per project."""

    def __init__(self) -> None:
        self._client: Any = None
        self._write: Any = None
        self._layouts: dict[bytes, Layout] = {}

    def _redis(self, config: RepoConfig) -> Any:
        if self._client is None:
            given = config.online_store
            password = given.password.get_secret_value() if given.password is not None else None
            more = {} if password is None else {"password": password}
            client = redis.Redis.from_url(given.url, socket_timeout=given.timeout_s, **more)
            if client.info("cluster").get("cluster_enabled"):
                raise ValueError(
                    f"the Redis of project {config.project!r} is a cluster. Give the URL of a single server"
                )
            self._write = client.register_script(WRITE)
            self._client = client
        return self._client

    def put(self, config: RepoConfig, view: str, rows: PackedRows) -> None:
        client, prefix = self._redis(config), _prefix(config, view)
        pipeline = client.pipeline(transaction=False)
        versions = map(VERSION.pack, rows.times, rows.offsets)
        values = [version + row for version, row in zip(versions, rows.rows, strict=True)]
        for start in range(0, len(values), CHUNK):
            keys = [prefix + key for key in rows.keys[start : start + CHUNK]]
            self._write(keys=keys, args=values[start : start + CHUNK], client=pipeline)
        pipeline.execute()

    def get(self, config: RepoConfig, view: str, keys: Sequence[bytes]) -> dict[bytes, tuple[int, bytes]]:
        client, prefix = self._redis(config), _prefix(config, view)
        found: dict[bytes, tuple[int, bytes]] = {}
        for start in range(0, len(keys), CHUNK):
            part = keys[start : start + CHUNK]
            for key, value in zip(part, client.mget([prefix + key for key in part]), strict=True):
                if value is not None:
                    found[key] = (VERSION.unpack_from(value)[0], value[VERSION.size :])
        return found

    def remember_layout(self, config: RepoConfig, layout: Layout) -> None:
        # every time: a server that lost its data must not be left with rows that nobody can read
        self._redis(config).hset(_layouts(config), layout.id, layout.dump())

    def recall_layout(self, config: RepoConfig, layout_id: bytes) -> Layout:
        if layout_id not in self._layouts:
            held = self._redis(config).hget(_layouts(config), layout_id)
            if held is None:
                raise LookupError(f"Redis has rows of an unknown layout {layout_id.hex()}. Write the view again")
            self._layouts[layout_id] = Layout.load(held.decode())
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
        self._delete(config, tables_to_delete)

    def teardown(self, config: RepoConfig, tables: Sequence[FeatureView], entities: Sequence[Entity]) -> None:
        self._delete(config, tables)

    def _delete(self, config: RepoConfig, views: Sequence[FeatureView]) -> None:
        for view in views:
            client, doomed = self._redis(config), []
            for key in client.scan_iter(match=_escaped(_prefix(config, view.name)) + b"*", count=CHUNK):
                doomed.append(key)
                if len(doomed) == CHUNK:
                    client.unlink(*doomed)
                    doomed = []
            if doomed:
                client.unlink(*doomed)


def _prefix(config: RepoConfig, view: str) -> bytes:
    return f"penstock:{config.project}:{view}:".encode()


def _layouts(config: RepoConfig) -> str:
    return f"penstock:{config.project}::layouts"


def _escaped(text: bytes) -> bytes:
    """As a pattern of Redis that matches just this."""
    return b"".join(b"\\" + bytes([byte]) if byte in b"*?[]\\^-" else bytes([byte]) for byte in text)
