"""The Feast writer: brings what the features stages wrote to the view topics, after their commit, to Feast's stores.

It is a consumer of its own, so a store that fails or is slow holds up nobody: rows wait here, partitions are paused,
and readiness says why. The newest offline file says where to resume; the group's offsets are committed for the lag, and
decide only for a view that is not written offline. Online writes are repeated after a restart; versions make that safe.

What it reads no user wrote, so it has no dead letters and no breaker. A store whose client hangs is left by ending.
"""

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from penstock import telemetry
from penstock.codec.avro import AvroDecoder
from penstock.feast.offline import CREATED_TIME
from penstock.feast.stores import ViewStores, open_stores
from penstock.health import BROKER, Health, HealthServer
from penstock.memory import Memory, OutgrownError, memory_within
from penstock.observer import tell_lag
from penstock.plan import Plan
from penstock.records import Int64s, Partition, Records
from penstock.recovery import IncompleteLogError
from penstock.schemas.registry import TransientLookupError
from penstock.settings import Settings
from penstock.transport.kafka import KafkaTransport
from penstock.transport.protocol import Fenced, Position, TransactionAborted, Transport
from penstock.watchdog import LONGEST_COMMIT, watch
from penstock.worker import largest_message, schema_lookup
from penstock_features.attempts import WRITE, Attempts

log = logging.getLogger(__name__)

LONGEST = {"poll": 2 * LONGEST_COMMIT, "commit": LONGEST_COMMIT, WRITE: 10 * LONGEST_COMMIT}
"""Looks of the watchdog. A poll hands partitions over; one file of a hundred thousand rows takes seconds, to a distant
store perhaps a minute."""


@dataclass(frozen=True, slots=True)
class Pace:
    """When rows become a file, and how many may wait while a store fails. Small files are slow to read."""

    file_rows: int = 100_000
    file_s: float = 60.0
    poll_rows: int = 32_768
    poll_s: float = 0.2
    waiting_rows: int = 500_000


@dataclass(slots=True)
class _Lane:
    """One assigned partition: rows for the next file, the position after the last row that was read, and the offset
    that was committed. ``newest``, ``oldest``: when the last row that was read was appended, and the first that is not
    committed, 0 where there is none; ms since epoch."""

    stores: ViewStores
    position: Position
    committed: int
    topic_id: str = ""
    newest: int = 0
    oldest: int = 0
    offsets: list[Int64s] = field(default_factory=list)
    rows: list[pa.Table] = field(default_factory=list)
    since: float = 0.0

    @property
    def waiting(self) -> int:
        return sum(map(len, self.rows))


