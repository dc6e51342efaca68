"""Schema resolution on columns: what was written with one schema, as the reader's schema wants it."""

from dataclasses import dataclass

import pyarrow as pa

from penstock.codec.shapes import Record


class Unresolvable(ValueError):
    """No value of the writer's schema can be read with the reader's."""


@dataclass(frozen=True, slots=True)
class Resolution:
    writer: Record
    reader: Record

    def apply(self, rows: pa.RecordBatch) -> tuple[pa.RecordBatch, dict[int, str]]:
        return rows, {}


def resolve(writer: Record, reader: Record) -> Resolution | None:
    if writer.fields == reader.fields:
        return None
    raise Unresolvable("resolution is not built yet")
