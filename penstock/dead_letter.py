"""Dead letters: the record that a stage read, byte for byte, with why it could not go on. The header names are Kafka
Connect's where it has one, so that existing tools read them; ours begin with ``penstock.``.
"""

import hashlib
from dataclasses import dataclass

import orjson

from penstock.records import Header, Partition, Reason


@dataclass(frozen=True, slots=True)
class RawRow:
    """One record as it was read. ``origin`` is the raw topic's record it descends from, where that is known."""

    source: Partition
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: list[Header]
    origin: tuple[str, int, int] | None


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """What is sent to ``NAME.dead``."""

    key: bytes | None
    value: bytes | None
    headers: list[Header]


def dead_letter(row: RawRow, reason: Reason, stage: str, details: dict[str, str]) -> DeadLetter:
    """The dead letter of ``row``; ``details`` become headers ``penstock.NAME`` (schema.id, model …)."""
    facts = {
        "__connect.errors.topic": row.source.topic,
        "__connect.errors.partition": str(row.source.number),
        "__connect.errors.offset": str(row.offset),
        "__connect.errors.stage": stage,
        "__connect.errors.exception.class.name": reason.kind,
        "__connect.errors.exception.message": reason.message,
        "penstock.reason": reason.kind,
        "penstock.service": stage.split(".", 1)[0],
        "penstock.timestamp": str(row.timestamp),
    }
    if row.origin is not None:
        topic, partition, offset = row.origin
        facts |= {
            "penstock.origin.topic": topic,
            "penstock.origin.partition": str(partition),
            "penstock.origin.offset": str(offset),
        }
    facts |= {f"penstock.{name}": value for name, value in details.items()}
    attempts = sum(name == "penstock.attempt" for name, _ in row.headers) + 1
    facts["penstock.attempt"] = str(attempts)
    return DeadLetter(row.key, row.value, [*row.headers, *((name, text.encode()) for name, text in facts.items())])


def digest_only(letter: DeadLetter) -> DeadLetter:
    """The stand-in of a dead letter that is itself too large for the topic: sha256, size and coordinates."""
    value = letter.value or b""
    stand_in = orjson.dumps({"sha256": hashlib.sha256(value).hexdigest(), "size": len(value)})
    return DeadLetter(None, stand_in, [*letter.headers, ("penstock.truncated", str(len(value)).encode())])
