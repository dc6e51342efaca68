"""Which letters are sent again, and with what: filters, the guard against loops, patches, where records are found."""

from collections import Counter
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta

import pytest

from penstock.dead.letters import Filter, Letter, Place, letter_of
from penstock.dead.replay import (
    BEFORE,
    GONE,
    LEFT_OUT,
    LOOPING,
    UNKNOWN,
    WATCHED,
    Judge,
    Options,
    Outgoing,
    PatchFailed,
    Report,
    is_beginning,
    note_key,
    replay,
)
from penstock.dead.sending import ReplayStopped
from penstock.dead_letter import DeadLetter, RawRow, dead_letter, shortened
from penstock.records import Header, Partition, Reason
from penstock.settings import Settings

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
RAW = Place("shop.raw", 1, 17)


class Sent:
    """A message of a client, as far as letters look at it."""

    def __init__(self, place: Place, key: bytes | None, value: bytes | None, headers: list[Header]) -> None:
        self._place, self._key, self._value, self._headers = place, key, value, headers

    def topic(self) -> str:
        return self._place.topic

    def partition(self) -> int:
        return self._place.partition

    def offset(self) -> int:
        return self._place.offset

    def timestamp(self) -> tuple[int, int]:
        return 2, int(NOON.timestamp() * 1000)

    def key(self) -> bytes | None:
        return self._key

    def value(self) -> bytes | None:
        return self._value

    def headers(self) -> list[Header]:
        return self._headers


class Logs:
    """What the raw logs still hold."""

    def __init__(self, held: Mapping[Place, Sent]) -> None:
        self._held = held

    def read(self, topic: str, partition: int, offset: int) -> Sent | None:
        return self._held.get(Place(topic, partition, offset))


def died(
    stage: str = "ingest",
    read: Place = RAW,
    origin: Place | None = RAW,
    headers: list[Header] | None = None,
    value: bytes = b"{",
    at: int = 0,
    shape: Callable[[DeadLetter], DeadLetter] = lambda letter: letter,
) -> Letter:
    """A letter as a stage writes it, read back from ``shop.dead/0@AT``."""
    row = RawRow(Partition(read.topic, read.partition), read.offset, 5, b"k", value, headers or [], origin)
    made = shape(dead_letter(row, Reason("malformed json", "it ends early"), stage, {}))
    return letter_of(Sent(Place("shop.dead", 0, at), made.key, made.value, made.headers))  # type: ignore[arg-type]


def judged(
    *letters: Letter, held: Mapping[Place, Sent] | None = None, done: set[bytes] | None = None, **options: object
) -> tuple[list[Outgoing], Report]:
    report = Report()
    judge = Judge(Options(**options), Logs(held or {}), done or set(), report)  # type: ignore[arg-type]
    return list(judge.mended(iter(letters))), report


def test_a_letter_tells_the_records_own_headers_from_its_diagnosis() -> None:
    own: list[Header] = [
        ("trace", b"1"),
        ("penstock.demo", b"x"),
        ("__connect.errors.topic", b"other"),
        ("n", None),
    ]
    letter = died(headers=own)
    assert letter.headers == own
    assert (letter.stage, letter.reason, letter.message) == ("ingest", "malformed json", "it ends early")
    assert letter.read == letter.origin == RAW
    assert (letter.size, letter.truncated, letter.attempt) == (1, False, 1)


def test_what_another_program_wrote_is_a_letter_without_facts() -> None:
    letter = letter_of(Sent(Place("shop.dead", 0, 3), None, b"x", [("a", b"b")]))  # type: ignore[arg-type]
    assert (letter.stage, letter.reason, letter.origin, letter.headers) == ("unknown", "unknown", None, [("a", b"b")])
    assert judged(letter)[1].counts == {UNKNOWN: 1}


@pytest.mark.parametrize(
    ("chosen", "taken"),
    [
        (Filter(), True),
        (Filter(reason="malformed json", stage="ingest"), True),
        (Filter(reason="bad magic"), False),
        (Filter(stage="inference"), False),
        (Filter(since=NOON, until=NOON + timedelta(seconds=1)), True),
        (Filter(since=NOON + timedelta(seconds=1)), False),
        (Filter(until=NOON), False),
    ],
)
def test_a_filter_takes_by_reason_stage_and_time(chosen: Filter, taken: bool) -> None:
    assert chosen.takes(died()) is taken


def test_a_letter_of_ingest_holds_what_is_sent() -> None:
    (outgoing,), report = judged(died(headers=[("trace", b"1")], value=b"{broken"))
    assert (outgoing.key, outgoing.value, outgoing.headers) == (b"k", b"{broken", [("trace", b"1")])
    assert (outgoing.origin, outgoing.attempt) == (RAW, 1)
    assert not report.left


