"""A second verifier, which reads while the faults happen: what a reader of committed records sees is never taken back,
never comes twice and never out of order, not even for a moment.

``Watch`` judges records as they come; ``Watcher`` brings it those of a running pipeline, in a thread of its own. As
independent as the other: plain confluent-kafka and fastavro.
"""

import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, TopicPartition

from tests.chaos.records import Log, Place, Record, Schemas
from tests.chaos.verdict import Verdict


@dataclass(slots=True)
class _Hop:
    """A topic of the chain: where each origin is, and how far each key of each partition before it has come.

    ``early``: rows that were seen before their source, which the watcher reads from another topic at its own pace.
    """

    places: dict[Place, Place] = field(default_factory=dict)
    newest: dict[tuple[bytes, int], int] = field(default_factory=dict)
    early: deque[tuple[Place, bytes, Place]] = field(default_factory=deque)


class Watch:
    """What was found so far is in ``verdict``; ``settle`` when nothing more comes."""

    def __init__(self, pipeline: str, schemas: Schemas) -> None:
        self.verdict = Verdict(pipeline)
        self._name, self._schemas = pipeline, schemas
        own = [topic.removeprefix(f"{pipeline}.") for topic in schemas.topics if topic.startswith(f"{pipeline}.")]
        between = [n for n in own if n.startswith("by.") and "_origin_offset" in schemas.topics[f"{pipeline}.{n}"]]
        self._chain = ["events", *between, "features", *(["predictions"] if "predictions" in own else [])]
        self._hops = {suffix: _Hop() for suffix in self._chain}
        views = [name for name in own if name.startswith("view.")]
        self.suffixes = [*self._chain, *views, *(n for n in ("outcomes", "dropped") if n in own), "dead"]
        self._ends: dict[tuple[str, int], int] = {}
        self._seen: dict[str, dict[Place, int]] = {suffix: {} for suffix in self.suffixes}
        self._once: dict[str, set[Any]] = {suffix: set() for suffix in self.suffixes}

    def take(self, suffix: str, record: Record) -> None:
        """The next committed record of a partition."""
        place = record.partition, record.offset
        where = f"{suffix}/{record.partition}@{record.offset}"
        if record.offset <= self._ends.get((suffix, record.partition), -1):
            self.verdict.find("repeated", f"{where} was read before")
            return
        self._ends[suffix, record.partition] = record.offset
        self._seen[suffix][place] = hash((record.key, record.value))
        self.verdict.counts[suffix] = self.verdict.counts.get(suffix, 0) + 1
        try:
            what = self._what(suffix, record)
        except (ValueError, KeyError) as error:
            self.verdict.find("unreadable", f"{where}: {error}")
            return
        if what in self._once[suffix]:
            self.verdict.find("duplicated", f"{where} says {what} a second time")
            return
        self._once[suffix].add(what)
        if suffix in self._hops:
            self._order(suffix, place, record.key, what)

    def _what(self, suffix: str, record: Record) -> Any:
        """What there may be only one of in this topic."""
        if suffix == "dead":
            said = dict(record.headers)
            return tuple(said[f"__connect.errors.{name}"] for name in ("stage", "topic", "partition", "offset"))
        if suffix in self._hops and suffix != "predictions":
            row = self._schemas.origin(record.value)
            return row["_origin_partition"], row["_origin_offset"]
        row = self._schemas.decode(record.value)
        if suffix.startswith("view."):
            return record.partition, row["_offset"]
        origin = row["origin_partition"], row["origin_offset"]
        if suffix == "predictions":
            return origin
        return (row["kind"] if suffix == "outcomes" else row["topic"], *origin)

    def _order(self, suffix: str, place: Place, key: bytes | None, origin: Place) -> None:
        hop = self._hops[suffix]
        hop.places[origin] = place
        if key is not None:
            hop.early.append((place, key, origin))
        for name in self._chain[self._chain.index(suffix) :][:2]:
            self._catch_up(name)

    def _catch_up(self, suffix: str) -> None:
        """Judges rows whose source is known by now, in the order in which they came."""
        hop, number = self._hops[suffix], self._chain.index(suffix)
        sources = self._hops[self._chain[number - 1]].places if number else None
        while hop.early:
            place, key, origin = hop.early[0]
            source = origin if sources is None else sources.get(origin)
            if source is None:
                return
            hop.early.popleft()
            partition, offset = source
            if hop.newest.get((key, partition), -1) > offset:
                self.verdict.find("misordered", f"{suffix}/{place[0]}@{place[1]} of key {key!r} came too late")
            hop.newest[key, partition] = max(offset, hop.newest.get((key, partition), -1))

    def distinct(self, suffix: str) -> int:
        """Records of a topic so far, doubles once."""
        return len(self._once[suffix])

    def settle(self, log: Log) -> Verdict:
        """Holds everything that was seen against the ``log`` as it is now: committed is committed."""
        for suffix, hop in self._hops.items():
            self._catch_up(suffix)
            self.verdict.find("stranger", f"{suffix} has rows of what was not before it", len(hop.early))
        for suffix, seen in self._seen.items():
            left = dict(seen)
            for record in log.read(f"{self._name}.{suffix}"):
                if left.pop((record.partition, record.offset), None) != hash((record.key, record.value)):
                    self.verdict.find("unseen", f"{suffix}/{record.partition}@{record.offset} was not seen as it is")
            for partition, offset in left:
                self.verdict.find("taken back", f"{suffix}/{partition}@{offset} was there and is not")
        return self.verdict

    def complete(self, log: Log) -> bool:
        """Whether everything that the log holds was seen."""
        ends = {(s, r.partition): r.offset for s in self.suffixes for r in log.read(f"{self._name}.{s}")}
        return all(self._ends.get(end, -1) >= offset for end, offset in ends.items())


