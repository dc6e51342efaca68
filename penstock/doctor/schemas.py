"""Whether the schemas that the plan was compiled from are those in force: every version of the lock is in the registry
as it was locked and stays guarded there; without a registry the lock itself is in force, and is held against the files.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from penstock.cli.schemas import problems_of
from penstock.doctor.finding import Finding, fail, ok, unseen, warn
from penstock.plan import AvroSchema
from penstock.schemas.lock import NAME, DamagedLock, SchemaLock
from penstock.schemas.registry import LEVEL, TransientLookupError

SCHEMAS, COMPATIBILITY = "schemas", "compatibility"


class Registered(Protocol):
    """The part of a registry that is asked here. Methods raise ``TransientLookupError``."""

    url: str

    def id_of(self, subject: str, schema: AvroSchema) -> int | None: ...

    def level(self, subject: str) -> str | None: ...


def check_schemas(folder: Path, registry: Registered | None) -> Iterator[Finding]:
    """``folder`` is the pipeline's."""
    problems = list(problems_of(folder))
    for problem in problems:
        yield fail(SCHEMAS, f"{problem.place}: {problem.message}", f"penstock schemas check {folder}")
    try:
        lock = SchemaLock.load(folder / NAME)
    except DamagedLock:
        yield unseen(COMPATIBILITY, "the lock is damaged")
        return
    if registry is None:
        if not problems:
            yield ok(
                SCHEMAS, f"{len(lock)} versions of {len(lock.subjects)} subjects, ids are lines of {folder / NAME}"
            )
            yield ok(COMPATIBILITY, f"every version in the lock is {LEVEL} to those before it")
        return
    try:
        yield from _registered(lock, registry, folder, problems=bool(problems))
    except TransientLookupError as error:
        yield fail(SCHEMAS, str(error), "start the registry, or look at PENSTOCK_SCHEMA_REGISTRY_URL")
        yield unseen(COMPATIBILITY, "the registry cannot be asked")


def _registered(lock: SchemaLock, registry: Registered, folder: Path, *, problems: bool) -> Iterator[Finding]:
    absent = [
        entry
        for subject in lock.subjects
        for entry in lock.entries(subject)
        if registry.id_of(subject, entry.schema) is None
    ]
    for entry in absent:
        yield fail(
            SCHEMAS,
            f"{registry.url} does not hold {entry.subject} v{entry.version} with fingerprint {entry.fingerprint}",
            f"penstock schemas register {folder}",
        )
    if not absent and not problems:
        yield ok(SCHEMAS, f"{len(lock)} versions of {len(lock.subjects)} subjects are in {registry.url} as locked")
    levels = {subject: registry.level(subject) for subject in lock.subjects}
    loose = {subject: level for subject, level in levels.items() if level not in (None, LEVEL)}
    for subject, level in loose.items():
        yield warn(
            COMPATIBILITY,
            f"{registry.url} guards {subject} by {level}: others may register what our readers cannot read",
            f'curl -X PUT {registry.url}/config/{subject} -H "Content-Type: application/json" '
            f'-d \'{{"compatibility": "{LEVEL}"}}\'',
        )
    untold = sum(level is None for level in levels.values())
    if untold:
        yield unseen(COMPATIBILITY, f"{registry.url} does not tell it for {untold} of {len(levels)} subjects")
    elif not loose:
        yield ok(COMPATIBILITY, f"{LEVEL} for all {len(levels)} subjects")