def test_of_a_later_stages_letter_the_raw_record_is_sent_with_its_count_of_attempts() -> None:
    raw = Sent(RAW, b"raw key", b"raw value", [("trace", b"1"), ("penstock.attempt", b"1")])
    letter = died("features.customer", Place("shop.events", 0, 4), value=b"\0event")
    (outgoing,), _ = judged(letter, held={RAW: raw})
    assert (outgoing.key, outgoing.value, outgoing.attempt) == (b"raw key", b"raw value", 2)
    assert outgoing.headers == [("trace", b"1"), ("penstock.attempt", b"1")]


def test_a_record_that_died_too_often_is_not_sent() -> None:
    again: list[Header] = [("penstock.attempt", b"1"), ("penstock.attempt", b"2")]
    assert judged(died(headers=again))[1].counts == {LOOPING: 1}
    assert [one.attempt for one in judged(died(headers=again), max_attempts=4)[0]] == [3]
    assert died(headers=again).attempt == 3


def test_a_record_of_a_later_stage_that_died_too_often_is_not_sent() -> None:
    raw = Sent(RAW, None, b"raw", [("penstock.attempt", b"1"), ("penstock.attempt", b"2")])
    letter = died("inference", Place("shop.features", 0, 4))
    assert judged(letter, held={RAW: raw})[1].counts == {LOOPING: 1}


def test_what_the_log_has_no_more_is_left_and_told() -> None:
    letter = died("inference", Place("shop.features", 0, 4), at=9)
    _, report = judged(letter)
    assert report.left == [(Place("shop.dead", 0, 9), GONE, "shop.raw/1@17 is no longer in the log")]


def test_a_truncated_letter_is_replayed_from_its_origin_if_that_is_still_what_it_was() -> None:
    letter = died(value=b"long" * 9, shape=shortened)
    assert (letter.truncated, letter.size) == (True, 36)
    (outgoing,), _ = judged(letter, held={RAW: Sent(RAW, b"k", b"long" * 9, [])})
    assert outgoing.value == b"long" * 9
    assert judged(letter, held={RAW: Sent(RAW, b"k", b"another", [])})[1].counts == {GONE: 1}
    assert judged(letter)[1].counts == {GONE: 1}


def test_the_monitors_letters_have_their_fate_elsewhere() -> None:
    assert judged(died("monitor", Place("shop.features", 0, 4)))[1].counts == {WATCHED: 1}


def test_an_origin_is_replayed_once_to_each_topic() -> None:
    outgoing, report = judged(died(at=1), died(at=2))
    assert [one.letter.place.offset for one in outgoing] == [1]
    assert (report.counts, report.left) == ({BEFORE: 1}, [])
    assert judged(died(), done={note_key(RAW, "shop.raw")})[1].counts == {BEFORE: 1}
    assert len(judged(died(), done={note_key(RAW, "shop.raw")}, to="try.raw")[0]) == 1


def test_a_limit_counts_what_is_sent() -> None:
    letters = [died(read=Place("shop.raw", 0, n), origin=Place("shop.raw", 0, n), at=n) for n in range(5)]
    outgoing, report = judged(*letters, done={note_key(Place("shop.raw", 0, 0), "shop.raw")}, limit=2)
    assert [one.origin.offset for one in outgoing] == [1, 2]
    assert report.counts == Counter({BEFORE: 1})


def test_a_patch_changes_the_value_or_leaves_the_letter_out() -> None:
    two = died(), died(read=Place("shop.raw", 0, 1), origin=Place("shop.raw", 0, 1), value=b"no")
    outgoing, report = judged(*two, patch=lambda one: one.value + b"}" if one.value == b"{" else None)
    assert [one.value for one in outgoing] == [b"{}"]
    assert report.counts == {LEFT_OUT: 1}


@pytest.mark.parametrize(
    ("patch", "told"), [(lambda _: 1 / 0, "raised ZeroDivisionError"), (lambda _: "text", "gave a str")]
)
def test_a_patch_that_fails_names_the_letter(patch: object, told: str) -> None:
    with pytest.raises(PatchFailed, match=f"letter shop.dead/0@0, record shop.raw/1@17, {told}"):
        judged(died(), patch=patch)


@pytest.mark.parametrize(
    ("to", "may"),
    [
        ("shop.raw", True),
        ("shop.labels", True),
        ("shop.events", False),
        ("shop.by.customer", False),
        ("shop.dead", False),
        ("shopping.events", True),
        ("elsewhere", True),
    ],
)
def test_a_replay_writes_no_topic_that_a_stage_writes(to: str, may: bool) -> None:
    assert is_beginning("shop.dead", to) == may
    if not may:
        with pytest.raises(ReplayStopped, match=f"{to} is written by the pipeline's own stages"):
            replay(Settings(), "shop.dead", Filter(), Options(to=to))
