"""Sends the records of dead letters into their pipeline again, each once (ADR 9).

A replay begins where the pipeline begins: whatever stage a letter is from, its raw record goes to the raw topic again
and becomes a new event, with a new origin and one fate of its own. A letter of ingest holds that record. A later stage
read an event, which had no other fate, so what is sent is the raw record that the event descends from, as long as its
log has it, with a header by which de-duplication knows that it is no copy (ADR 11); views that had
counted the event before a later stage refused it count it again. The monitor only watches rows whose fate is elsewhere:
its letters are never replayed.

A note of each origin goes to the compacted ``NAME.replayed`` in the transaction that carries the record. The notes are
read after the producer has fenced any other run and ended what a killed one left open, so they are complete.
"""

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import orjson

from penstock import envelope
from penstock.dead.letters import ATTEMPT, Filter, Letter, Place, letters
from penstock.dead.sending import Record, ReplayStopped, Sender
from penstock.dead.topics import REPLAYED, PlaceReader, bounds, pipeline_of, read_topic, reading
from penstock.records import Header
from penstock.settings import Settings

REPLAYS = envelope.HEADERS[envelope.REPLAYS]
SENT = "replayed"
BEFORE = "replayed before"
LOOPING = "too many attempts"
GONE = "record gone"
UNKNOWN = "origin unknown"
WATCHED = "only watched"
LEFT_OUT = "left out by the patch"
MAX_ATTEMPTS = 3
_LOOKING_ON = "monitor"
_MOST, _MOST_BYTES = 500, 8 << 20


