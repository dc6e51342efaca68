"""Avro ⇄ Arrow for whole batches, Confluent frame included.

A batch of one schema whose rows are all in order, which is nearly every batch, takes one call of pyruhvro and a few vectorised checks. Anything else
is taken apart: rows are grouped by schema id, a group that fails is walked to find its bad rows, and the others are read again.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import fastavro
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from penstock.codec import frame, wire
from penstock.codec.arrow import arrow_schema
from penstock.codec.decoded import BadRow, Decoded, in_order
from penstock.codec.defaults import default_column
from penstock.codec.resolve import Resolution, Unresolvable, resolve
from penstock.codec.shapes import MISSING, Field, Record, UnsupportedSchema, parse
from penstock.codec.walk import MALFORMED, TRAILING, find_faults
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

MAX_VALUE_BYTES = 16 << 20
_Positions = npt.NDArray[np.intp]


class AvroEncoder:
    """Columns to framed Avro values of one schema."""

    def __init__(self, schema: Mapping[str, Any], schema_id: int) -> None:
        self.schema_id = schema_id
        record = parse(schema)
        self._name = record.name
        self._fields = record.fields
        self._columns = arrow_schema(record)
        self._json = wire.wire_json(record, widen=False)
        self._names = [f["name"] for f in frame.FIELDS] + [f.name for f in record.fields]

    def encode(self, rows: pa.RecordBatch) -> list[bytes]:
        """One value per row. Columns are found by name and cast where they need it; a missing one takes the field's default.

        Raises ``ValueError`` naming the column that is missing, cannot be cast or holds a null that the schema forbids.
        """
        n = rows.num_rows
        if n == 0:
            return []
        columns = [self._column(rows, f, to) for f, to in zip(self._fields, self._columns, strict=True)]
        try:
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
            return wire.for_writing(default_column(field.shape, field.default, rows.num_rows), field.shape)
        array = rows.column(at)
        if array.type != to.type:
            try:
                array = array.cast(to.type)
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
                raise ValueError(f"schema {self._name!r}: column {field.name!r} is no {to.type}: {error}") from None
        if array.null_count and not to.nullable:
            row = int(np.flatnonzero(array.is_null().to_numpy(zero_copy_only=False))[0])
            raise ValueError(
                f"schema {self._name!r}: column {field.name!r} is null in row {row}, and the schema wants a value. "
                "Make the field nullable or reject the row."
            )
        return wire.for_writing(array, field.shape)


class _Writer:
    """One writer schema: reads the values that were written with it, as columns of its own types."""

    def __init__(self, schema: Mapping[str, Any], reader: Record) -> None:
        self.record = parse(schema)
        self.columns = arrow_schema(self.record)
        self.resolution: Resolution | None = resolve(self.record, reader)
        self._json = wire.wire_json(self.record, widen=True)
        self._plain = fastavro.parse_schema(wire.plain(self.record))
        self._as_read = [wire.is_as_read(f.shape) for f in self.record.fields]
        self._flat = all(wire.is_flat(f.shape) for f in self.record.fields)

    def read_whole(self, values: list[bytes], total_bytes: int) -> pa.RecordBatch:
        """The columns of values that are all in order, all of this schema id and take ``total_bytes`` with their frames.

        Raises ``wire.Malformed`` where any is not: since an overlong magic would take more bytes than it needs, the sum
        of the sizes checks the frame too.
        """
        raw, arrays = self._read(values)
        fields = self.record.fields
        size = sum(wire.encoded_size(a, f.shape) for a, f in zip(arrays, fields, strict=True))
        if size + frame.SIZE * len(values) != total_bytes or not frame.all_equal(raw.columns[:2], values[0]):
            raise wire.Malformed(TRAILING)
        rows = pa.RecordBatch.from_arrays(arrays, schema=self.columns)
        if not (self._flat and wire.is_ascii(arrays)):
            try:
                rows.validate(full=True)
            except pa.ArrowInvalid as error:
                raise wire.Malformed(str(error)) from None
        return rows

    def read(self, values: list[bytes]) -> pa.RecordBatch:
        """The columns of the values, whatever follows them and whether or not text is UTF-8. Raises ``wire.Malformed``."""
        return pa.RecordBatch.from_arrays(self._read(values)[1], schema=self.columns)

    def _read(self, values: list[bytes]) -> tuple[pa.RecordBatch, list[pa.Array]]:
        raw = wire.read(values, self._json)
        columns = raw.columns[2:]
        return raw, [
            column if as_read else wire.as_declared(column, f.shape)
            for column, as_read, f in zip(columns, self._as_read, self.record.fields, strict=True)
        ]

    def explain(self, value: bytes) -> BadRow | None:
        """What fastavro says is wrong with one value; None where it reads it whole."""
        stream = io.BytesIO(value)
        stream.seek(frame.SIZE)
        try:
            fastavro.schemaless_reader(stream, self._plain, None)
        except UnicodeDecodeError as error:
            return BadRow("invalid utf-8", f"a text is not UTF-8: {error.reason} at its byte {error.start}.")
        except Exception as error:  # noqa: BLE001 - a decoder fed garbage may raise anything, and all means the same
            return BadRow(MALFORMED, f"{type(error).__name__}: {error}")
        extra = len(value) - stream.tell()
        return BadRow(TRAILING, f"{extra} bytes follow the last field.") if extra else None


class AvroDecoder:
    """Framed Avro values of any known schema to columns of the reader's.

    ``lookup(schema_id)`` gives the writer's schema. It raises ``TransientLookupError`` where the id cannot be looked up now, which passes
    through ``decode``, and ``UnknownSchemaId`` where there is no such id, which makes the rows bad.
    """

    def __init__(self, reader: Mapping[str, Any], lookup: Callable[[int], Mapping[str, Any]]) -> None:
        self._reader = parse(reader)
        self.columns = arrow_schema(self._reader)
        self._lookup = lookup
        self._writers: dict[int, _Writer | BadRow] = {}

    def decode(self, values: Sequence[bytes | None]) -> Decoded:
        """The good rows in order under the reader's schema, and the bad ones with their reasons."""
        values = values if isinstance(values, list) else list(values)
        return self._at_once(values) or self._taken_apart(values)

    def _at_once(self, values: list[Any]) -> Decoded | None:
        """All rows, if they are of one schema and in order; None otherwise."""
        try:
            total = len(b"".join(values))
        except TypeError:
            return None
        if not values or len(values[0]) < frame.SIZE:
            return None
        if total > MAX_VALUE_BYTES and max(map(len, values)) > MAX_VALUE_BYTES:
            return None
        head = values[0][: frame.SIZE]
        if head[0] != frame.MAGIC or values[-1][: frame.SIZE] != head:
            return None
        writer = self._writer(int.from_bytes(head[1:], "big"))
        if isinstance(writer, BadRow):
            return None
        try:
            rows = writer.read_whole(values, total)
        except wire.Malformed:
            return None
        bad: dict[int, BadRow] = {}
        index = np.arange(len(values))
        if writer.resolution is not None:
            rows, index = _resolved(writer.resolution, rows, index, int.from_bytes(head[1:], "big"), bad)
        return Decoded(rows, index.astype(np.int32), bad)

    def _taken_apart(self, values: list[Any]) -> Decoded:
        if not values:
            return in_order([], self.columns, {})
        payloads = frame.lay_out(values)
        lengths, ids = payloads.lengths, frame.schema_ids(payloads)
        bad = _frame_faults(values, payloads, ids)
        large = lengths > MAX_VALUE_BYTES
        for i in np.flatnonzero(large & (ids >= 0)).tolist():
            bad[i] = BadRow("too large", f"{lengths[i]} bytes, and at most {MAX_VALUE_BYTES} are decoded.", int(ids[i]))
        ids = np.where(large, -1, ids)
        parts = []
        for schema_id in np.unique(ids[ids >= 0]).tolist():
            rows = np.flatnonzero(ids == schema_id)
            writer = self._writer(schema_id)
            if isinstance(writer, BadRow):
                bad.update(dict.fromkeys(rows.tolist(), writer))
                continue
            part = _sift(writer, [values[i] for i in rows.tolist()], payloads, rows, bad, schema_id)
            if writer.resolution is not None:
                part = _resolved(writer.resolution, *part, schema_id, bad)
            parts.append(part)
        return in_order(parts, self.columns, bad)

    def _writer(self, schema_id: int) -> _Writer | BadRow:
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
            writer: _Writer | BadRow = _Writer(schema, self._reader)
        except UnsupportedSchema as error:
            writer = BadRow("unsupported schema", f"schema id {schema_id}: {error}", schema_id)
        except Unresolvable as error:
            writer = BadRow("unresolvable schema", f"schema id {schema_id}: {error}", schema_id)
        self._writers[schema_id] = writer
        return writer


