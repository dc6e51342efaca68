"""Avro ⇄ Arrow for whole batches, Confluent frame included.

A batch of one flat schema whose rows are all in order, which is nearly every batch, takes one compiled call
(``flat.py``). Anything else is taken apart: rows are grouped by schema id, a group that fails is walked to find
its bad rows, and the others are read again.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from penstock.codec import frame, wire
from penstock.codec.arrow import arrow_schema
from penstock.codec.convert import Unresolvable
from penstock.codec.decoded import MAX_VALUE_BYTES, BadRow, Decoded, in_order, too_large
from penstock.codec.defaults import default_column
from penstock.codec.flat import FlatWriter
from penstock.codec.resolve import Resolution
from penstock.codec.shapes import MISSING, Field, UnsupportedSchema, parse
from penstock.codec.writer import Positions, Writer, sift
from penstock.records import Values, column
from penstock.schemas.registry import TransientLookupError, UnknownSchemaId

__all__ = [
    "AvroDecoder",
    "AvroEncoder",
    "BadRow",
    "Decoded",
    "TransientLookupError",
    "UnknownSchemaId",
    "UnsupportedSchema",
]


class AvroEncoder:
    """Columns to framed Avro values of one schema."""

    def __init__(self, schema: Mapping[str, Any], schema_id: int) -> None:
        self.schema_id = schema_id
        record = parse(schema)
        self._name = record.name
        self._fields = record.fields
        self._columns = arrow_schema(record)
        flat = all(wire.is_flat(field.shape) for field in record.fields)
        self._flat = FlatWriter(record, frame.prefix(schema_id)) if flat else None
        self._json = wire.wire_json(record, widen=False)
        self._names = [f["name"] for f in frame.FIELDS] + [f.name for f in record.fields]

    def encode(self, rows: pa.RecordBatch) -> pa.BinaryArray:
        """One value per row, binary[n]. Columns are found by name and cast where they need it; a missing one takes
        the field's default.

        Raises ``ValueError`` naming the column that is missing, cannot be cast or holds a null that the schema
        forbids.
        """
        n = rows.num_rows
        if n == 0:
            return pa.nulls(0, pa.binary())
        columns = [self._column(rows, f, to) for f, to in zip(self._fields, self._columns, strict=True)]
        if self._flat is not None:
            return self._flat.write(columns, n)
        try:
            columns = [wire.for_writing(c, f.shape) for c, f in zip(columns, self._fields, strict=True)]
            return wire.write(frame.columns(self.schema_id, n) + columns, self._names, self._json)
        except ValueError as error:
            raise ValueError(f"schema {self._name!r}: {error}") from None

    def _column(self, rows: pa.RecordBatch, field: Field, to: pa.Field) -> pa.Array:
        at = rows.schema.get_field_index(field.name)
        if at < 0:
            if field.default is MISSING:
                raise ValueError(
                    f"schema {self._name!r}: column {field.name!r} is missing, and the field has no default."
                )
            return default_column(field.shape, field.default, rows.num_rows)
        array = rows.column(at)
        if array.type != to.type:
            try:
                array = array.cast(to.type)
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
                raise ValueError(f"schema {self._name!r}: column {field.name!r} is no {to.type}: {error}") from None
        if array.null_count and not to.nullable:
            raise ValueError(
                f"schema {self._name!r}: column {field.name!r} is null, and the schema wants a value. "
                "Make the field nullable or reject the row."
            )
        return array


class AvroDecoder:
    """Framed Avro values of any known schema to columns of the reader's.

    ``lookup(schema_id)`` gives the writer's schema. It raises ``TransientLookupError`` where the id cannot be looked
    up now, which passes through ``decode``, and ``UnknownSchemaId`` where there is no such id, which makes the rows
    bad. ``max_bytes``: longer values are not looked into.
    """

    def __init__(
        self,
        reader: Mapping[str, Any],
        lookup: Callable[[int], Mapping[str, Any]],
        max_bytes: int = MAX_VALUE_BYTES,
    ) -> None:
        self._reader = parse(reader)
        self.columns = arrow_schema(self._reader)
        self._lookup = lookup
        self._max_bytes = max_bytes
        self._writers: dict[int, Writer | BadRow] = {}

    def decode(self, values: Values) -> Decoded:
        """The good rows in order under the reader's schema, and the bad ones with their reasons."""
        values = column(values)
        return self.decode_whole(values) or self._taken_apart(values)

    def decode_whole(self, values: pa.BinaryArray) -> Decoded | None:
        """All rows, if they are of one schema and in order; None otherwise."""
        if not len(values) or values.null_count:
            return None
        payloads = frame.lay_out(values)
        lengths, ids = payloads.lengths, frame.schema_ids(payloads)
        schema_id = int(ids[0])
        if schema_id < 0 or lengths.max() > self._max_bytes or not (ids == schema_id).all():
            return None
        writer = self._writer(schema_id)
        if isinstance(writer, BadRow):
            return None
        try:
            rows = writer.read_whole(values)
        except wire.Malformed:
            return None
        bad: dict[int, BadRow] = {}
        index = np.arange(len(values))
        if writer.resolution is not None:
            rows, index = _resolved(writer.resolution, rows, index, schema_id, bad)
        return Decoded(rows, index.astype(np.int32), bad)

    def _taken_apart(self, values: pa.BinaryArray) -> Decoded:
        if not len(values):
            return in_order([], self.columns, {})
        payloads = frame.lay_out(values)
        lengths, ids = payloads.lengths, frame.schema_ids(payloads)
        bad = _frame_faults(values, payloads, ids)
        large = lengths > self._max_bytes
        for i in np.flatnonzero(large & (ids >= 0)).tolist():
            bad[i] = too_large(int(lengths[i]), self._max_bytes, int(ids[i]))
        ids = np.where(large, -1, ids)
        parts = []
        for schema_id, rows in _by_id(ids):
            writer = self._writer(schema_id)
            if isinstance(writer, BadRow):
                bad.update(dict.fromkeys(rows.tolist(), writer))
                continue
            part = sift(writer, values.take(pa.array(rows)), payloads, rows, bad, schema_id)
            if writer.resolution is not None:
                part = _resolved(writer.resolution, *part, schema_id, bad)
            parts.append(part)
        return in_order(parts, self.columns, bad)

    def _writer(self, schema_id: int) -> Writer | BadRow:
        known = self._writers.get(schema_id)
        if known is not None:
            return known
        try:
            schema = self._lookup(schema_id)
        except UnknownSchemaId:
            # not remembered: the id may be registered a moment later
            return BadRow(
                "unknown schema id", f"no schema has id {schema_id}. Register it before producing.", schema_id
            )
        try:
            writer: Writer | BadRow = Writer(schema, self._reader)
        except UnsupportedSchema as error:
            writer = BadRow("unsupported schema", f"schema id {schema_id}: {error}", schema_id)
        except Unresolvable as error:
            writer = BadRow("unresolvable schema", f"schema id {schema_id}: {error}", schema_id)
        self._writers[schema_id] = writer
        return writer


