"""Sample events for the checks: the pipeline's own ``samples.jsonl``, or rows made from the Avro schema that respect
the ranges and patterns it declares. The same seed makes the same rows.
"""

import random
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa

from penstock.checks.patterns import matching
from penstock.codec.json import JsonDecoder
from penstock.codec.shapes import MISSING, Array, Enum, Field, Map, Primitive, Record, Shape, Union, parse
from penstock.plan import AvroSchema, Plan, PlanError

START_MS = int(datetime(2024, 1, 1, tzinfo=UTC).timestamp() * 1000)
STEP_MS = 60_000
KEYS = 5
"""Values that a key has, so that windows of one key meet."""
NULLS = 0.15
WORDS = ("alpha", "beta", "gamma", "delta", "épsilon", "zeta")

_UNITS = {"timestamp-millis": 1, "timestamp-micros": 1_000, "timestamp-nanos": 1_000_000}
_BOUNDS = {"int": (0, 1_000), "long": (0, 100_000), "float": (-1e3, 1e3), "double": (-1e3, 1e3)}


def sample_rows(plan: Plan, folder: Path, count: int, seed: int = 0) -> pa.RecordBatch:
    """Rows of the event's schema. Raises ``PlanError`` where a sample does not fit it or none can be made."""
    file = folder / "samples.jsonl"
    if file.exists():
        values = [line for line in file.read_bytes().splitlines() if line.strip()]
        source = str(file)
    else:
        values = [orjson.dumps(row) for row in made_rows(plan, count, seed)]
        source = "made sample"
    decoded = JsonDecoder(plan.event.avro).decode(values)
    for place, bad in sorted(decoded.bad.items()):
        raise PlanError(f"{source} {place + 1} is no event of {plan.pipeline!r}: {bad.message}. Correct it in {file}")
    return decoded.rows


def made_rows(plan: Plan, count: int, seed: int) -> list[dict[str, Any]]:
    """JSON objects of the event's schema: event times a minute apart with a few out of order, keys of few values, nulls
    where they are allowed."""
    schema = parse(plan.event.avro)
    keys = {plan.event.key, *(view.key for view in plan.views)} - {plan.event.event_id}
    maker = _Maker(random.Random(seed))
    pools = {field.name: [maker.value(field) for _ in range(KEYS)] for field in schema.fields if field.name in keys}
    rows = []
    for place in range(count):
        late = maker.random.randrange(1, 5) if maker.random.random() < 0.1 else 0
        maker.now = START_MS + (place - late) * STEP_MS
        row: dict[str, Any] = {}
        for field in schema.fields:
            if field.name == plan.event.timestamp:
                row[field.name] = maker.time(field.shape)
            elif field.name in pools:
                row[field.name] = maker.random.choice(pools[field.name])
            elif field.name == plan.event.event_id and "pattern" not in field.properties:
                row[field.name] = f"event-{place}" if _plain(field.shape) == Primitive("string") else place
            else:
                row[field.name] = maker.value(field)
        rows.append(row)
    return rows


class _Maker:
    """``now``: event time of the row in the making, ms; other times lie around it."""

    def __init__(self, rng: random.Random) -> None:
        self.random, self.now = rng, START_MS

    def value(self, field: Field) -> Any:
        return self._of(field.shape, field.properties, field.name)

    def time(self, shape: Shape) -> int:
        plain = _plain(shape)
        logical = plain.logical if isinstance(plain, Primitive) else None
        return self.now * _UNITS.get(logical or "timestamp-millis", 1)

    def _of(self, shape: Shape, properties: Mapping[str, Any], name: str) -> Any:
        match shape:
            case Union(branches):
                if shape.null_index >= 0 and self.random.random() < NULLS:
                    return None
                return self._of(next(b for b in branches if b != Primitive("null")), properties, name)
            case Primitive():
                return self._primitive(shape, properties, name)
            case Enum(_, symbols):
                return self.random.choice(symbols)
            case Array(items):
                return [self._of(items, {}, name) for _ in range(self.random.randrange(3))]
            case Map(values):
                return {word: self._of(values, {}, name) for word in self.random.sample(WORDS, 2)}
            case Record(_, fields):
                return {f.name: self._of(f.shape, f.properties, f.name) for f in fields if f.default is MISSING}

    def _primitive(self, shape: Primitive, properties: Mapping[str, Any], name: str) -> Any:
        if shape.logical in _UNITS:
            return self.time(shape) - self.random.randrange(60) * STEP_MS * _UNITS[shape.logical]
        if shape.kind in ("int", "long", "float", "double"):
            return self._number(shape.kind, properties)
        if shape.kind == "boolean":
            return self.random.random() < 0.5
        if shape.kind == "null":
            return None
        if "pattern" in properties:
            return matching(properties["pattern"], self.random, name)
        return self.random.choice(WORDS) if shape.kind == "string" else "\x00ÿ"

    def _number(self, kind: str, properties: Mapping[str, Any]) -> float:
        low, high = _BOUNDS[kind]
        width = high - low
        low = properties.get("minimum", min(low, properties.get("maximum", low) - width))
        high = properties.get("maximum", max(high, low + width))
        return self.random.randint(int(low), int(high)) if kind in ("int", "long") else self.random.uniform(low, high)


def _plain(shape: Shape) -> Shape:
    return (shape.optional or shape) if isinstance(shape, Union) else shape


def schema_of(topic: str, plan: Plan) -> AvroSchema:
    """The schema of a topic's values. Raises ``PlanError`` when it holds foreign bytes."""
    value = plan.named(topic).value
    if value is None:
        raise PlanError(f"topic {topic!r} holds foreign bytes, so no stage can write rows to it")
    return value.avro
