"""Plays the tables back as a log: departures and landings in the order in which they became known, most as Avro, some
as JSON, a few broken. It never runs more than half the lateness ahead of the slowest reader, so that catching up makes
no event late, however fast it is played.
"""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.compute as pc
from confluent_kafka import KafkaError, Producer

from penstock.codec.arrow import arrow_schema
from penstock.codec.avro import AvroEncoder
from pipelines.flights.broken import HEADER, KINDS, RARE, Breaker
from pipelines.flights.data import Flights

RAW, LABELS = "raw", "labels"
JSON_EVERY = 10
CHUNK = 256
POLL_SECONDS = 0.02
_DEPARTURE, _LANDING, _BROKEN = 0, 1, 2

Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Message:
    """One record to produce. ``topic``: the suffix, raw or labels; ``time``: when it became known, ms since epoch."""

    topic: str
    key: bytes
    value: bytes | None
    time: int
    broken: str | None = None


@dataclass(slots=True)
class Sent:
    """What a replay has produced so far. ``events`` counts the broken ones too; ``time`` is that of the newest."""

    events: int = 0
    labels: int = 0
    json: int = 0
    broken: Counter[str] = field(default_factory=Counter)
    time: int = 0

    def add(self, messages: list[Message]) -> None:
        for message in messages:
            if message.topic == LABELS:
                self.labels += 1
            else:
                self.events += 1
                self.json += message.broken is None and message.value is not None and message.value[:1] == b"{"
            if message.broken:
                self.broken[message.broken] += 1
        if messages:
            self.time = messages[-1].time


class Replay:
    """The log of ``flights``: what would have been on ``NAME.raw`` and ``NAME.labels``, in chunks.

    ``schema_ids``: of the event and of the label. ``limit``: this many departures at most, with their landings.
    ``broken``: how many broken events are mixed in, of all kinds in turn, in places drawn with ``seed``.
    """

    def __init__(
        self,
        flights: Flights,
        schema_ids: tuple[int, int],
        limit: int | None = None,
        broken: int = 300,
        seed: int = 2013,
    ) -> None:
        departures = flights.departures.slice(0, limit)
        landings = flights.landings
        if limit is not None:
            landings = landings.filter(pc.is_in(landings["flight_id"], departures["flight_id"].combine_chunks()))
        event, label = schema("event"), schema("label")
        self._departures, self._landings = _as(departures, event), _as(landings, label)
        self._plain = _without_clock(self._departures)
        self._encode = AvroEncoder(event, schema_ids[0]).encode, AvroEncoder(label, schema_ids[1]).encode
        self._breaker = Breaker(event, schema_ids[0])
        self._lay_out(broken, np.random.default_rng(seed))

    def _lay_out(self, broken: int, rng: np.random.Generator) -> None:
        """The log as three columns: what, which row of it, and when."""
        n, m = self._departures.num_rows, self._landings.num_rows
        common = [kind for kind in KINDS if kind not in RARE]
        rare = sorted(RARE)[: min(broken, n)]
        victims = np.sort(rng.integers(0, n, broken)) if n else np.empty(0, np.int64)
        self._kinds = [common[i % len(common)] for i in range(len(victims) - len(rare))] + rare
        what = np.repeat([_DEPARTURE, _LANDING, _BROKEN], [n, m, len(victims)])
        row = np.concatenate([np.arange(n), np.arange(m), np.arange(len(victims))])
        known = _ms(self._departures, "timestamp")
        when = np.concatenate([known, _ms(self._landings, "landed_at"), known[victims]])
        order = np.argsort(when, kind="stable")
        self._what, self._row, self._when = what[order], row[order], when[order]
        self._victims = victims

    def __len__(self) -> int:
        return len(self._what)

    @property
    def first(self) -> int:
        """When the first message became known, ms since epoch."""
        return int(self._when[0]) if len(self) else 0

    @property
    def last(self) -> int:
        return int(self._when[-1]) if len(self) else 0

    def chunks(self, size: int = CHUNK) -> Iterator[list[Message]]:
        """The messages in order, ``size`` at a time."""
        for start in range(0, len(self), size):
            yield self._chunk(slice(start, start + size))

    def _chunk(self, part: slice) -> list[Message]:
        what, row, when = self._what[part], self._row[part], self._when[part].tolist()
        out: list[Message | None] = [None] * len(what)
        for kind, table, topic in ((_DEPARTURE, self._departures, RAW), (_LANDING, self._landings, LABELS)):
            at = np.flatnonzero(what == kind)
            if not len(at):
                continue
            # the rows of one kind are contiguous in their own table, because both are in order of time
            rows = table.slice(int(row[at[0]]), len(at))
            values = self._encode[kind](rows).to_pylist()
            if kind == _DEPARTURE:
                as_json = np.flatnonzero(row[at] % JSON_EVERY == JSON_EVERY - 1)
                for i, plain in zip(as_json.tolist(), self._plain.take(row[at][as_json]).to_pylist(), strict=True):
                    values[i] = orjson.dumps(plain)
            keys = rows["flight_id"].to_pylist()
            for i, key, value in zip(at.tolist(), keys, values, strict=True):
                out[i] = Message(topic, key.encode(), value, when[i])
        for i in np.flatnonzero(what == _BROKEN).tolist():
            fault = self._kinds[row[i]]
            victim = self._plain.slice(int(self._victims[row[i]]), 1).to_pylist()[0]
            key = f"broken-{row[i]}".encode()
            out[i] = Message(RAW, key, self._breaker.value(fault, victim), when[i], fault)
        return [message for message in out if message is not None]


