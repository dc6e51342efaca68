"""When snapshots are taken and which one a partition starts from.

They are taken just after a commit, when a partition's state is that of its committed offset; one partition at a time,
so that the loop never stands still for all of them, and written by a thread beside it. A failure to write costs nothing
but a longer replay: the stream goes on.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from queue import Queue

from penstock import telemetry
from penstock.records import Partition, State
from penstock.snapshots.files import Facts, SnapshotFiles
from penstock.stage import Stage
from penstock.transport.protocol import Position

log = logging.getLogger(__name__)

SHARE = 0.02
"""Most of the loop's time that taking may cost; a large state is taken less often than the interval says."""
_LAST_S = 10.0

Job = tuple[Partition, Facts, State]


class Snapshots:
    """Of one stage. ``identify(topic)``: the broker's identities of cluster and topic; ``interval_s``: how often each
    partition is written, if it has moved."""

    def __init__(
        self,
        files: SnapshotFiles,
        stage: Stage,
        name: str,
        identify: Callable[[str], str],
        interval_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._files, self._stage, self._name, self._identify = files, stage, name, identify
        self._interval_s, self._clock = interval_s, clock
        self._version = stage.state_version()
        self._topics: dict[str, str] = {}
        self._moved: dict[Partition, Position] = {}
        self._due: dict[Partition, float] = {}
        self._next = 0.0
        self._jobs: Queue[Job | None] = Queue(1)  # no more than two states lie in memory a second time
        self._idle = threading.Event()
        self._idle.set()
        self._writer = threading.Thread(target=self._write_all, name="snapshots", daemon=True)
        self._writer.start()

    def usable(self, partition: Partition, low: int, committed: int) -> Iterator[tuple[Position, State]]:
        """States of the partition to start from, newest first: of this topic and this version of the stage, not beyond
        the committed offset, and with all of the log from there on."""
        identity = self._topics[partition.topic] = self._identify(partition.topic)
        found = self._files.read(partition)
        while True:
            try:
                facts, state = next(found)
            except StopIteration:
                return
            except OSError as error:  # the rest is replayed
                log.warning("%s: snapshots cannot be read: %s", partition, error)
                return
            unfit = {
                f"it is of another topic of the name ({facts.topic})": facts.topic != identity,
                "it is of another definition of the state": facts.state != self._version,
                f"it is of offset {facts.offset}, which is not committed": facts.offset > committed,
                f"the log begins at {low}, after its offset {facts.offset}": facts.offset < low,
            }
            if why := [reason for reason, holds in unfit.items() if holds]:
                log.info("%s: a snapshot is not used: %s", partition, why[0])
                continue
            yield facts.position, state

    def committed(self, positions: Mapping[Partition, Position]) -> None:
        """Call after each commit, with nothing uncommitted in the stage. Takes at most one."""
        for partition, at in positions.items():
            if self._stage.reach(partition.topic) is not None:
                self._moved[partition] = at
        now = self._clock()
        if not self._idle.is_set() or now < self._next or not self._moved:
            return
        partition = min(self._moved, key=lambda p: self._due.get(p, 0.0))
        if now >= self._due.setdefault(partition, now + self._interval_s):
            self._take(partition, now)

    def _take(self, partition: Partition, now: float) -> None:
        at = self._moved.pop(partition)
        state = self._stage.snapshot(partition)
        facts = Facts(
            topic=self._topics[partition.topic],
            state=self._version,
            partition=partition.number,
            offset=at.offset,
            watermark=at.watermark,
        )
        self._idle.clear()
        self._jobs.put((partition, facts, state))
        took = self._clock() - now
        telemetry.SNAPSHOT_SECONDS.labels(self._name).observe(took)
        self._due[partition] = now + self._interval_s
        self._next = now + took / SHARE

    def release(self, partitions: Iterable[Partition], *, settled: bool) -> None:
        """These are another's from now on; ``settled``: all of them that was processed is committed, so that their
        state may be written for the next owner."""
        for partition in partitions:
            if settled and partition in self._moved:
                self._take(partition, self._clock())
            self._moved.pop(partition, None)
            self._due.pop(partition, None)

    def drained(self) -> None:
        """Returns when nothing is being written."""
        self._idle.wait()

    def close(self, *, settled: bool) -> None:
        """Waits for what is being written, a while."""
        self.release(list(self._moved), settled=settled)
        self._jobs.put(None)
        self._writer.join(_LAST_S)

    def _write_all(self) -> None:
        while (job := self._jobs.get()) is not None:
            partition, facts, state = job
            try:
                self._files.write(partition, facts, state)
            except Exception as error:  # noqa: BLE001  # whatever a store raises, the log still has it all
                telemetry.SNAPSHOTS.labels(self._name, "failed").inc()
                log.warning("%s: no snapshot could be written, a restart will replay more: %s", partition, error)
            else:
                telemetry.SNAPSHOTS.labels(self._name, "written").inc()
                size = sum(table.nbytes for table in state.values())
                telemetry.SNAPSHOT_BYTES.labels(self._name, partition.topic, str(partition.number)).set(size)
            finally:
                del job, state  # else they lie in memory until the next ones come
                if self._jobs.empty():
                    self._idle.set()