def _frame_faults(
    values: list[bytes | None], payloads: frame.Payloads, ids: npt.NDArray[np.int64]
) -> dict[int, BadRow]:
    bad = {}
    first, lengths = payloads.first(), payloads.lengths
    for i in np.flatnonzero(ids < 0).tolist():
        if not lengths[i]:
            what = "no value (a tombstone)" if values[i] is None else "a value of no bytes"
            bad[i] = BadRow("empty", f"{what}, where an Avro value is expected.")
        elif first[i] != frame.MAGIC:
            bad[i] = BadRow("bad magic", f"the first byte is {first[i]}, and a Confluent frame begins with 0.")
        else:
            bad[i] = BadRow("truncated or malformed avro", f"{lengths[i]} bytes, fewer than the 5 of a frame.")
    return bad


def _resolved(
    resolution: Resolution, rows: pa.RecordBatch, index: _Positions, schema_id: int, bad: dict[int, BadRow]
) -> tuple[pa.RecordBatch, _Positions]:
    """``rows`` as the reader wants them, less those that cannot be, which are added to ``bad``."""
    rows, refused = resolution.apply(rows)
    if not refused:
        return rows, index
    for i, message in refused.items():
        bad[int(index[i])] = BadRow("unresolvable schema", message, schema_id)
    return rows, np.delete(index, list(refused))


