"""The checks a schema declares on its fields, compiled once and run on whole columns: ``minimum``, ``maximum`` and
``pattern`` as JSON schema names them, no NaN or infinity unless the field says ``allowNaN``, and no date outside of the
years 1 to 9999, which many who read on, Python first, cannot hold.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from penstock.plan import AvroSchema
from penstock.records import Bools, Reason
from penstock.schemas.properties import base_type, check_properties

_FLOATS = {"float", "double"}
_DATES = ("date", "timestamp", "local-timestamp")
_EPOCH = date(1970, 1, 1)
_FIRST_DAY, _LAST_DAY = (date.min - _EPOCH).days, (date.max - _EPOCH).days
_PER_DAY = {"s": 86_400, "ms": 86_400_000, "us": 86_400_000_000, "ns": 86_400_000_000_000}


@dataclass(frozen=True, slots=True)
class FieldCheck:
    """``failed(column)``: bool[n], true where a value is there and does not pass."""

    field: str
    kind: str
    rule: str
    failed: Callable[[pa.Array], Bools]

    def reason(self, value: pa.Scalar) -> Reason:
        if pa.types.is_nested(value.type):
            shown = f"{len(value)} values"
        elif pa.types.is_temporal(value.type):
            shown = f"{value.value} since 1970"  # it may be no date to Python
        else:
            shown = (
                f"a text of {len(value.as_py())} characters" if pa.types.is_string(value.type) else repr(value.as_py())
            )
        return Reason(self.kind, f"field {self.field!r} is {shown}; its schema asks for {self.rule}")


def declared_checks(schema: AvroSchema) -> list[FieldCheck]:
    """The checks of a record schema's fields, in field order. Raises ``PlanError`` for one that makes no sense."""
    check_properties(schema)
    checks = []
    for field in schema["fields"]:
        name, base = field["name"], base_type(field["type"])
        if _holds(field["type"], _is_float) and not field.get("allowNaN", False):
            rule = "a finite number" if base in _FLOATS else "finite numbers"
            checks.append(FieldCheck(name, "not a finite number", rule, partial(_anywhere, _not_finite)))
        if _holds(field["type"], _is_date):
            checks.append(
                FieldCheck(name, "out of range", "dates of the years 1 to 9999", partial(_anywhere, _no_date))
            )
        for bound, word in (("minimum", "at least"), ("maximum", "at most")):
            if bound in field:
                failed = _below(field[bound]) if bound == "minimum" else _above(field[bound])
                checks.append(FieldCheck(name, "out of range", f"{word} {field[bound]}", failed))
        if "pattern" in field:
            checks.append(
                FieldCheck(name, "pattern mismatch", f"the pattern {field['pattern']}", _unlike(field["pattern"]))
            )
    return checks


def first_failures(rows: pa.RecordBatch, checks: list[FieldCheck]) -> dict[int, Reason]:
    """Row → why, for the first check that each bad row fails."""
    found: dict[int, Reason] = {}
    for check in checks:
        column = rows.column(check.field)
        for row in np.flatnonzero(check.failed(column)).tolist():
            found.setdefault(row, check.reason(column[row]))
    return found


def _bools(mask: pa.Array) -> Bools:
    if mask.null_count:
        mask = mask.fill_null(False)
    found: Bools = mask.to_numpy(zero_copy_only=False)
    return found


def _holds(declared: Any, wanted: Callable[[Any], bool]) -> bool:
    """Whether a type that is ``wanted`` is anywhere in the field."""
    if wanted(declared):
        return True
    if isinstance(declared, list):
        return any(_holds(branch, wanted) for branch in declared)
    if isinstance(declared, dict):
        inner = [declared[part] for part in ("type", "items", "values") if part in declared]
        inner += [field["type"] for field in declared.get("fields", ())]
        return any(_holds(part, wanted) for part in inner)
    return False


def _is_float(declared: Any) -> bool:
    return isinstance(declared, str) and declared in _FLOATS


def _is_date(declared: Any) -> bool:
    return isinstance(declared, dict) and str(declared.get("logicalType", "")).startswith(_DATES)


def _anywhere(wrong: Callable[[pa.Array], Bools], column: pa.Array) -> Bools:
    """Rows with a value that is ``wrong`` wherever it is nested."""
    kind = column.type
    found = np.zeros(len(column), np.bool_)
    if pa.types.is_struct(kind):
        parts = (_anywhere(wrong, column.field(i)) for i in range(kind.num_fields))
        for part in parts:
            found |= part
        return found & _bools(column.is_valid())
    if pa.types.is_map(kind):
        column = column.cast(pa.list_(pa.struct([("key", kind.key_type), ("value", kind.item_type)])))
    if pa.types.is_list(column.type):
        found[pc.list_parent_indices(column).to_numpy()[_anywhere(wrong, pc.list_flatten(column))]] = True
        return found
    return wrong(column)


def _not_finite(column: pa.Array) -> Bools:
    if pa.types.is_floating(column.type):
        return _bools(pc.invert(pc.is_finite(column)))
    return np.zeros(len(column), np.bool_)


def _no_date(column: pa.Array) -> Bools:
    kind = column.type
    if pa.types.is_date32(kind):
        per_day, numbers = 1, column.view(pa.int32())
    elif pa.types.is_timestamp(kind):
        per_day, numbers = _PER_DAY[kind.unit], column.view(pa.int64())
    else:
        return np.zeros(len(column), np.bool_)
    # all nanoseconds that there are lie within
    first, last = max(_FIRST_DAY * per_day, -(2**63)), min((_LAST_DAY + 1) * per_day - 1, 2**63 - 1)
    return _bools(pc.or_(pc.less(numbers, first), pc.greater(numbers, last)))


def _below(limit: float) -> Callable[[pa.Array], Bools]:
    return lambda column: _bools(pc.less(column, limit))


def _above(limit: float) -> Callable[[pa.Array], Bools]:
    return lambda column: _bools(pc.greater(column, limit))


def _unlike(pattern: str) -> Callable[[pa.Array], Bools]:
    def failed(column: pa.Array) -> Bools:
        words = column.dictionary_encode()  # codes of airports and carriers repeat: each is matched once
        passes = pc.match_substring_regex(words.dictionary, pattern)
        return _bools(pc.invert(passes.take(words.indices)))

    return failed
