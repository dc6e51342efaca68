"""The replayed log: its order, its formats, its broken events, and the pace that keeps it near the slowest reader."""

import collections
import io
from datetime import timedelta
from typing import Any

import fastavro
import numpy as np
import orjson
import pyarrow as pa
import pytest

from penstock.codec.arrow import arrow_schema
from pipelines.flights.broken import FAR_FUTURE, KINDS, NO_SUCH_SCHEMA, OVERSIZED, Breaker
from pipelines.flights.data import Flights
from pipelines.flights.pipeline import pipeline
from pipelines.flights.replay import LABELS, RAW, Message, Pace, Replay, Sent, schema

MINUTE = 60_000
DAY = 24 * 60 * MINUTE
START = 1_364_800_000_000


def flights(n: int, every_minutes: int = 10, cancelled: int = 0) -> Flights:
    """``n`` departures, one every ``every_minutes``, each landing two hours later; the first ones are cancelled."""
    rows: list[dict[str, Any]] = [
        {
            "flight_id": f"2013-04-01.UA.{i + 1}.EWR",
            "timestamp": START + i * every_minutes * MINUTE,
            "status": "cancelled" if i < cancelled else "departed",
            "tailnum": f"N{10000 + i}",
            "carrier": "UA",
            "flight": i + 1,
            "origin": "EWR",
            "dest": "LAX",
            "distance": 2454.0,
            "scheduled": START + i * every_minutes * MINUTE,
            "departed": None if i < cancelled else START + i * every_minutes * MINUTE,
            "dep_delay": None if i < cancelled else 0.0,
            "sched_hour": 6,
            "sched_dow": 1,
            "sched_month": 4,
        }
        for i in range(n)
    ]
    landings = [
        {"flight_id": r["flight_id"], "landed_at": r["timestamp"] + 120 * MINUTE, "arr_delay": 20.0, "late": 1}
        for r in rows[cancelled:]
    ]
    return Flights(
        pa.Table.from_pylist(rows, schema=arrow_schema(schema("event"))),
        pa.Table.from_pylist(landings, schema=arrow_schema(schema("label"))),
    )


def messages(replay: Replay, size: int = 7) -> list[Message]:
    return [message for chunk in replay.chunks(size) for message in chunk]


def read_avro(value: bytes, name: str) -> dict[str, Any]:
    record = fastavro.schemaless_reader(io.BytesIO(value[5:]), fastavro.parse_schema(schema(name)), None)
    assert isinstance(record, dict)
    return record


def test_departures_and_landings_come_in_the_order_in_which_they_are_known() -> None:
    log = messages(Replay(flights(30), (1, 2), broken=0))
    assert [m.time for m in log] == sorted(m.time for m in log)
    assert collections.Counter(m.topic for m in log) == {RAW: 30, LABELS: 30}
    position = {(m.topic, m.key): i for i, m in enumerate(log)}
    assert all(position[(RAW, m.key)] < position[(LABELS, m.key)] for m in log)


def test_chunks_of_any_size_hold_the_same_log() -> None:
    replay = Replay(flights(50), (1, 2), broken=9)
    assert messages(replay, 1) == messages(replay, 13) == messages(replay, 1_000)
    assert len(replay) == len(messages(replay)) == 109


def test_every_tenth_event_is_json_and_the_others_are_framed_avro_of_the_same_content() -> None:
    given = flights(40)
    log = [m for m in messages(Replay(given, (7, 9), broken=0)) if m.topic == RAW]
    texts = [m for m in log if m.value and m.value[:1] == b"{"]
    assert len(texts) == 4
    for message, expected in zip(log, given.departures.to_pylist(), strict=True):
        assert message.key == expected["flight_id"].encode()
        assert message.value is not None
        if message in texts:
            row = orjson.loads(message.value)
            assert row["timestamp"] == message.time
        else:
            assert message.value[:5] == b"\x00\x00\x00\x00\x07"
            row = read_avro(message.value, "event")
        assert (row["flight_id"], row["dep_delay"], row["temp"]) == (expected["flight_id"], 0.0, None)


def test_a_cancelled_flight_is_an_event_without_a_label() -> None:
    log = messages(Replay(flights(20, cancelled=4), (1, 2), broken=0))
    labels = {m.key for m in log if m.topic == LABELS}
    assert len(labels) == 16
    assert b"2013-04-01.UA.1.EWR" not in labels


def test_a_limit_counts_departures_and_keeps_their_landings_only() -> None:
    log = messages(Replay(flights(50), (1, 2), limit=10, broken=0))
    assert {m.key for m in log if m.topic == LABELS} == {m.key for m in log if m.topic == RAW}
    assert len(log) == 20


