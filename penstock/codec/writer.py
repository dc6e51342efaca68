"""One writer schema and the values written with it: read all at once, or sifted where some of them are bad."""

import io
from collections.abc import Mapping
from typing import Any

import fastavro
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from penstock.codec import frame, wire
from penstock.codec.arrow import arrow_schema
from penstock.codec.decoded import BadRow, in_order
from penstock.codec.flat import FlatReader
from penstock.codec.resolve import Resolution, resolve
from penstock.codec.shapes import Record, parse
from penstock.codec.sizes import encoded_size
from penstock.codec.walk import MALFORMED, TRAILING, find_faults

Positions = npt.NDArray[np.intp]


class Writer:
    """One writer schema: reads the values that were written with it, as columns of its own types."""

    def __init__(self, schema: Mapping[str, Any], reader: Record) -> None:
        self.record = parse(schema)
        self.columns = arrow_schema(self.record)
        self.resolution: Resolution | None = resolve(self.record, reader)
        self._json = wire.wire_json(self.record, widen=True)
        self._plain = fastavro.parse_schema(wire.plain(self.record))
        self._as_read = [wire.is_as_read(f.shape) for f in self.record.fields]
        flat = all(wire.is_flat(f.shape) for f in self.record.fields)
        self._reader = FlatReader(self.record) if flat else None

    def read_whole(self, values: pa.BinaryArray) -> pa.RecordBatch:
        """The columns of values that are all in order and all of this schema id. Raises ``wire.Malformed`` where any
        is not.
        """
        payloads = frame.lay_out(values)
        if self._reader is not None:
            arrays = self._reader.read(payloads.data, payloads.offsets[:-1], payloads.offsets[1:])
            return pa.RecordBatch.from_arrays(arrays, schema=self.columns)
        arrays = self._read(values)
        fields = self.record.fields
        size = sum(encoded_size(a, f.shape) for a, f in zip(arrays, fields, strict=True))
        if size + frame.SIZE * len(values) != payloads.offsets[-1] - payloads.offsets[0]:
            raise wire.Malformed(TRAILING)
        rows = pa.RecordBatch.from_arrays(arrays, schema=self.columns)
        try:
            rows.validate(full=True)
        except pa.ArrowInvalid as error:
            raise wire.Malformed(str(error)) from None
        return rows

    def read(self, values: pa.BinaryArray) -> pa.RecordBatch:
        """The columns of the values, whatever follows them and whether or not text is UTF-8. Raises
        ``wire.Malformed``.
        """
        return pa.RecordBatch.from_arrays(self._read(values), schema=self.columns)

    def _read(self, values: pa.BinaryArray) -> list[pa.Array]:
        columns = wire.read(values.to_pylist(), self._json).columns[2:]
        return [
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


def sift(
    writer: Writer,
    values: pa.BinaryArray,
    payloads: frame.Payloads,
    rows: Positions,
    bad: dict[int, BadRow],
    schema_id: int,
) -> tuple[pa.RecordBatch, Positions]:
    """The good ones among ``values``, which stand at ``rows`` of ``payloads``, and where; the others are added to
    ``bad``.
    """
    lengths = payloads.lengths[rows]
    if len(rows) < len(payloads.offsets) - 1:
        # alone, this schema's rows may well be in order
        try:
            return writer.read_whole(values), rows
        except wire.Malformed:
            pass
    starts = payloads.offsets[:-1][rows]
    found, undecided = find_faults(payloads.data, starts + frame.SIZE, starts + lengths, writer.record)
    for i in undecided.tolist():
        why = writer.explain(values[i].as_py())
        if why:
            found[i] = why
    batches: list[pa.RecordBatch] = []
    _halve(writer, values, np.delete(np.arange(len(values)), list(found)), found, batches)
    for i, why in found.items():
        bad[int(rows[i])] = BadRow(why.reason, why.message, schema_id)
    batch = pa.concat_batches(batches) if batches else in_order([], writer.columns, {}).rows
    return batch, np.delete(rows, list(found))


def _halve(
    writer: Writer,
    values: pa.BinaryArray,
    rows: Positions,
    bad: dict[int, BadRow],
    out: list[pa.RecordBatch],
) -> None:
    """Reads ``rows``; where that fails after all, halves them until the guilty ones stand alone."""
    if not len(rows):
        return
    try:
        batch = writer.read(values.take(pa.array(rows)))
    except wire.Malformed as error:
        if len(rows) == 1:
            bad[int(rows[0])] = writer.explain(values[rows[0]].as_py()) or BadRow(MALFORMED, f"{error}.")
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
        bad[int(rows[0])] = writer.explain(values[rows[0]].as_py()) or BadRow(
            "invalid utf-8", "a nested text is not UTF-8."
        )
    else:
        for half in np.array_split(rows, 2):
            _halve(writer, values, half, bad, out)
