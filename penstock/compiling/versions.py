"""Gives every schema of a pipeline its id: from ``schemas.lock`` beside the pipeline, or from a registry. A plan is
only compiled from schemas that are locked, so that what a topic may hold is seen in review.
"""

from typing import Literal

from penstock.compiling.folder import PipelineFolder
from penstock.plan import AvroSchema, PlanError, SchemaPlan
from penstock.schemas.compatibility import IncompatibleSchema
from penstock.schemas.lock import NAME, DamagedLock, SchemaLock
from penstock.schemas.registry import Registry


def schemas_in_force(
    folder: PipelineFolder, values: dict[str, AvroSchema], mode: Literal["extend", "require"], registry: Registry | None
) -> tuple[dict[str, SchemaPlan], dict[int, AvroSchema]]:
    """Topic suffix → schema with its id, and id → schema of every version that is known here. Raises ``PlanError``."""
    try:
        lock = SchemaLock.load(folder.path / NAME)
    except DamagedLock as error:
        raise PlanError(str(error)) from None
    found: dict[str, SchemaPlan] = {}
    for suffix, avro in values.items():
        subject = f"{folder.pipeline.name}.{suffix}-value"
        locked = _locked(lock, subject, avro, mode, folder.source)
        number = locked if registry is None else _registered(registry, subject, avro, mode, folder)
        found[suffix] = SchemaPlan(subject=subject, id=number, avro=avro)
    if registry is not None:
        return found, {value.id: value.avro for value in found.values()}
    return found, {number: lock.schema(number) for number in range(1, len(lock) + 1)}


def _locked(lock: SchemaLock, subject: str, avro: AvroSchema, mode: str, source: str) -> int:
    number = lock.id_of(subject, avro)
    if number is not None:
        return number
    if mode == "require":
        raise PlanError(
            f"{lock.path} does not hold the schema of {subject!r} as it is now. "
            f"Look at what changed, then run `penstock schemas lock {source}`"
        )
    try:
        return lock.append(subject, avro)
    except IncompatibleSchema as error:
        raise PlanError(str(error)) from None


def _registered(registry: Registry, subject: str, avro: AvroSchema, mode: str, folder: PipelineFolder) -> int:
    number = registry.id_of(subject, avro)
    if number is not None:
        return number
    if mode == "require":
        raise PlanError(
            f"the registry does not hold the schema of {subject!r} as it is now. "
            f"Run `penstock schemas register {folder.path}`"
        )
    try:
        return registry.register(subject, avro)
    except IncompatibleSchema as error:
        raise PlanError(str(error)) from None