def _sift(
    writer: _Writer,
    values: list[bytes],
    payloads: frame.Payloads,
    rows: _Positions,
    bad: dict[int, BadRow],
    schema_id: int,
) -> tuple[pa.RecordBatch, _Positions]:
    """The good ones among ``values``, which stand at ``rows`` of ``payloads``, and where; the others are added to ``bad``."""
    lengths = payloads.lengths[rows]
    if len(rows) < len(payloads.offsets) - 1:
        # alone, this schema's rows may well be in order
        try:
            return writer.read_whole(values, int(lengths.sum())), rows
        except wire.Malformed:
            pass
    starts = payloads.offsets[:-1][rows]
    found, undecided = find_faults(payloads.data, starts + frame.SIZE, starts + lengths, writer.record)
    for i in undecided.tolist():
        why = writer.explain(values[i])
        if why:
            found[i] = why
    batches: list[pa.RecordBatch] = []
    _halve(writer, values, np.delete(np.arange(len(values)), list(found)), found, batches)
    for i, why in found.items():
        bad[int(rows[i])] = BadRow(why.reason, why.message, schema_id)
    batch = pa.concat_batches(batches) if batches else in_order([], writer.columns, {}).rows
    return batch, np.delete(rows, list(found))


def _halve(
    writer: _Writer,
    values: list[bytes],
    rows: _Positions,
    bad: dict[int, BadRow],
    out: list[pa.RecordBatch],
) -> None:
    """Reads ``rows``; where that fails after all, halves them until the guilty ones stand alone."""
    if not len(rows):
        return
    try:
        batch = writer.read([values[i] for i in rows.tolist()])
    except wire.Malformed as error:
        if len(rows) == 1:
            bad[int(rows[0])] = writer.explain(values[rows[0]]) or BadRow(MALFORMED, f"{error}.")
            return
        for half in np.array_split(rows, 2):
            _halve(writer, values, half, bad, out)
        return
    spoiled = wire.invalid_text(batch)
    if spoiled is None:
        out.append(batch)
    elif spoiled:
        for i, name in spoiled.items():
            bad[int(rows[i])] = BadRow("invalid utf-8", f"field {name!r} is not UTF-8.")
        _halve(writer, values, np.delete(rows, list(spoiled)), bad, out)
    elif len(rows) == 1:
        bad[int(rows[0])] = writer.explain(values[rows[0]]) or BadRow("invalid utf-8", "a nested text is not UTF-8.")
    else:
        for half in np.array_split(rows, 2):
            _halve(writer, values, half, bad, out)
