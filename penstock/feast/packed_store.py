"""What Penstock's online stores have in common: packed rows, versions, TTL, and Feast's interface in front of them.

The version of a row is (event time, offset) and an older one never replaces a newer one, so rows may be written again
and in any order. Rows that stock Feast writes carry no offset and lose to a streamed row of the same event time.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
from feast import FeatureView
from feast.infra.key_encoding_utils import serialize_entity_key
from feast.infra.online_stores.online_store import OnlineStore
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.repo_config import RepoConfig
from feast.value_type import ValueType

from penstock.envelope import EVENT_TIME
from penstock.feast.online_rows import LAYOUT_BYTES, Layout

OFFSET = "_offset"
NO_OFFSET = -1
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_KEY_TYPES = {"string_val": pa.string(), "int64_val": pa.int64(), "int32_val": pa.int32()}
_KEY_VALUES = {ValueType.STRING: "string_val", ValueType.INT64: "int64_val", ValueType.INT32: "int32_val"}


@dataclass(frozen=True)
class PackedRows:
    """Rows to write. ``times``: µs since epoch, event time; ``offsets``: the second half of the version."""

    keys: list[bytes]
    times: list[int]
    offsets: list[int]
    rows: list[bytes]


class PackedOnlineStore(OnlineStore):  # type: ignore[misc]  # feast ships no types
    """Feast's OnlineStore over ``put`` and ``get``, which a store of its own implements."""

    @abstractmethod
    def put(self, config: RepoConfig, view: str, rows: PackedRows) -> None:
        """Write each row unless the entity has one of a newer version."""

    @abstractmethod
    def get(self, config: RepoConfig, view: str, keys: Sequence[bytes]) -> dict[bytes, tuple[int, bytes]]:
        """Event time in µs and packed row of the entities that have one."""

    @abstractmethod
    def remember_layout(self, config: RepoConfig, layout: Layout) -> None:
        """Keep the layout for the readers of its rows."""

    @abstractmethod
    def recall_layout(self, config: RepoConfig, layout_id: bytes) -> Layout:
        """The layout that was remembered. Raises ``LookupError``."""

    def write_rows(self, config: RepoConfig, view: FeatureView, rows: pa.Table) -> int:
        """Write the newest row of each entity; returns how many that are.

        ``rows``: the entity's join key, ``_event_time``, ``_offset`` and the view's features, as its topic has them.
        """
        rows = newest(rows, key_column(view))
        columns = {name: rows.column(name).combine_chunks() for name in rows.column_names}
        layout = _layout(view)
        self.remember_layout(config, layout)
        times = columns[EVENT_TIME].cast(pa.timestamp("us")).cast(pa.int64()).to_pylist()
        packed = PackedRows(
            entity_keys(view, columns[key_column(view)]),
            times,
            columns[OFFSET].to_pylist(),
            layout.pack(columns, len(rows)),
        )
        self.put(config, view.name, packed)
        return len(rows)

    def online_write_batch(
        self,
        config: RepoConfig,
        table: FeatureView,
        data: list[tuple[EntityKey, dict[str, Value], datetime, datetime | None]],
        progress: Callable[[int], Any] | None,
    ) -> None:
        if not data:
            return
        layout = _layout(table)
        self.remember_layout(config, layout)
        columns = {name: [values.get(name) for _, values, _, _ in data] for name, _ in layout.fields}
        packed = PackedRows(
            [_serialized(config, key) for key, _, _, _ in data],
            [_microseconds(time) for _, _, time, _ in data],
            [NO_OFFSET] * len(data),
            layout.pack(columns, len(data)),
        )
        self.put(config, table.name, packed)
        if progress:
            progress(len(data))

    def online_read(
        self,
        config: RepoConfig,
        table: FeatureView,
        entity_keys: list[EntityKey],
        requested_features: list[str] | None = None,
    ) -> list[tuple[datetime | None, dict[str, Value] | None]]:
        keys = [_serialized(config, key) for key in entity_keys]
        found = self.get(config, table.name, keys)
        oldest = _oldest(table)
        alive = {key: held for key, held in found.items() if held[0] >= oldest}
        unpacked = self._unpack(config, alive, requested_features)
        missing = (None, None)
        return [
            missing if key not in alive else (EPOCH + timedelta(microseconds=alive[key][0]), unpacked[key])
            for key in keys
        ]

    def _unpack(
        self, config: RepoConfig, held: dict[bytes, tuple[int, bytes]], wanted: list[str] | None
    ) -> dict[bytes, dict[str, Value]]:
        by_layout: dict[bytes, list[bytes]] = {}
        for key, (_, row) in held.items():
            by_layout.setdefault(row[:LAYOUT_BYTES], []).append(key)
        unpacked: dict[bytes, dict[str, Value]] = {}
        for layout_id, keys in by_layout.items():
            columns = self.recall_layout(config, layout_id).unpack([held[key][1] for key in keys], wanted)
            names = list(columns)
            for key, *values in zip(keys, *columns.values(), strict=True):
                unpacked[key] = dict(zip(names, values, strict=True))
        return unpacked