class Pace:
    """When a message may go: no earlier than its share of ``duration_s`` (None: at once), and no more than half the
    ``lateness`` ahead of the slowest reader.

    ``slowest_watermark()`` is the smallest event time (ms since epoch) up to which a partition of a stage has
    committed, or None while nothing is known; a partition that has read all there is counts as being at the newest.
    ``stopped()`` ends the wait. ``clock`` and ``sleep`` are in seconds.
    """

    def __init__(
        self,
        replay: Replay,
        lateness: timedelta,
        slowest_watermark: Callable[[], int | None],
        duration_s: float | None = None,
        stopped: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._first, self._span = replay.first, max(1, replay.last - replay.first)
        self._ahead = int(lateness.total_seconds() * 1000) // 2
        self._limit = replay.first + self._ahead
        self._newest = replay.first
        self._slowest_watermark, self._duration_s = slowest_watermark, duration_s
        self._stopped, self._clock, self._sleep = stopped, clock, sleep
        self._started: float | None = None

    def wait(self, until: int) -> bool:
        """Returns when messages up to the time ``until`` may go: True, or False when stopped meanwhile."""
        if self._started is None:
            self._started = self._clock()
        if self._duration_s is not None:
            due = self._started + self._duration_s * (until - self._first) / self._span
            while (early := due - self._clock()) > 0 and not self._stopped():
                self._sleep(min(early, 0.2))
        while until > self._limit and not self._stopped():
            slowest = self._slowest_watermark()
            if slowest is not None:
                # all that was sent has been read: a gap in the data longer than the distance must not stall it
                through = slowest >= self._newest
                self._limit = max(self._limit, slowest + self._ahead, until if through else 0)
            if until > self._limit:
                self._sleep(POLL_SECONDS)
        self._newest = max(self._newest, until)
        return not self._stopped()


class DeliveryError(Exception):
    """The broker did not take a message of the replay."""


def produce(
    replay: Replay,
    pace: Pace,
    kafka: Mapping[str, str],
    pipeline: str = "flights",
    progress: Callable[[Sent], None] = lambda sent: None,
) -> Sent:
    """Plays ``replay`` to the topics of ``pipeline``; ``kafka`` is the connection part of a client's configuration.

    ``progress`` is called after every chunk with the counts so far. Returns when everything is acknowledged, or the
    pace was stopped. Raises ``DeliveryError`` when a message is refused for good.
    """
    refused: list[tuple[KafkaError, Any]] = []
    producer = Producer(
        {
            **kafka,
            "enable.idempotence": True,
            # Java's: the same key goes to the same partition whoever produces it
            "partitioner": "murmur2_random",
            "linger.ms": 5,
            "compression.type": "lz4",
            "message.max.bytes": 2_000_000,
            # a topic that is not there is an error of seconds, not of half a minute
            "topic.metadata.propagation.max.ms": 3_000,
            "delivery.report.only.error": True,
            "on_delivery": lambda error, message: refused.append((error, message)),
        }
    )
    topics = {suffix: f"{pipeline}.{suffix}" for suffix in (RAW, LABELS)}
    sent = Sent()
    for chunk in replay.chunks():
        if not pace.wait(chunk[-1].time):
            break
        for message in chunk:
            _send(producer, topics[message.topic], message)
        producer.poll(0)
        _raise_on(refused)
        sent.add(chunk)
        progress(sent)
    producer.flush()
    _raise_on(refused)
    return sent


def _send(producer: Producer, topic: str, message: Message) -> None:
    headers = [(HEADER, message.broken.encode())] if message.broken else None
    while True:
        try:
            producer.produce(topic, message.value, message.key, headers=headers)
            return
        except BufferError:  # the local queue is full: let the broker catch up
            producer.poll(0.05)


def _raise_on(refused: list[tuple[KafkaError, Any]]) -> None:
    if refused:
        error, message = refused[0]
        raise DeliveryError(
            f"topic {message.topic()!r} did not take the message with key {message.key()!r}: {error.str()}. "
            "Check that the topic exists (`penstock topics`) and that the broker is up."
        )


def schema(name: str) -> dict[str, Any]:
    """The pipeline's Avro schema ``event`` or ``label``."""
    found: dict[str, Any] = json.loads(Path(__file__).with_name(f"{name}.avsc").read_text())
    return found


def _as(table: pa.Table, avro: Mapping[str, Any]) -> pa.RecordBatch:
    columns = arrow_schema(avro)
    whole = table.select(columns.names).cast(columns).combine_chunks()
    return whole.to_batches()[0] if whole.num_rows else pa.RecordBatch.from_pylist([], schema=columns)


def _ms(rows: pa.RecordBatch, column: str) -> Int64s:
    values: Int64s = rows[column].cast(pa.int64()).to_numpy(zero_copy_only=False)
    return values


def _without_clock(rows: pa.RecordBatch) -> pa.RecordBatch:
    """The same rows with times as numbers, ms since epoch: what a producer of JSON writes."""
    return pa.RecordBatch.from_arrays(
        [rows[f.name].cast(pa.int64()) if pa.types.is_timestamp(f.type) else rows[f.name] for f in rows.schema],
        names=rows.schema.names,
    )
