"""The checks that every pipeline passes, whoever wrote it: ``penstock check PIPELINE``.

Stages are found by the entry points of the installed services, so a pipeline is checked against the very code that will
run it; a service that is not installed is a failure, never a silent skip.
"""

from collections.abc import Iterator
from typing import Any

from penstock.checks.result import CheckResult
from penstock.plan import Plan, PlanError

__all__ = ["CheckResult", "run_checks"]

SAMPLES = 200


def run_checks(source: str, samples: int = SAMPLES, seed: int = 0, find_kind: Any = None) -> Iterator[CheckResult]:
    """Checks the pipeline behind the import string ``source``, one result at a time.

    ``find_kind(stage name)`` finds a stage's service; the installed ones if not given.
    """
    from penstock.checks.functions import check_functions
    from penstock.checks.samples import sample_rows
    from penstock.checks.stages import check_stages
    from penstock.checks.stock_feast import check_apply, feast_udfs
    from penstock.compiling import compile_pipeline
    from penstock.compiling.folder import open_folder

    try:
        plan = compile_pipeline(source)
        folder = open_folder(source)
        events = sample_rows(plan, folder.path, samples, seed)
    except PlanError as error:
        yield CheckResult("compiles", source, False, str(error))
        return
    yield CheckResult("compiles", source, True, f"plan {plan.hash}, {events.num_rows} sample events")
    definitions = folder.import_string(folder.pipeline.feature_service).partition(":")[0]
    yield check_apply(definitions, plan.pipeline)
    yield from check_functions(plan, events, feast_udfs(definitions), seed)
    if find_kind is None:
        from penstock.worker import find_kind
    yield from check_stages(plan, events, find_kind)
    yield from _check_model(plan)


def _check_model(plan: Plan) -> Iterator[CheckResult]:
    """The newest registered version reads what the feature service gives."""
    if plan.model is None:
        return
    from penstock.models.manifest import ModelError
    from penstock.models.registry import ModelRegistry
    from penstock.settings import Settings

    subject, check = f"model {plan.model.name}", "model reads the service's columns"
    try:
        registry = ModelRegistry(Settings().models_url)
        version = registry.latest(plan.model.name)
        if version is None:
            yield CheckResult(check, subject, True, f"no version is registered in {registry.url} yet")
            return
        manifest, _ = registry.manifest(plan.model.name, version)
    except ModelError as error:
        yield CheckResult(check, subject, False, str(error))
        return
    columns = [column.name for column in plan.service.columns]
    unknown = [name for name in manifest.input.columns if name not in columns]
    if unknown:
        yield CheckResult(
            check,
            subject,
            False,
            f"version {version} reads {unknown[0]!r}, which {plan.service.name!r} lacks. Train it anew",
        )
    elif manifest.feature_service_hash != plan.service.hash:
        yield CheckResult(
            check,
            subject,
            False,
            f"version {version} was trained on {plan.service.name!r} with hash {manifest.feature_service_hash}, "
            f"and it is {plan.service.hash} now. Train it anew",
        )
    else:
        yield CheckResult(check, subject, True, f"version {version}")