class PatchFailed(Exception):
    """A patch raised, or gave back what is no value; the message names the letter."""


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A record that is about to be sent again, as a patch gets it: ``value`` is the raw record's, which for a letter of
    a later stage is not the letter's. ``headers`` are the record's own; ``attempt``: how often it has died.
    """

    letter: Letter
    origin: Place
    key: bytes | None
    value: bytes | None
    headers: list[Header]
    attempt: int


Patch = Callable[[Outgoing], bytes | None]
"""Gives the value to send, or None to leave the letter out."""


class Left(NamedTuple):
    """A letter that was not sent. ``fate``: one of the words above; ``why`` is for people."""

    letter: Place
    fate: str
    why: str


@dataclass(slots=True)
class Report:
    """``counts``: letters by fate. ``left``: those that were not sent, less those that had been before."""

    counts: Counter[str] = field(default_factory=Counter)
    left: list[Left] = field(default_factory=list)

    def leave(self, left: Left) -> None:
        self.counts[left.fate] += 1
        if left.fate != BEFORE:
            self.left.append(left)


@dataclass(frozen=True, slots=True)
class Options:
    """``to``: a topic in place of the origin's. ``rate``: letters a second. ``limit``: letters sent at the most. A
    letter whose record has died ``max_attempts`` times is not sent."""

    to: str | None = None
    patch: Patch | None = None
    rate: float | None = None
    limit: int | None = None
    max_attempts: int = MAX_ATTEMPTS
    dry_run: bool = False


def replay(
    settings: Settings, topic: str, chosen: Filter, options: Options, tell: Callable[[Report], None] = lambda _: None
) -> Report:
    """Replays the letters of ``topic`` that ``chosen`` takes, in log order within each partition; ``tell`` is called
    after each transaction. Raises ``TopicUnreadable``, ``PatchFailed`` and ``ReplayStopped``; what was sent until then
    is noted, so the same call goes on from there.
    """
    if options.to is not None:
        if not is_beginning(topic, options.to):
            raise ReplayStopped(
                f"{options.to} is written by the pipeline's own stages, and an event that was put there by hand would "
                f"have no origin. Give a topic where the pipeline begins, or one outside of it"
            )
        with closing(reading(settings)) as asking:
            bounds(asking, settings, options.to)
    notes = pipeline_of(topic) + REPLAYED
    with ExitStack() as opened:
        sender = None if options.dry_run else opened.enter_context(closing(Sender(settings, f"{topic}.replay")))
        done = {message.key() or b"" for message in read_topic(settings, notes)}
        report = Report()
        started, sent = time.monotonic(), 0
        judge = Judge(options, opened.enter_context(closing(PlaceReader(settings))), done, report)
        for batch in _batches(judge.mended(letters(settings, topic, chosen)), options.rate):
            if sender is not None:
                if options.rate is not None:
                    time.sleep(max(0.0, started + sent / options.rate - time.monotonic()))
                sender.send([record for one in batch for record in _records(one, judge.target(one.origin), notes)])
            sent += len(batch)
            report.counts[SENT] += len(batch)
            tell(report)
        return report


def is_beginning(dead: str, to: str) -> bool:
    """Whether records may be put into ``to``: of the pipeline's own topics (``dead`` is one) only into those that users
    write."""
    prefix = f"{pipeline_of(dead)}."
    return not to.startswith(prefix) or to.removeprefix(prefix) in ("raw", "labels")


class Judge:
    """Who is sent, and with what value. ``done``: the keys of the notes; those that are chosen are added."""

    def __init__(self, options: Options, places: PlaceReader, done: set[bytes], report: Report) -> None:
        self._options, self._places, self._done, self._report = options, places, done, report

    def mended(self, found: Iterator[Letter]) -> Iterator[Outgoing]:
        """What is to be sent, after the patch; what is not goes into the report."""
        left = self._options.limit
        for letter in found:
            if left == 0:
                return
            judged = self._judged(letter)
            if isinstance(judged, Outgoing) and self._options.patch is not None:
                judged = _patched(judged, self._options.patch)
            if isinstance(judged, Left):
                self._report.leave(judged)
                continue
            self._done.add(note_key(judged.origin, self.target(judged.origin)))
            left = None if left is None else left - 1
            yield judged

    def target(self, origin: Place) -> str:
        return self._options.to or origin.topic

    def _judged(self, letter: Letter) -> Outgoing | Left:
        origin = letter.origin
        if letter.facts.get("penstock.service") == _LOOKING_ON:
            return Left(letter.place, WATCHED, "the monitor only watches, and the record has its fate elsewhere")
        if origin is None:
            return Left(letter.place, UNKNOWN, "its stage could not tell which raw record it descends from")
        if note_key(origin, self.target(origin)) in self._done:
            return Left(letter.place, BEFORE, "there is a note of it")
        if letter.read == origin and letter.whole:
            key, value, headers = letter.key, letter.value, letter.headers
        else:
            message = self._places.read(*origin)
            if message is None or not _is_of(letter, message.value()):
                return Left(letter.place, GONE, f"{origin} is no longer in the log")
            key, value, headers = message.key(), message.value(), list(message.headers() or [])
        # a record that was replayed brings one header for each time that it died before
        attempt = sum(name == ATTEMPT for name, _ in headers) + 1
        if attempt >= self._options.max_attempts:
            return Left(letter.place, LOOPING, f"its record has died {attempt} times")
        return Outgoing(letter, origin, key, value, headers, attempt)


def _patched(outgoing: Outgoing, patch: Patch) -> Outgoing | Left:
    where = f"the patch of letter {outgoing.letter.place}, record {outgoing.origin},"
    stopped = "Nothing of its batch was sent; mend the patch and replay again"
    try:
        value = patch(outgoing)
    except Exception as error:  # a patch is the user's own and may raise anything
        raise PatchFailed(f"{where} raised {type(error).__name__}: {error}. {stopped}") from error
    if value is None:
        return Left(outgoing.letter.place, LEFT_OUT, "the patch gave None")
    if not isinstance(value, bytes):
        raise PatchFailed(f"{where} gave a {type(value).__name__}, not bytes or None. {stopped}")
    return replace(outgoing, value=value)


def note_key(origin: Place, target: str) -> bytes:
    """A raw record is replayed once to each topic. Every replay is a record with an origin of its own, so the origin
    alone tells one attempt from the next."""
    return f"{origin} to {target}".encode()


def _records(outgoing: Outgoing, target: str, notes: str) -> Iterator[Record]:
    """The record and the note of it."""
    headers = [*outgoing.headers, (ATTEMPT, str(outgoing.attempt).encode())]
    if outgoing.letter.read != outgoing.origin and REPLAYS not in dict(headers):
        # it was an event, and may have been seen. A replay of a replay keeps the name of the first one
        headers.append((REPLAYS, str(outgoing.origin).encode()))
    yield Record(target, outgoing.key, outgoing.value, headers, str(outgoing.letter.place))
    note = orjson.dumps({"letter": str(outgoing.letter.place), "attempt": outgoing.attempt})
    yield Record(notes, note_key(outgoing.origin, target), note, [], str(outgoing.letter.place))


def _is_of(letter: Letter, value: bytes | None) -> bool:
    """Whether ``value`` is the one that a truncated letter is the digest of; other letters hold no digest of it."""
    if not letter.truncated or letter.read != letter.origin:
        return True
    digest: str = orjson.loads(letter.value or b"{}").get("sha256", "")
    return digest == hashlib.sha256(value or b"").hexdigest()


def _batches(found: Iterator[Outgoing], rate: float | None) -> Iterator[list[Outgoing]]:
    """One transaction's worth each: a fifth of a second of a slow replay, so that readers are not held up."""
    most = _MOST if rate is None else min(_MOST, max(1, int(rate / 5)))
    batch: list[Outgoing] = []
    size = 0
    for outgoing in found:
        batch.append(outgoing)
        size += len(outgoing.value or b"")
        if len(batch) >= most or size >= _MOST_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