class FeastWriter:
    """Moves rows from the view topics into the stores; used by one thread, and the transport's ``Placement``."""

    def __init__(
        self,
        stage: str,
        transport: Transport,
        stores: list[ViewStores],
        decoders: Mapping[str, AvroDecoder],
        health: Health,
        pace: Pace | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._stage, self._transport, self._decoders, self._health = stage, transport, decoders, health
        self._stores = {str(found.view.topic): found for found in stores}
        self._pace, self._clock = pace or Pace(), clock
        self._lanes: dict[Partition, _Lane] = {}
        self._online: dict[str, list[pa.Table]] = {topic: [] for topic in self._stores}
        self._attempts = Attempts(health, clock)
        self._undecoded: list[Records] = []
        self._held: set[Partition] = set()
        self._second = 0.0
        self._stopping = False
        self._full: str | None = None
        self.memory: Memory | None = None

    def stop(self) -> None:
        """Write what is in hand and leave. Safe to call from a signal handler."""
        self._stopping = True

    def run(self) -> None:
        """Returns after ``stop``."""
        self._health.wait("assignment", "no partition is assigned yet")
        self._transport.subscribe(list(self._stores), self)
        try:
            while not self._stopping:
                self.step()
            self._settle(self._lanes)
        except OutgrownError:
            self._settle(self._lanes)
            raise
        finally:
            self._transport.close()

    def step(self) -> None:
        """Read a batch, bring it online, and write the files that are due."""
        with self._health.during("poll"):
            polled = self._transport.poll(self._pace.poll_rows, self._pace.poll_s)
        self._undecoded += polled.records
        self._decode()
        for partition, end in polled.ends.items():
            if partition in self._lanes and not self._undecoded:
                self._lanes[partition].position = Position(end)  # a transaction's marker may lie after the last row
        now = self._clock()
        for topic in self._online:
            self._write_online(topic)
        for partition, lane in self._lanes.items():
            due = lane.waiting >= self._pace.file_rows or now - lane.since >= self._pace.file_s
            if lane.rows and (due or self._full is not None):
                self._write_offline(partition, lane)
        self._make_room()
        if now - self._second >= 1.0:
            self._second = now
            if self.memory is not None:
                self._full = self.memory.look(now)
                self._health.wait("memory", self._full)
            self._commit()

    def _decode(self) -> None:
        while self._undecoded:
            try:
                self._take(self._undecoded[0])
            except TransientLookupError as error:
                self._health.wait("schemas", str(error))
                return
            self._undecoded.pop(0)
        self._health.wait("schemas", None)

    def _take(self, records: Records) -> None:
        stores = self._stores[records.topic]
        decoded = self._decoders[records.topic].decode(records.values)
        for row, why in decoded.bad.items():
            where = {
                "topic": records.topic,
                "partition": int(records.partition[row]),
                "offset": int(records.offset[row]),
            }
            # the reason alone: a message may show a value
            log.error("a row of view %s cannot be read and is left out: %s", stores.view.name, why.reason, extra=where)
            telemetry.FEAST_UNREADABLE.labels(stores.view.name, why.reason).inc()
        index = decoded.index
        created = pa.array(records.timestamp[index], pa.timestamp("ms"))
        rows = pa.Table.from_batches([decoded.rows]).append_column(CREATED_TIME, created)
        if stores.write_online is not None and len(rows):
            self._online[records.topic].append(rows)
        partitions, offsets = records.partition[index], records.offset[index]
        for number in np.unique(records.partition).tolist():
            lane = self._lanes.get(Partition(records.topic, number))
            if lane is None:
                continue
            first, last = np.flatnonzero(records.partition == number)[[0, -1]].tolist()
            lane.position, lane.newest = Position(int(records.offset[last]) + 1), int(records.timestamp[last])
            lane.oldest = lane.oldest or int(records.timestamp[first])
            places = np.flatnonzero(partitions == number)
            if stores.offline is not None and len(places):
                if not lane.rows:
                    lane.since = self._clock()
                whole = len(places) == len(rows)
                lane.rows.append(rows if whole else rows.take(pa.array(places)))
                lane.offsets.append(offsets[places])

    def _write_online(self, topic: str, *, at_once: bool = False) -> None:
        waiting, stores = self._online[topic], self._stores[topic]
        if not waiting or stores.write_online is None:
            return
        rows = waiting[0] if len(waiting) == 1 else pa.concat_tables(waiting)
        write = stores.write_online
        done = self._attempts.attempt(stores.view.name, "online", lambda: write(rows), at_once=at_once)
        self._online[topic] = [] if done else [rows]

    def _write_offline(self, partition: Partition, lane: _Lane, *, at_once: bool = False) -> None:
        offline, view = lane.stores.offline, lane.stores.view.name
        if offline is None or not lane.rows:
            return
        offsets, rows = np.concatenate(lane.offsets), lane.stores.history(pa.concat_tables(lane.rows))
        done = self._attempts.attempt(
            view, "offline", lambda: offline.append(partition.number, offsets, rows, lane.topic_id), at_once=at_once
        )
        if done:
            lane.offsets, lane.rows = [], []

    def _make_room(self) -> None:
        """Nothing more is read while too much waits or is held; the paused partitions are polled all the same."""
        waiting = sum(map(len, self._undecoded)) + sum(len(rows) for tables in self._online.values() for rows in tables)
        if self._attempts.failing("offline"):
            waiting += sum(lane.waiting for lane in self._lanes.values())
        full = waiting > self._pace.waiting_rows or self._full is not None
        if full and (reading := self._lanes.keys() - self._held):
            self._transport.pause(reading)
            self._held |= reading
        elif self._held and not full and waiting <= self._pace.waiting_rows // 2:
            self._transport.resume(self._held & self._lanes.keys())
            self._held = set()

    def _commit(self) -> None:
        """How far each partition is, for whoever watches the lag: rows that a store refuses are lag, those that wait
        for their file to be due are not."""
        done = {p: lane.position for p, lane in self._lanes.items() if not self._refused(p, lane)}
        if done:
            try:
                with self._health.during("commit"):
                    self._transport.commit(done)
            except TransactionAborted as error:
                log.info("the lag could not be committed: %s", error)
                self._transport.abort()
            else:
                for partition, at in done.items():
                    self._lanes[partition].committed, self._lanes[partition].oldest = at.offset, 0
        unheard = []
        for partition, lane in self._lanes.items():
            high = self._transport.high(partition)
            if high is None:
                unheard.append(str(partition))
                continue
            stamp = lane.oldest or lane.newest  # what was committed last is about as old as the next row
            seconds = self._clock() - stamp / 1000 if stamp else 0.0
            tell_lag(self._stage, partition, max(0, high - lane.committed), seconds)
        self._health.wait("lag", f"the end of {', '.join(unheard)} is not known yet" if unheard else None)
        telemetry.READY.labels(self._stage).set(self._health.ready)

    def _refused(self, partition: Partition, lane: _Lane) -> bool:
        offline = lane.rows and self._attempts.failing("offline", lane.stores.view.name)
        return bool(self._undecoded or self._online[partition.topic] or offline)

    def _settle(self, lanes: Mapping[Partition, _Lane]) -> None:
        """One last try for the rows in hand. What cannot be written is read again by whoever has the partition next."""
        for topic in {partition.topic for partition in lanes}:
            self._write_online(topic, at_once=True)
        for partition, lane in lanes.items():
            self._write_offline(partition, lane, at_once=True)
        self._commit()

    def assigned(self, committed: Mapping[Partition, Position | None]) -> dict[Partition, int]:
        starts = {}
        for partition, at in committed.items():
            stores = self._stores[partition.topic]
            low, high = self._transport.bounds(partition)
            topic_id, written_of = "", None
            if stores.offline is None:
                resume = at.offset if at is not None else low
            else:
                stores.offline.clean(partition.number)
                topic_id = self._transport.identity(partition.topic)
                written_of = stores.offline.topic_id(partition.number)
                found = stores.offline.resume_at(partition.number)
                resume = low if found is None else found
            if resume > high or written_of not in (None, topic_id):
                raise IncompleteLogError(
                    f"{partition}: {stores.view.name} was written up to {resume} of another topic of that name, made "
                    f"anew since or of another cluster; this one ends at {high}. Move the view's offline files away, "
                    "or give the pipeline a new name"
                )
            if resume < low:
                log.error("%s: rows %d to %d were deleted before they were written", partition, resume, low - 1)
            starts[partition] = max(low, resume)
            self._lanes[partition] = _Lane(stores, Position(starts[partition]), starts[partition], topic_id)
            log.info("assigned %s from %d", partition, starts[partition])
        self._health.wait("assignment", None if self._lanes else "no partition is assigned")
        telemetry.ASSIGNED.labels(self._stage).set(len(self._lanes))
        return starts

    def revoked(self, partitions: Iterable[Partition]) -> None:
        gone = {p: self._lanes[p] for p in partitions if p in self._lanes}
        self._settle(gone)
        self.lost(gone)

    def lost(self, partitions: Iterable[Partition]) -> None:
        gone = set(partitions)
        self._lanes = {p: lane for p, lane in self._lanes.items() if p not in gone}
        self._held -= gone
        self._undecoded = [
            kept
            for records in self._undecoded
            if len(kept := records.without({p.number for p in gone if p.topic == records.topic}))
        ]
        for partition in gone:
            tell_lag(self._stage, partition, 0, 0.0)  # its new owner tells it from now on
        telemetry.ASSIGNED.labels(self._stage).set(len(self._lanes))


def make_writer(
    plan: Plan, name: str, settings: Settings, transport: Transport, health: Health, pace: Pace | None = None
) -> FeastWriter:
    """The writer of the plan's worker ``name`` on any transport."""
    lookup = schema_lookup(plan, settings)
    most = largest_message(plan)
    decoders = {source.topic: AvroDecoder(source.value.avro, lookup, most) for source in plan.stage(name).inputs}
    health.ask(BROKER, transport.trouble)
    return FeastWriter(name, transport, open_stores(plan, settings), decoders, health, pace)


def main(plan: Plan, name: str, settings: Settings) -> int:
    """Runs until SIGTERM or SIGINT. Returns the exit code."""
    health = Health()
    server = HealthServer(health, settings.metrics_host, settings.metrics_port)
    log.info("metrics and health on port %d", server.port, extra={"port": server.port})
    try:
        memory = memory_within(settings.memory_limit_mb)  # before there is a client to close
        # it writes to no topic, so it needs no transactions
        plainly = settings.model_copy(update={"guarantee": "at_least_once"})
        transport = KafkaTransport(plainly, plan.group(name), name, planned=plan.keyed(name))
        writer = make_writer(plan, name, settings, transport, health)
        writer.memory = memory
        watch(health, writer.stop, LONGEST)
        health.wait("start", None)
        writer.run()
    except Fenced as error:
        log.error("fenced: %s", error)
        return 1
    finally:
        health.alive = False
        server.close()
    log.info("stopped")
    return 0
