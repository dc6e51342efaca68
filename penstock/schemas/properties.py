"""What a schema asks of a field's values beside its type: ``minimum`` and ``maximum`` of a number, the ``pattern`` of a
string (RE2), whether a number may be NaN (``allowNaN``). Looked at before a schema is locked, for its versions stay.
"""

import math
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from penstock.plan import AvroSchema, PlanError

WHOLE = {"int": 32, "long": 64}
"""Bits of a type."""
NUMBERS = frozenset({*WHOLE, "float", "double"})


def check_properties(schema: AvroSchema) -> None:
    """Raises ``PlanError`` for one that makes no sense, naming the field."""
    for field in schema["fields"]:
        name, base = field["name"], base_type(field["type"])
        bounds = {bound: field[bound] for bound in ("minimum", "maximum") if bound in field}
        for bound, value in bounds.items():
            if base not in NUMBERS:
                raise PlanError(f"field {name!r} has a {bound} but is a {base}. Only numbers have one")
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise PlanError(f"the {bound} of field {name!r} is {value!r}. Give a number")
        if bounds and not _some_pass(base, bounds.get("minimum", -math.inf), bounds.get("maximum", math.inf)):
            said = " and ".join(f"{bound} {value}" for bound, value in bounds.items())
            raise PlanError(f"field {name!r} of type {base} has {said}: no value would pass. Change that")
        if "pattern" in field:
            if base != "string":
                raise PlanError(f"field {name!r} has a pattern but is a {base}. Only strings have one")
            _check_pattern(name, field["pattern"])
        if not isinstance(field.get("allowNaN", False), bool):
            raise PlanError(f"allowNaN of field {name!r} is {field['allowNaN']!r}. Give true or false")


def _some_pass(base: str, least: float, most: float) -> bool:
    """Whether a number of the type lies between the bounds, both included."""
    if base in WHOLE:
        end = 2 ** (WHOLE[base] - 1)
        least, most = max(least, -end), min(most, end - 1)
        return math.ceil(least) <= math.floor(most)
    return least <= most


def _check_pattern(name: str, pattern: Any) -> None:
    if not isinstance(pattern, str):
        raise PlanError(f"the pattern of field {name!r} is {pattern!r}. Give a string")
    try:
        pc.match_substring_regex(pa.array([""]), pattern)
    except pa.ArrowInvalid as error:
        raise PlanError(f"the pattern {pattern!r} of field {name!r} is no RE2 expression: {error}") from None


def base_type(declared: Any) -> str:
    """The Avro type without null, ``logical`` for one with a logical type."""
    if isinstance(declared, list):
        others = [branch for branch in declared if branch != "null"]
        return base_type(others[0]) if len(others) == 1 else "union"
    if isinstance(declared, dict):
        return "logical" if "logicalType" in declared else base_type(declared["type"])
    return str(declared)
