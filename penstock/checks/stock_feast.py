"""``feast apply`` on the pipeline's definitions, with a registry and an online store of its own in a temporary folder.
Imports feast."""

import importlib
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from penstock.checks.result import CheckResult

with warnings.catch_warnings():  # feast's own dependencies warn at import
    warnings.simplefilter("ignore")
    from feast import Entity, FeatureService, FeatureStore, FeatureView, OnDemandFeatureView, RepoConfig
    from feast.data_source import DataSource


def definitions_of(module_name: str) -> list[Any]:
    """Every Feast object at the top of the module, in the order in which it was written."""
    kinds = (Entity, DataSource, FeatureView, OnDemandFeatureView, FeatureService)
    return [value for value in vars(importlib.import_module(module_name)).values() if isinstance(value, kinds)]


def feast_udfs(module_name: str) -> dict[str, Callable[..., Any]]:
    """On-demand view → the function that Feast itself calls."""
    views = [value for value in definitions_of(module_name) if isinstance(value, OnDemandFeatureView)]
    return {view.name: view.feature_transformation.udf for view in views}


def check_apply(module_name: str, project: str) -> CheckResult:
    """Stock Feast registers every object of the module and reads the service back."""
    subject = module_name
    with tempfile.TemporaryDirectory(prefix="penstock-check-") as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        root = Path(folder)
        config = RepoConfig(
            project=project,
            provider="local",
            registry=str(root / "registry.db"),
            online_store={"type": "sqlite", "path": str(root / "online.db")},
            offline_store={"type": "file"},
            entity_key_serialization_version=3,
        )
        store = FeatureStore(config=config)
        try:
            store.apply(definitions_of(module_name))
            known = {service.name for service in store.list_feature_services()}
        except Exception as error:  # noqa: BLE001  # Feast raises whatever its parts raise; that is the finding
            return CheckResult("feast apply accepts it", subject, False, f"{type(error).__name__}: {error}")
        finally:
            store.teardown()
    return CheckResult(
        "feast apply accepts it", subject, bool(known), "" if known else "the module has no FeatureService"
    )
