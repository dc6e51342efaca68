"""Follows the end of two topics while a replay runs: predictions, for how long a raw message takes until a
read_committed reader has its prediction, and outcomes, for how well the model does so far.

Cheap on purpose, for it shares the cores with what it watches: it decodes what it has in batches, once a second.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from uuid import uuid4

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from confluent_kafka import OFFSET_BEGINNING, Consumer, Message, TopicPartition

from penstock.codec.avro import AvroDecoder
from penstock.plan import Plan, TopicPlan
from penstock.profiles.ranking import auc
from penstock.settings import Settings
from penstock.worker import schema_lookup

log = logging.getLogger(__name__)

Floats = npt.NDArray[np.float64]
DECODE_EVERY_S = 1.0
RECENT = 15
"""Seconds that the live view's percentiles look back on."""


@dataclass(slots=True)
class Latency:
    """``at``: seconds since epoch when a prediction was read; ``ms``: since its raw record was appended."""

    at: list[Floats] = field(default_factory=list)
    ms: list[Floats] = field(default_factory=list)

    def all(self) -> tuple[Floats, Floats]:
        none = np.empty(0)
        return np.concatenate([none, *self.at]), np.concatenate([none, *self.ms])

    def percentiles(self, recent: int | None = None) -> tuple[float, float] | None:
        """p50 and p99 in ms, of the ``recent`` last seconds or of all; None before the first prediction."""
        chunks = self.ms[-recent:] if recent else self.ms[:]
        ms = np.concatenate([np.empty(0), *chunks])
        if not len(ms):
            return None
        p50, p99 = np.percentile(ms, [50, 99])
        return float(p50), float(p99)


class Scoreboard:
    """Predictions that met their label so far. A key is a Python object here: a few thousand come in a second."""

    def __init__(self) -> None:
        self._scores: dict[str, tuple[float, float, float]] = {}
        self._truth: dict[str, float] = {}
        self._met: list[Floats] = []
        self._results: dict[str, float] = {}
        self._judged = 0

    def add(self, rows: pa.RecordBatch) -> None:
        """``rows``: as on ``NAME.outcomes``."""
        scores, baselines, values = (_floats(rows.column(name)) for name in ("score", "baseline", "value"))
        guesses = pc.equal(rows.column("label"), "1").fill_null(False).cast(pa.float64()).to_pylist()
        kinds, keys = (rows.column(name).to_pylist() for name in ("kind", "label_key"))
        met = []
        for kind, key, score, baseline, guess, value in zip(
            kinds, keys, scores, baselines, guesses, values, strict=True
        ):
            if kind == "prediction":
                if (truth := self._truth.pop(key, None)) is None:
                    self._scores[key] = (score, baseline, guess)
                else:
                    met.append((score, baseline, guess, truth))
            elif (found := self._scores.pop(key, None)) is None:
                self._truth[key] = value
            else:
                met.append((*found, value))
        if met:
            self._met.append(np.array(met, np.float64))

    def __len__(self) -> int:
        return sum(map(len, self._met))

    def results(self) -> dict[str, float]:
        """``accuracy``, ``majority`` (of always giving the commoner answer), ``auc``, ``baseline_auc``, where known."""
        if len(self) == self._judged:
            return self._results
        met = self._met[:]  # the thread that follows adds to it meanwhile
        self._judged = sum(map(len, met))
        scores, baseline, guess, truth = np.concatenate(met).T
        positive = truth >= 0.5
        rate = float(positive.mean())
        found = {
            "accuracy": float(((guess > 0.5) == positive).mean()),
            "majority": max(rate, 1 - rate),
            "auc": auc(scores, truth),
            "baseline_auc": auc(baseline, truth),
        }
        self._results = {name: value for name, value in found.items() if value is not None}
        return self._results


def _floats(column: pa.Array) -> list[float]:
    found: list[float] = column.cast(pa.float64()).fill_null(float("nan")).to_pylist()
    return found


class Tail:
    """Follows ``plan``'s predictions and outcomes from their beginning until ``stop``."""

    def __init__(self, plan: Plan, settings: Settings, clock: Callable[[], float] = time.time) -> None:
        self.latency, self.scores = Latency(), Scoreboard()
        self._plan, self._settings, self._clock = plan, settings, clock
        self._stopping = threading.Event()
        self._threads = []
        if plan.model is not None:
            self._threads.append(threading.Thread(target=self._follow_predictions, name="latency", daemon=True))
            if plan.label is not None:
                self._threads.append(threading.Thread(target=self._follow_outcomes, name="outcomes", daemon=True))

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def _follow_predictions(self) -> None:
        topic = self._plan.topic("predictions")
        consumer, decoder = self._open(topic, ("ingest_time",))
        waiting: list[tuple[float, list[Message]]] = []
        decoded = self._clock()
        try:
            while not self._stopping.is_set():
                messages = consumer.consume(1, 0.1)
                if messages:
                    messages += consumer.consume(5_000, 0)
                    waiting.append((self._clock(), messages))
                if waiting and self._clock() - decoded >= DECODE_EVERY_S:
                    self._measure(decoder, waiting)
                    waiting, decoded = [], self._clock()
            self._measure(decoder, waiting)
        finally:
            consumer.close()

    def _measure(self, decoder: AvroDecoder, waiting: list[tuple[float, list[Message]]]) -> None:
        values = [message.value() for _, messages in waiting for message in messages if message.error() is None]
        if not values:
            return
        counts = [sum(message.error() is None for message in messages) for _, messages in waiting]
        read = np.repeat([at for at, _ in waiting], counts)
        appended = decoder.decode(values).rows.column(0).cast(pa.int64()).to_numpy()
        self.latency.at.append(read)
        self.latency.ms.append(read * 1000 - appended)

    def _follow_outcomes(self) -> None:
        topic = self._plan.topic("outcomes")
        columns = ("kind", "label_key", "score", "label", "baseline", "value")
        consumer, decoder = self._open(topic, columns, least_bytes=65_536)
        try:
            while not self._stopping.wait(DECODE_EVERY_S):
                while values := [m.value() for m in consumer.consume(20_000, 0) if m.error() is None]:
                    self.scores.add(decoder.decode(values).rows)
        finally:
            consumer.close()

    def _open(self, topic: TopicPlan, columns: tuple[str, ...], least_bytes: int = 1) -> tuple[Consumer, AvroDecoder]:
        consumer = Consumer(
            {
                **self._settings.kafka(),
                "group.id": f"tail-{uuid4().hex}",
                "enable.auto.commit": False,
                "isolation.level": "read_committed",
                "fetch.wait.max.ms": 500,  # without rows; a first row is answered at once
                "fetch.min.bytes": least_bytes,
                "fetch.queue.backoff.ms": 5,
                "logger": log,
            }
        )
        consumer.assign([TopicPartition(topic.name, n, OFFSET_BEGINNING) for n in range(topic.partitions)])
        assert topic.value is not None
        narrow = topic.value.avro | {"fields": [f for f in topic.value.avro["fields"] if f["name"] in columns]}
        return consumer, AvroDecoder(narrow, schema_lookup(self._plan, self._settings))
