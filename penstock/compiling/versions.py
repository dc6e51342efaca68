"""Gives every schema of a pipeline its id: from ``schemas.lock`` beside the pipeline, or from a registry. A plan is
only compiled from schemas that are locked, so that what a topic may hold is seen in review.
"""

import json
from pathlib import Path
from typing import Literal, Protocol

from penstock.compiling.folder import PipelineFolder
from penstock.plan import AvroSchema, PlanError, SchemaPlan, fingerprint

LOCK_FILE = "schemas.lock"


class Registry(Protocol):
    """A schema registry by URL."""

    def register(self, subject: str, schema: AvroSchema) -> int: ...


def schemas_in_force(
    folder: PipelineFolder, values: dict[str, AvroSchema], mode: Literal["extend", "require"], registry: Registry | None
) -> tuple[dict[str, SchemaPlan], dict[int, AvroSchema]]:
    """Topic suffix → schema with its id, and id → schema of every version that is known. Raises ``PlanError``."""
    path = folder.path / LOCK_FILE
    entries = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    added = []
    found: dict[str, SchemaPlan] = {}
    for suffix, avro in values.items():
        subject = f"{folder.pipeline.name}.{suffix}-value"
        digest = fingerprint(avro)
        places = [
            i for i, entry in enumerate(entries) if entry["subject"] == subject and entry["fingerprint"] == digest
        ]
        if not places:
            if mode == "require":
                raise PlanError(
                    f"{path} does not hold the schema of {subject!r} as it is now. "
                    f"Look at the change, then run `penstock schemas lock {folder.source}`"
                )
            version = 1 + sum(entry["subject"] == subject for entry in entries)
            added.append({"subject": subject, "version": version, "fingerprint": digest, "schema": avro})
            entries.append(added[-1])
            places = [len(entries) - 1]
        found[suffix] = SchemaPlan(subject=subject, id=places[-1] + 1, avro=avro)
    _append(path, added)
    return found, {i + 1: entry["schema"] for i, entry in enumerate(entries)}


def _append(path: Path, entries: list[dict[str, object]]) -> None:
    if entries:
        with path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(entry, separators=(",", ":")) + "\n" for entry in entries)