def test_broken_events_are_marked_counted_and_of_every_kind() -> None:
    replay = Replay(flights(100), (1, 2), broken=60)
    sent = Sent()
    for chunk in replay.chunks():
        sent.add(chunk)
    assert (sent.events, sent.labels, sum(sent.broken.values())) == (160, 100, 60)
    assert set(sent.broken) == set(KINDS)
    assert sent.broken["oversized"] == 1
    assert sent.json == 10
    assert messages(replay) == messages(Replay(flights(100), (1, 2), broken=60))


def broken(kind: str) -> bytes | None:
    table = flights(1).departures
    row = {
        f.name: (table[f.name].cast(pa.int64()) if pa.types.is_timestamp(f.type) else table[f.name])[0].as_py()
        for f in table.schema
    }
    return Breaker(schema("event"), 3).value(kind, row)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_what_is_called_broken_is_broken(kind: str) -> None:
    value = broken(kind)
    if value is None or not value:
        assert kind in ("tombstone", "empty")
        return
    if value[:5] == b"\x00\x00\x00\x00\x03":
        try:
            row = read_avro(value, "event")
        except (EOFError, UnicodeDecodeError, IndexError, OverflowError):
            assert kind in ("truncated avro", "invalid utf-8", "before the year 1")
            return
        if kind == "trailing bytes":
            return
        bounds = {f["name"]: f for f in schema("event")["fields"]}
        wrong = {
            "not a number": np.isnan(row["dep_delay"]),
            "infinite": np.isinf(row["distance"]),
            "out of range": row["temp"] is not None and row["temp"] > bounds["temp"]["maximum"],
            "pattern mismatch": row["tailnum"] == "n0 way!",
            "far future": int(row["timestamp"].timestamp() * 1000) == FAR_FUTURE,
        }
        assert wrong[kind]
    elif value[0] == 0:
        assert int.from_bytes(value[1:5], "big") == NO_SUCH_SCHEMA
    elif kind == "oversized":
        assert pipeline.max_event_bytes < OVERSIZED < len(value) < 1_048_576
    else:
        try:
            found = orjson.loads(value)
        except orjson.JSONDecodeError:
            assert kind in ("wrong magic byte", "json cut short", "json on two lines", "nested bomb")
            return
        required = {f["name"]: f["type"] for f in schema("event")["fields"] if "default" not in f}
        assert (
            not isinstance(found, dict)
            or any(found.get(name) is None for name in required)
            or not isinstance(found["dep_delay"], float | None)
        )


class Time:
    """A clock that moves only when someone sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_nothing_goes_further_ahead_of_the_slowest_reader_than_half_the_lateness() -> None:
    replay = Replay(flights(600, every_minutes=60), (1, 2), broken=0)
    time = Time()
    sent: list[int] = []
    read = replay.first

    def slowest() -> int:
        nonlocal read
        assert not sent or max(sent) <= read + DAY  # checked at every look, before the reader moves on
        read = min(read + 15 * MINUTE, max(sent, default=read))
        return read

    pace = Pace(replay, timedelta(days=2), slowest, clock=lambda: time.now, sleep=time.sleep)
    for chunk in replay.chunks(3):
        assert pace.wait(chunk[-1].time)
        sent.extend(m.time for m in chunk)
        assert max(sent) <= max(read, replay.first) + DAY
    assert len(sent) == 1200
    assert time.now > 0


def test_while_no_reader_is_known_only_the_first_half_of_the_lateness_goes_out() -> None:
    replay = Replay(flights(600, every_minutes=60), (1, 2), broken=0)
    looks = iter([None] * 50)
    stopped = False

    def slowest() -> int | None:
        nonlocal stopped
        try:
            return next(looks)
        except StopIteration:
            stopped = True
            return None

    pace = Pace(replay, timedelta(days=2), slowest, stopped=lambda: stopped, sleep=lambda s: None)
    assert pace.wait(replay.first + DAY)
    assert not pace.wait(replay.first + DAY + 1)


def test_a_gap_in_the_data_longer_than_the_distance_does_not_stall_it() -> None:
    two = flights(2, every_minutes=5 * 24 * 60)
    replay = Replay(Flights(two.departures, two.landings.slice(0, 0)), (1, 2), broken=0)
    pace = Pace(replay, timedelta(days=2), lambda: replay.first, sleep=lambda s: None)
    assert pace.wait(replay.first)
    assert pace.wait(replay.last)


def test_a_duration_spreads_the_log_in_proportion_to_its_own_time() -> None:
    replay = Replay(flights(100), (1, 2), broken=0)
    time = Time()
    pace = Pace(replay, timedelta(days=2), lambda: replay.last, 60.0, clock=lambda: time.now, sleep=time.sleep)
    seen = []
    for chunk in replay.chunks(10):
        pace.wait(chunk[-1].time)
        seen.append((time.now, (chunk[-1].time - replay.first) / (replay.last - replay.first)))
    np.testing.assert_allclose([now for now, _ in seen], [60 * share for _, share in seen], atol=0.01)
    assert seen[-1][0] == pytest.approx(60.0)
