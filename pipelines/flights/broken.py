"""Events broken in every way that a topic open to foreign producers sees, for the replay to mix in. Each kind starts
from a good event, and ingest has to send each to the dead letters without harm to its neighbours.
"""

from collections.abc import Callable, Mapping
from typing import Any

import orjson
import pyarrow as pa

from penstock.codec.arrow import arrow_schema
from penstock.codec.avro import AvroEncoder

HEADER = "penstock.demo.broken"
"""Carries the kind, so that a person reading the dead letters sees which were meant."""

NO_SUCH_SCHEMA = 2_000_000_000
BEFORE_THE_YEAR_1 = -100_000_000_000_000
"""Ms since epoch: no date to Python, and what a time in a wrong unit or of a wrong sign may come to."""
FAR_FUTURE = 4_070_908_800_000
"""2099-01-01, ms since epoch: let through, it would close every window."""
NESTING = 40_000
OVERSIZED = 1_010_000
"""Bytes: more than the pipeline's max_event_bytes, less than what a topic takes by default."""

Row = dict[str, Any]


class Breaker:
    """Breaks events of one Avro ``schema``; rows are dicts of plain values, times in ms since epoch."""

    def __init__(self, schema: Mapping[str, Any], schema_id: int) -> None:
        self._encoder = AvroEncoder(schema, schema_id)
        self._columns = arrow_schema(schema)

    def value(self, kind: str, row: Row) -> bytes | None:
        """The message that ``row`` becomes when broken as ``kind``, one of ``KINDS``."""
        return KINDS[kind](self, dict(row))

    def avro(self, row: Row, **changes: Any) -> bytes:
        rows = pa.RecordBatch.from_pylist([{**row, **changes}], schema=self._columns)
        (value,) = self._encoder.encode(rows).to_pylist()
        return value  # type: ignore[no-any-return]


def json(row: Row, **changes: Any) -> bytes:
    return orjson.dumps({**row, **changes})


def _without(row: Row, name: str) -> Row:
    return {key: value for key, value in row.items() if key != name}


KINDS: Mapping[str, Callable[[Breaker, Row], bytes | None]] = {
    "wrong magic byte": lambda b, row: b"\x07" + b.avro(row)[1:],
    "unknown schema id": lambda b, row: b"\x00" + NO_SUCH_SCHEMA.to_bytes(4, "big") + b.avro(row)[5:],
    "truncated avro": lambda b, row: b.avro(row)[:-11],
    "trailing bytes": lambda b, row: b.avro(row) + b"\x00\x01\x02",
    "invalid utf-8": lambda b, row: b.avro(row, carrier="\x01\x02").replace(b"\x04\x01\x02", b"\x04\xff\xfe"),
    "empty": lambda b, row: b"",
    "tombstone": lambda b, row: None,
    "not a number": lambda b, row: b.avro(row, dep_delay=float("nan")),
    "infinite": lambda b, row: b.avro(row, distance=float("inf")),
    "out of range": lambda b, row: b.avro(row, temp=900.0),
    "pattern mismatch": lambda b, row: b.avro(row, tailnum="n0 way!"),
    "far future": lambda b, row: b.avro(row, timestamp=FAR_FUTURE),
    "before the year 1": lambda b, row: b.avro(row, timestamp=BEFORE_THE_YEAR_1),
    "json of a wrong type": lambda b, row: json(row, dep_delay="late"),
    "json null": lambda b, row: b"null",
    "json array": lambda b, row: orjson.dumps([row]),
    "json cut short": lambda b, row: json(row)[:-20],
    "json on two lines": lambda b, row: json(row) + b"\n" + json(row),
    "nested bomb": lambda b, row: b"[" * NESTING,
    "missing field": lambda b, row: orjson.dumps(_without(row, "origin")),
    "null where required": lambda b, row: json(row, dest=None),
    "oversized": lambda b, row: json(row, note="x" * OVERSIZED),
}
RARE = frozenset({"oversized"})
"""Kinds that come once in a replay, whatever its size."""
