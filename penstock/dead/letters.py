"""Letters of ``NAME.dead`` as they are read back: the record that died, and the diagnosis that ``penstock.dead_letter``
put behind its headers.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple

from confluent_kafka import Message

from penstock.dead.topics import read_topic
from penstock.dead_letter import FIRST_FACT, TRUNCATED
from penstock.records import Header
from penstock.settings import Settings

ATTEMPT = "penstock.attempt"


class Place(NamedTuple):
    """One record of one topic."""

    topic: str
    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}@{self.offset}"


@dataclass(frozen=True, slots=True)
class Letter:
    """A dead letter. ``headers``: those of the record that died; ``facts``: the diagnosis, by header name. Facts are
    empty for what another program wrote into the topic.
    """

    place: Place
    time: datetime
    key: bytes | None
    value: bytes | None
    headers: list[Header]
    facts: dict[str, str]

    @property
    def stage(self) -> str:
        return self.facts.get("__connect.errors.stage", "unknown")

    @property
    def reason(self) -> str:
        return self.facts.get("penstock.reason", "unknown")

    @property
    def message(self) -> str:
        return self.facts.get("__connect.errors.exception.message", "")

    @property
    def read(self) -> Place | None:
        """The record that the stage could not take."""
        return self._place("__connect.errors.")

    @property
    def origin(self) -> Place | None:
        """The raw record that it descends from; None where the stage could not tell."""
        return self._place("penstock.origin.")

    @property
    def attempt(self) -> int:
        """1 for a record that nobody has replayed; of a later stage always 1, as the count stays with the raw
        record."""
        return int(self.facts.get(ATTEMPT, "1"))

    @property
    def size(self) -> int:
        """Bytes of the value of the record that died."""
        return int(self.facts[TRUNCATED]) if self.truncated else len(self.value or b"")

    @property
    def truncated(self) -> bool:
        """The value is not the record's but its digest."""
        return TRUNCATED in self.facts

    @property
    def whole(self) -> bool:
        """Value, key and headers are the record's own."""
        return not any(name.startswith(TRUNCATED) for name in self.facts)

    def _place(self, prefix: str) -> Place | None:
        try:
            topic, partition, offset = (self.facts[prefix + part] for part in ("topic", "partition", "offset"))
            return Place(topic, int(partition), int(offset))
        except (KeyError, ValueError):
            return None


@dataclass(frozen=True, slots=True)
class Filter:
    """Which letters: None takes all. ``since`` is included, ``until`` is not; both are of the letter's append time."""

    reason: str | None = None
    stage: str | None = None
    since: datetime | None = None
    until: datetime | None = None

    def takes(self, letter: Letter) -> bool:
        return (
            self.reason in (None, letter.reason)
            and self.stage in (None, letter.stage)
            and (self.since is None or letter.time >= self.since)
            and (self.until is None or letter.time < self.until)
        )


def letter_of(message: Message) -> Letter:
    """The letter in a message of a dead-letter topic."""
    headers = list(message.headers() or [])
    # a record may have died elsewhere before and bring a diagnosis of its own: the last one is ours
    starts = [i for i, (name, _) in enumerate(headers) if name == FIRST_FACT]
    end = starts[-1] if starts else len(headers)
    return Letter(
        Place(message.topic(), message.partition(), message.offset()),
        datetime.fromtimestamp(message.timestamp()[1] / 1000, UTC),
        message.key(),
        message.value(),
        headers[:end],
        {name: (value or b"").decode(errors="backslashreplace") for name, value in headers[end:]},
    )


def letters(settings: Settings, topic: str, chosen: Filter) -> Iterator[Letter]:
    """The letters that ``chosen`` takes, in log order within each partition, up to the end as it is at the start.
    Raises ``TopicUnreadable``."""
    return (letter for message in read_topic(settings, topic) if chosen.takes(letter := letter_of(message)))
