"""Feast's stores as the writer sees them: where the rows of each view go, online and offline.

Views come from the registry; where it lacks one, or has it with other features, the pipeline's own definitions are
applied, so that nobody has to remember `feast apply`. They come from code, never from a registry of others.
"""

import importlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from penstock.compiling.folder import open_folder
from penstock.envelope import EVENT_TIME
from penstock.feast.offline import CREATED_TIME, OfflineAppender
from penstock.plan import Plan, PlanError, ViewPlan
from penstock.settings import Settings

with warnings.catch_warnings():  # feast's own dependencies warn at import
    warnings.simplefilter("ignore")
    from feast import (
        Entity,
        FeatureService,
        FeatureStore,
        FeatureView,
        FileSource,
        OnDemandFeatureView,
        StreamFeatureView,
    )
    from feast.data_source import DataSource
    from feast.errors import FeatureViewNotFoundException

    from penstock.feast.packed_store import PackedOnlineStore, features_of, key_column, newest

DEFINITIONS = (DataSource, Entity, FeatureService, FeatureView, OnDemandFeatureView, StreamFeatureView)


@dataclass(frozen=True, slots=True)
class ViewStores:
    """Where one view's rows go. ``write_online`` takes rows as the view's topic has them and returns how many entities
    it wrote; ``offline`` takes what ``history`` makes of them."""

    view: ViewPlan
    write_online: Callable[[pa.Table], int] | None
    offline: OfflineAppender | None
    event_time: str
    created_time: str

    def history(self, rows: pa.Table) -> pa.Table:
        """Rows under the names that the view's FileSource gives to event and creation time, both UTC."""
        names = {EVENT_TIME: self.event_time, CREATED_TIME: self.created_time}
        utc = pa.timestamp("ms", tz="UTC")
        for name in names:
            rows = rows.set_column(rows.column_names.index(name), name, rows.column(name).cast(utc))
        return rows.rename_columns([names.get(name, name) for name in rows.column_names])


def open_stores(plan: Plan, settings: Settings) -> list[ViewStores]:
    """The stores of every view that has a topic. Raises ``PlanError`` with the mend."""
    folder = settings.feature_store_dir or (Path(plan.feature_store) if plan.feature_store else None)
    if folder is None or not (folder / "feature_store.yaml").exists():
        raise PlanError(
            f"pipeline {plan.pipeline!r} has no feature_store.yaml in {folder or 'its folder'}. "
            "Write one, or set PENSTOCK_FEATURE_STORE_DIR to the folder that holds it"
        )
    store = FeatureStore(repo_path=str(folder))
    _make_folders(store, folder)
    planned = [view for view in plan.views if view.topic is not None]
    if any(_registered(store, view) is None for view in planned):
        _apply(store, plan)
    return [_view_stores(store, view, folder) for view in planned]


def _make_folders(store: Any, folder: Path) -> None:
    """The folders of local files that Feast writes; it makes no parents itself."""
    for path in (store.config.registry.path, getattr(store.config.online_store, "path", None)):
        if path and "://" not in str(path):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)


def _registered(store: Any, view: ViewPlan) -> Any:
    """The view as the registry has it; None where it is missing or other."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # "stream feature views are experimental": so be it
            found = store.get_stream_feature_view(view.name)
    except FeatureViewNotFoundException:
        return None
    return found if {a.name for a in view.aggregations} == {f.name for f in features_of(found)} else None


def _apply(store: Any, plan: Plan) -> None:
    folder = open_folder(plan.source)
    module = importlib.import_module(folder.import_string(folder.pipeline.feature_service).partition(":")[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # feast's own, about its own experimental and deprecated parts
        store.apply([found for found in vars(module).values() if isinstance(found, DEFINITIONS)])


def _view_stores(store: Any, planned: ViewPlan, folder: Path) -> ViewStores:
    view = _registered(store, planned)
    if view is None:
        raise PlanError(f"view {planned.name!r} of the plan is not what its definitions say. Compile the plan again")
    source = view.batch_source
    offline = None
    if planned.offline:
        if not isinstance(source, FileSource):
            raise PlanError(
                f"view {planned.name!r} has offline=True and a {type(source).__name__} as its batch source. "
                "Penstock appends to a folder of Parquet files: use a FileSource"
            )
        path = Path(source.path)
        offline = OfflineAppender(path if path.is_absolute() else folder / path, str(planned.topic))
    return ViewStores(
        planned,
        _online_writer(store, view) if planned.online else None,
        offline,
        source.timestamp_field or EVENT_TIME,
        source.created_timestamp_column or CREATED_TIME,
    )


def _online_writer(store: Any, view: Any) -> Callable[[pa.Table], int]:
    online = store._get_provider().online_store
    if isinstance(online, PackedOnlineStore):
        return lambda rows: online.write_rows(store.config, view, rows)
    return _StockWriter(store, view)


class _StockWriter:
    """Writes to any of Feast's own stores, value by value. They take what comes last for the newest, so an older row is
    kept from them here, as far back as this process remembers."""

    def __init__(self, store: Any, view: Any) -> None:
        self._store, self._view = store, view
        self._key = key_column(view)
        self._newest: dict[Any, tuple[int, int]] = {}

    def __call__(self, rows: pa.Table) -> int:
        rows = newest(rows, self._key)
        keys = rows.column(self._key).to_pylist()
        versions = list(
            zip(rows.column(EVENT_TIME).cast(pa.int64()).to_pylist(), rows.column("_offset").to_pylist(), strict=True)
        )
        fresh = [self._newest.get(key, version) <= version for key, version in zip(keys, versions, strict=True)]
        source = self._view.batch_source
        names = {EVENT_TIME: source.timestamp_field, CREATED_TIME: source.created_timestamp_column or CREATED_TIME}
        chosen = rows.filter(pa.array(fresh)).rename_columns([names.get(name, name) for name in rows.column_names])
        if len(chosen):
            self._store.write_to_online_store(self._view.name, chosen.to_pandas())
        self._newest.update((k, v) for k, v, is_fresh in zip(keys, versions, fresh, strict=True) if is_fresh)
        return len(chosen)