class Watcher:
    """A ``Watch`` of a running pipeline; a context manager. ``at``: per topic, when its records were appended (ms since
    epoch) and seen (seconds since epoch), and in which partition.

    ``strict``: a record that was deleted before it was seen is a failure; else it goes on with the oldest there is.
    """

    def __init__(self, bootstrap: str, pipeline: str, schemas: Schemas, partitions: int, strict: bool = True) -> None:
        self.watch = Watch(pipeline, schemas)
        self.at: dict[str, list[tuple[int, float, int]]] = {suffix: [] for suffix in self.watch.suffixes}
        self.failure: BaseException | None = None
        self._prefix = len(pipeline) + 1
        self._stopping = threading.Event()
        self._consumer = Consumer(
            {
                "bootstrap.servers": bootstrap,
                "group.id": f"watch-{uuid4().hex}",
                "enable.auto.commit": False,
                "isolation.level": "read_committed",
                "fetch.wait.max.ms": 20,
                "fetch.queue.backoff.ms": 20,
                "reconnect.backoff.max.ms": 500,
                "socket.timeout.ms": 5000,  # a line that is lost is given up before a worker gives it up
                "auto.offset.reset": "error" if strict else "earliest",
                "log_level": 0,
                "error_cb": lambda error: None,
            }
        )
        self._consumer.assign(
            [
                TopicPartition(f"{pipeline}.{suffix}", number, OFFSET_BEGINNING)
                for suffix in self.watch.suffixes
                for number in range(partitions)
            ]
        )
        self._thread = threading.Thread(target=self._run, name="watcher", daemon=True)

    def __enter__(self) -> "Watcher":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()
        self._consumer.close()

    def settle(self, log: Log, patience_s: float = 30.0) -> Verdict:
        """Waits until it has seen all that ``log`` holds, and judges. To be called once, with the stream at rest."""
        deadline = time.monotonic() + patience_s
        while not self.watch.complete(log) and time.monotonic() < deadline and self.failure is None:
            time.sleep(0.1)
        self._stopping.set()
        self._thread.join()
        if self.failure is not None:
            raise self.failure
        return self.watch.settle(log)

    def first_after(self, suffix: str, mark: int, moment: float) -> float | None:
        """When the first of a topic's records behind its ``mark``-th that was appended later than ``moment`` was seen;
        seconds since epoch."""
        behind = self.at[suffix][mark:]
        return next((seen for appended, seen, _ in behind if appended > moment * 1000), None)

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                self._poll()
        except BaseException as error:  # noqa: BLE001  # told to whoever settles
            self.failure = error

    def _poll(self) -> None:
        messages = self._consumer.consume(5000, 0.02)
        now = time.time()
        for message in messages:
            error = message.error()
            if error is not None:
                # brokers come and go here; a position that is gone is what must not be passed over
                if error.code() in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
                    raise AssertionError(f"the watcher lost its place: {error}")
                continue
            suffix = message.topic()[self._prefix :]
            headers = (message.headers() or []) if suffix == "dead" else []
            self.at[suffix].append((message.timestamp()[1], now, message.partition()))
            self.watch.take(
                suffix, Record(message.partition(), message.offset(), message.key(), message.value(), headers)
            )