def _by_id(ids: npt.NDArray[np.int64]) -> Iterator[tuple[int, Positions]]:
    """Each id that is not negative and the rows that have it, in order."""
    order = np.argsort(ids, kind="stable")
    order = order[np.searchsorted(ids[order], 0) :]
    # one sort for all, since garbage may have as many ids as rows
    for rows in np.split(order, np.flatnonzero(np.diff(ids[order])) + 1):
        if len(rows):
            yield int(ids[rows[0]]), rows


def _frame_faults(values: pa.BinaryArray, payloads: frame.Payloads, ids: npt.NDArray[np.int64]) -> dict[int, BadRow]:
    bad = {}
    first, lengths = payloads.first(), payloads.lengths
    for i in np.flatnonzero(ids < 0).tolist():
        if not lengths[i]:
            what = "no value (a tombstone)" if not values[i].is_valid else "a value of no bytes"
            bad[i] = BadRow("empty", f"{what}, where an Avro value is expected.")
        elif first[i] != frame.MAGIC:
            bad[i] = BadRow("bad magic", f"the first byte is {first[i]}, and a Confluent frame begins with 0.")
        else:
            bad[i] = BadRow("truncated or malformed avro", f"{lengths[i]} bytes, fewer than the 5 of a frame.")
    return bad


def _resolved(
    resolution: Resolution, rows: pa.RecordBatch, index: Positions, schema_id: int, bad: dict[int, BadRow]
) -> tuple[pa.RecordBatch, Positions]:
    """``rows`` as the reader wants them, less those that cannot be, which are added to ``bad``."""
    rows, refused = resolution.apply(rows)
    if not refused:
        return rows, index
    for i, message in refused.items():
        bad[int(index[i])] = BadRow("unresolvable schema", message, schema_id)
    return rows, np.delete(index, list(refused))
