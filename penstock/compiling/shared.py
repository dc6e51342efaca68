"""The Avro records that all pipelines share (predictions, outcomes, alerts…): files in ``schemas/`` of a checkout,
package data of the installed wheel."""

from functools import cache
from pathlib import Path

from penstock.compiling.folder import read_schema
from penstock.plan import AvroSchema, PlanError

NAMES = ("prediction", "outcome", "dropped", "control", "profile", "alert")


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
