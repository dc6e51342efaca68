"""What is said on ``NAME.control``: which version of a model serves in which role. The newest message of a key is in
force.

The key holds model *and* role, because compaction keeps one message per key: a canary must not wipe out its champion.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Literal

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from penstock.codec.avro import AvroDecoder, AvroEncoder
from penstock.models.manifest import ModelError
from penstock.plan import AvroSchema, Plan, SchemaPlan
from penstock.schemas.registry import UnknownSchemaId

Lookup = Callable[[int], AvroSchema]
Role = Literal["champion", "canary", "shadow", "fallback"]
CHAMPION: Role = "champion"


class ControlMessage(BaseModel):
    """``version`` None retires the role. ``digest``: sha256 of the version's manifest, so that a registry with
    another version of the same number is noticed. ``percent``: share of keys that a canary serves."""

    model_config = ConfigDict(frozen=True)

    model: str
    role: Role
    version: str | None = None
    digest: str | None = None
    percent: float | None = Field(None, ge=0, le=100)
    author: str | None = None
    reason: str | None = None
    time: datetime = Field(default_factory=lambda: to_millisecond(datetime.now(UTC)))

    @property
    def key(self) -> bytes:
        """The key on the topic."""
        return f"{self.model}/{self.role}".encode()


def to_millisecond(time: datetime) -> datetime:
    """As exact as Avro carries it."""
    return time.replace(microsecond=time.microsecond // 1000 * 1000)


def retirement(key: bytes | None, time: datetime) -> ControlMessage:
    """What a tombstone under ``key`` says: nobody serves. Raises ``ModelError`` when the key is not of this topic."""
    model, _, role = (key or b"").decode("utf-8", "replace").rpartition("/")
    try:
        return ControlMessage.model_validate({"model": model, "role": role, "time": time})
    except ValidationError:
        raise ModelError(f"no control message: a tombstone under the key {key!r}, which is not MODEL/ROLE") from None


class InForce(BaseModel):
    """A message with its place in the log."""

    model_config = ConfigDict(frozen=True)

    message: ControlMessage
    partition: int
    offset: int


class ControlCodec:
    """Control messages to framed Avro and back, under the schema that the plan gives the topic. ``lookup`` finds
    writers' schemas that the plan does not hold."""

    def __init__(self, plan: Plan, lookup: Lookup | None = None) -> None:
        value = control_schema(plan)
        self._encoder = AvroEncoder(value.avro, value.id)
        self._decoder = AvroDecoder(value.avro, _lookup(plan, value, lookup))

    def encode(self, message: ControlMessage) -> bytes:
        rows = pa.RecordBatch.from_pylist([{**message.model_dump(), "time": message.time.astimezone(UTC)}], _SCHEMA)
        (value,) = self._encoder.encode(rows).to_pylist()
        return value  # type: ignore[no-any-return]

    def decode(self, value: bytes) -> ControlMessage:
        """Raises ``ModelError`` when the bytes are no control message."""
        decoded = self._decoder.decode([value])
        if decoded.bad:
            bad = decoded.bad[0]
            raise ModelError(f"no control message: {bad.reason}: {bad.message}")
        row = decoded.rows.to_pylist()[0]
        try:
            return ControlMessage.model_validate({**row, "time": row["time"].replace(tzinfo=UTC)})
        except ValidationError as error:
            raise ModelError(f"no control message: {error.errors()[0]['msg']}") from None


def control_schema(plan: Plan) -> SchemaPlan:
    """Raises ``ModelError`` when the plan gives the control topic no schema."""
    value = plan.topic("control").value
    if value is None:
        raise ModelError(
            f"plan of {plan.pipeline!r}: topic {plan.pipeline}.control has no schema. Compile the plan again"
        )
    return value


def _lookup(plan: Plan, value: SchemaPlan, elsewhere: Lookup | None) -> Lookup:
    known: dict[int, AvroSchema] = {**plan.schemas, value.id: value.avro}

    def look_up(schema_id: int) -> AvroSchema:
        if schema_id in known:
            return known[schema_id]
        if elsewhere is None:
            raise UnknownSchemaId(f"no schema has the id {schema_id} in the plan of {plan.pipeline!r}")
        return elsewhere(schema_id)

    return look_up


_SCHEMA = pa.schema(
    [
        ("model", pa.string()),
        ("role", pa.string()),
        ("version", pa.string()),
        ("digest", pa.string()),
        ("percent", pa.float64()),
        ("author", pa.string()),
        ("reason", pa.string()),
        ("time", pa.timestamp("ms", "UTC")),
    ]
)
