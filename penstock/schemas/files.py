"""Avro records in files: a pipeline's own, and those that all pipelines share (predictions, outcomes, alerts…), which
lie in ``schemas/`` of a checkout and are package data of the installed wheel."""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from penstock.codec.shapes import UnsupportedSchema, parse
from penstock.plan import AvroSchema, PlanError
from penstock.schemas.properties import check_properties

NAMES = ("prediction", "outcome", "dropped", "control", "profile", "alert")


def read_schema(file: Path) -> AvroSchema:
    """The Avro record of an ``.avsc`` file, which the codec can decode. Raises ``PlanError``."""
    try:
        schema = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PlanError(f"no schema at {file}. Write the Avro record there, or name its file in the Pipeline") from None
    except ValueError as error:
        raise PlanError(f"{file} is not JSON: {error}") from None
    try:
        parse(schema)
    except UnsupportedSchema as error:
        raise PlanError(f"{file}: {error}") from None
    if not isinstance(schema, Mapping):
        raise PlanError(f"{file}: an Avro record is a JSON object")
    try:
        check_properties(dict(schema))
    except PlanError as error:
        raise PlanError(f"{file}: {error}") from None
    return dict(schema)


@cache
def shared_schemas() -> dict[str, AvroSchema]:
    """Name → schema of every shared record. Raises ``PlanError`` when one is missing."""
    folder = shared_folder()
    found = {file.stem: read_schema(file) for file in sorted(folder.glob("*.avsc"))}
    missing = [name for name in NAMES if name not in found]
    if missing:
        raise PlanError(f"{folder} lacks {missing[0]}.avsc. Install penstock again; in a checkout restore the file")
    return found


def shared_folder() -> Path:
    """Where the files are: beside the package in a wheel, at the root of a checkout."""
    package = Path(__file__).parents[1]
    candidates = (package / "schemas" / "shared", package.parent / "schemas")
    for folder in candidates:
        if any(folder.glob("*.avsc")):
            return folder
    raise PlanError(f"no shared Avro schemas in {' or '.join(map(str, candidates))}. Install penstock again")
