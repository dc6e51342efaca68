"""Dead letters: the record that a stage read, byte for byte, with why it could not go on. The header names are Kafka
Connect's where it has one, so that existing tools read them; ours begin with ``penstock.``.
"""

import hashlib
from dataclasses import dataclass

import orjson

from penstock.records import Header, Partition, Reason

FIRST_FACT = "__connect.errors.topic"
"""What a dead letter adds to its record's headers begins here."""
TRUNCATED = "penstock.truncated"


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
        FIRST_FACT: row.source.topic,
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


def shortened(letter: DeadLetter) -> DeadLetter | None:
    """The stand-in of a letter that is too large for its topic: the largest of the record's value, key and headers that
    is left becomes its sha256 and size. None where nothing of the record is left."""
    begin = next((i for i, (name, _) in reversed(list(enumerate(letter.headers))) if name == FIRST_FACT), 0)
    own, facts = letter.headers[:begin], letter.headers[begin:]
    done = {name for name, _ in facts}
    parts = {
        TRUNCATED: letter.value or b"",
        f"{TRUNCATED}.key": letter.key or b"",
        f"{TRUNCATED}.headers": b"\n".join(part for name, content in own for part in (name.encode(), content or b"")),
    }
    left = {name: content for name, content in parts.items() if content and name not in done}
    if not left:
        return None
    largest = max(left, key=lambda name: len(left[name]))
    content = left[largest]
    digest = orjson.dumps({"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)})
    if largest == TRUNCATED:
        return DeadLetter(letter.key, digest, [*letter.headers, (TRUNCATED, str(len(content)).encode())])
    if largest == f"{TRUNCATED}.key":
        return DeadLetter(None, letter.value, [*letter.headers, (largest, digest)])
    return DeadLetter(letter.key, letter.value, [*facts, (largest, digest)])
