"""Raw events and labels as rows of their schema. fastavro alone converts: a JSON object is written as Avro and read
back, which fills in defaults and rounds a float to its own width.
"""

import json
import struct
from collections.abc import Mapping
from io import BytesIO
from typing import Any

import fastavro

from tests.chaos.records import Schemas

LARGEST = 1_000_000
"""Bytes of a value that is looked into."""


class Inputs:
    """The values of one input topic."""

    def __init__(self, schemas: Schemas, avro: Mapping[str, Any]) -> None:
        self._schemas = schemas
        self._avro = fastavro.parse_schema(dict(avro), named_schemas={})
        self.names = tuple(field["name"] for field in avro["fields"])

    def row(self, value: bytes | None) -> dict[str, Any] | None:
        """None of what cannot be read: it has to be a dead letter."""
        if value is None or len(value) > LARGEST:
            return None
        try:
            framed = value[:1] == b"\0"
            row = self._schemas.decode(value) if framed else json.loads(value)
            if not isinstance(row, dict):
                return None
            return row if framed and tuple(row) == self.names else self._written(row)
        except (ValueError, TypeError, LookupError, OverflowError, AttributeError, struct.error):
            return None
        except (RecursionError, MemoryError):
            return None

    def _written(self, row: dict[str, Any]) -> dict[str, Any]:
        stream = BytesIO()
        fastavro.schemaless_writer(stream, self._avro, row)
        stream.seek(0)
        found = fastavro.schemaless_reader(stream, self._avro, None)
        assert isinstance(found, dict)
        return found