def newest(rows: pa.Table, key: str) -> pa.Table:
    """The row of the highest (event time, offset) of each key."""
    codes = rows.column(key).combine_chunks().dictionary_encode().indices.to_numpy(zero_copy_only=False)
    times = rows.column(EVENT_TIME).cast(pa.int64()).to_numpy()
    order = np.lexsort((rows.column(OFFSET).to_numpy(), times, codes))
    last = np.append(np.flatnonzero(np.diff(codes[order])), len(order) - 1) if len(order) else order
    return rows.take(pa.array(order[last])) if len(last) < len(rows) else rows


def features_of(view: FeatureView) -> list[Any]:
    """The view's features without its keys, which a stream view from the registry has among them."""
    keys = {column.name for column in view.entity_columns}
    return [feature for feature in view.features if feature.name not in keys]


def key_column(view: FeatureView) -> str:
    """The view's one join key. Raises ``ValueError`` where it has several: a stream is keyed by one entity."""
    if len(view.entity_columns) != 1:
        raise ValueError(
            f"view {view.name!r} has the join keys {[c.name for c in view.entity_columns]}. "
            "A view that Penstock writes has one"
        )
    return str(view.entity_columns[0].name)


def entity_keys(view: FeatureView, values: "pa.Array[Any]") -> list[bytes]:
    """Feast's serialized entity keys (version 3), which are one constant head and the value."""
    kind = view.entity_columns[0].dtype.to_value_type()
    attribute = _KEY_VALUES.get(kind)
    if attribute is None:
        raise ValueError(
            f"view {view.name!r} is keyed by a {kind.name}. Entities can be {[k.name for k in _KEY_VALUES]}"
        )
    values = values.cast(_KEY_TYPES[attribute])
    sample: Any = "" if attribute == "string_val" else 0
    name = key_column(view)
    head = serialize_entity_key(EntityKey(join_keys=[name], entity_values=[Value(**{attribute: sample})]), 3)
    if attribute == "string_val":
        head = head[:-4]  # what follows is the length and the text
        texts = [text.encode() for text in values.to_pylist()]
        return [head + len(text).to_bytes(4, "little") + text for text in texts]
    size = values.type.bit_width // 8
    data = values.to_numpy(zero_copy_only=False).tobytes()
    return [head[:-size] + data[start : start + size] for start in range(0, len(data), size)]


def _serialized(config: RepoConfig, key: EntityKey) -> bytes:
    return serialize_entity_key(key, config.entity_key_serialization_version)  # type: ignore[no-any-return]


def _layout(view: FeatureView) -> Layout:
    return Layout(tuple((feature.name, feature.dtype.to_value_type()) for feature in features_of(view)))


def _oldest(view: FeatureView) -> int:
    """Event time in µs of the oldest row that the view's TTL still serves; a view without TTL serves every row."""
    if not view.ttl:
        return int(np.iinfo(np.int64).min)
    return _microseconds(datetime.now(UTC) - view.ttl)


def _microseconds(time: datetime) -> int:
    aware = time if time.tzinfo is not None else time.replace(tzinfo=UTC)
    return (aware - EPOCH) // timedelta(microseconds=1)
