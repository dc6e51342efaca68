"""What is wrong with a value on a raw topic, found one value at a time with fastavro, Python's own json and the words
of the schema: an oracle for what ingest says of bytes that were changed at random. Not a line of Penstock's codec.
"""

import json
import math
import re
from collections.abc import Collection, Mapping
from io import BytesIO
from typing import Any

import fastavro

BLANKS = b" \t\r\n"
MALFORMED, TRAILING, UTF8 = "truncated or malformed avro", "trailing bytes", "invalid utf-8"
JSON, MISSING, TYPE = "malformed json", "missing field", "wrong type"
OF_ANOTHER = frozenset({"unresolvable schema", "unsupported schema", MALFORMED, TRAILING, UTF8})
"""What bytes are that say they are of another schema: it may fit the reader's, and they not it."""
YEAR_1_MS, YEAR_10000_MS = -62_135_596_800_000, 253_402_300_800_000
RANGE = {"int": 31, "long": 63}
TYPES: dict[str, tuple[type, ...]] = {"string": (str,), "int": (int,), "long": (int,), "double": (int, float)}
Row = Mapping[str, Any]


class Oracle:
    """Of a record ``schema`` whose id is ``schema_id``, with ``event_time``; other ``known`` ids are of other schemas.
    ``latest``: ms since epoch, later than which no event time may be."""

    def __init__(self, schema: Row, schema_id: int, known: Collection[int], event_time: str, latest: int) -> None:
        self._id, self._known, self._event_time, self._latest = schema_id, known, event_time, latest
        self._fields = [_Field(field) for field in schema["fields"]]
        self._plain = fastavro.parse_schema(_plain(schema), named_schemas={})

    def faults(self, value: bytes | None) -> tuple[frozenset[str], bool]:
        """Reasons for which the value may be dead, and whether it has to be. Nothing and False is a good one."""
        if not value:
            return frozenset({"empty"}), True
        if value[:1] in (b"{", *(bytes([blank]) for blank in BLANKS)):
            return self._json(value)
        if value[0] != 0:
            return frozenset({"bad magic"}), True
        if len(value) < 5:
            return frozenset({MALFORMED}), True
        schema_id = int.from_bytes(value[1:5], "big")
        if schema_id != self._id:
            return (OF_ANOTHER if schema_id in self._known else frozenset({"unknown schema id"})), True
        return self._avro(value[5:])

    def _avro(self, body: bytes) -> tuple[frozenset[str], bool]:
        stream = BytesIO(body)
        try:
            row = fastavro.schemaless_reader(stream, self._plain, None)
        except UnicodeDecodeError:  # what is wrong behind the text is not known
            return frozenset({UTF8, MALFORMED, TRAILING}), True
        except (EOFError, IndexError, ValueError, OverflowError, MemoryError):
            return frozenset({MALFORMED}), True
        assert isinstance(row, dict)
        read, again = body[: stream.tell()], BytesIO()
        fastavro.schemaless_writer(again, self._plain, row)
        # a number with idle bytes, a symbol or a branch counted from the end: fastavro lets it pass
        perhaps = frozenset() if again.getvalue() == read else frozenset({MALFORMED})
        if read != body:
            return perhaps | {TRAILING}, True
        wrong = self._said(row)
        return wrong | perhaps, bool(wrong)

    def _json(self, value: bytes) -> tuple[frozenset[str], bool]:
        try:
            row = json.loads(value.decode(), parse_constant=_refuse, parse_float=_finite)
        except (ValueError, RecursionError):
            return frozenset({JSON}), True
        if not isinstance(row, dict):
            return frozenset({JSON}), True
        wrong = {found for field in self._fields if (found := field.misfit(row))}
        if wrong:
            return frozenset(wrong), True
        whole = {field.name: row.get(field.name, field.default) for field in self._fields}
        said = self._said(whole)
        return said, bool(said)

    def _said(self, row: Row) -> frozenset[str]:
        found = {reason for field in self._fields for reason in field.said(row[field.name])}
        if row[self._event_time] > self._latest:
            found.add("event time in the future")
        if row[self._event_time] < YEAR_1_MS:
            found.add("event time out of range")
        return frozenset(found)


class _Field:
    """A field as its schema has it."""

    def __init__(self, said: Row) -> None:
        self.name: str = said["name"]
        self._words = said
        branches = said["type"] if isinstance(said["type"], list) else [said["type"]]
        (kind,) = (branch for branch in branches if branch != "null")
        self._nullable = "null" in branches
        self._symbols = kind.get("symbols") if isinstance(kind, dict) else None
        self._kind: str = kind["type"] if isinstance(kind, dict) else kind
        self._is_time = isinstance(kind, dict) and kind.get("logicalType") == "timestamp-millis"
        self.default = said.get("default")

    def misfit(self, row: Row) -> str | None:
        """Why a JSON object has nothing that the field takes, or None."""
        if self.name not in row:
            return None if self._nullable or "default" in self._words else MISSING
        value = row[self.name]
        if value is None:
            return None if self._nullable else TYPE
        if self._symbols is not None:
            return None if value in self._symbols else TYPE
        if not isinstance(value, TYPES[self._kind]) or isinstance(value, bool):
            return TYPE
        bits = RANGE.get(self._kind)
        return TYPE if bits is not None and not -(1 << bits) <= value < 1 << bits else None

    def said(self, value: Any) -> list[str]:
        """What the field's own words find wrong."""
        if value is None:
            return []
        found = []
        if isinstance(value, int | float):
            least, most = self._words.get("minimum", -math.inf), self._words.get("maximum", math.inf)
            if not math.isfinite(value):
                found.append("not a finite number")
            if value < least or value > most or (self._is_time and not YEAR_1_MS <= value < YEAR_10000_MS):
                found.append("out of range")
        elif "pattern" in self._words and re.fullmatch(self._words["pattern"], value) is None:
            found.append("pattern mismatch")
        return found


def _plain(schema: Any) -> Any:
    """Without logical types, so that times are the integers that they are."""
    if isinstance(schema, list):
        return [_plain(branch) for branch in schema]
    if isinstance(schema, dict):
        return {key: _plain(part) if key in ("type", "fields") else part for key, part in schema.items()
                if key != "logicalType"}  # fmt: skip
    return schema


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _refuse(text)


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no JSON")
