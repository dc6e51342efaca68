"""What the verifier reads: committed records, and the schemas of a pipeline's lock to decode them with."""

import json
from collections.abc import Callable, Collection, Iterable, Mapping
from io import BytesIO
from typing import Any, NamedTuple, Protocol

import fastavro

Place = tuple[int, int]
"""Partition and offset."""
Headers = list[tuple[str, bytes | None]]
Find = Callable[[str, str], None]
"""Takes a kind of finding and what was found."""


def at(place: Place) -> str:
    return f"/{place[0]}@{place[1]}"


class Record(NamedTuple):
    """``timestamp``: ms since epoch, where it is known."""

    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: Headers = []  # noqa: RUF012  # never changed
    timestamp: int | None = None


class Log(Protocol):
    """Committed records only. ``unstable``: partitions whose last stable offset is not their end."""

    def read(self, topic: str) -> Iterable[Record]: ...

    def unstable(self, topics: Collection[str]) -> list[str]: ...


class Schemas:
    """A pipeline's writer schemas, from the lines of its lock. Raises ValueError for what is no such line."""

    def __init__(self, pipeline: str, lines: Iterable[str]) -> None:
        self.topics: dict[str, list[str]] = {}
        self._parsed: dict[int, Any] = {}
        self._leading: dict[int, Any] = {}
        for number, line in enumerate(lines, 1):
            entry = json.loads(line)
            fields = entry["schema"]["fields"]
            self._parsed[number] = fastavro.parse_schema(entry["schema"], named_schemas={})
            self.topics[entry["subject"].removesuffix("-value")] = [f["name"] for f in fields]
            # Avro is read front to back, so a schema cut behind the origin reads the origin of any row
            names = [f["name"] for f in fields]
            if "_origin_offset" in names:
                cut = {**entry["schema"], "fields": fields[: names.index("_origin_offset") + 1]}
                self._leading[number] = fastavro.parse_schema(cut, named_schemas={})
        if not any(topic.startswith(f"{pipeline}.") for topic in self.topics):
            raise ValueError(f"the lock has no subject of pipeline {pipeline!r}; it has {', '.join(self.topics)}")

    def register(self, schema_id: int, schema: dict[str, Any]) -> None:
        """A schema that is in no lock: its producer has registered it elsewhere."""
        self._parsed[schema_id] = fastavro.parse_schema(schema, named_schemas={})

    def decode(self, value: bytes | None) -> dict[str, Any]:
        """A framed value, whole. Raises ValueError."""
        return self._decode(value, self._parsed, whole=True)

    def origin(self, value: bytes | None) -> dict[str, Any]:
        """The envelope of a framed value. Raises ValueError."""
        return self._decode(value, self._leading, whole=False)

    def _decode(self, value: bytes | None, schemas: Mapping[int, Any], *, whole: bool) -> dict[str, Any]:
        if value is None or len(value) < 5 or value[0] != 0:
            raise ValueError("no Confluent frame")
        schema_id = int.from_bytes(value[1:5], "big")
        if schema_id not in schemas:
            raise ValueError(f"no line {schema_id} in the lock that fits")
        stream = BytesIO(value[5:])
        try:
            row = fastavro.schemaless_reader(stream, schemas[schema_id], None)
        except (EOFError, IndexError, UnicodeDecodeError, OverflowError) as error:
            raise ValueError(f"{type(error).__name__}: {error}") from None
        if whole and stream.read(1):
            raise ValueError("bytes behind the last field")
        assert isinstance(row, dict)
        return row
