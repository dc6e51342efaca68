"""The one loop of every stream processor: poll, decode, process, encode, send, commit.

Outputs, dead letters and offsets are one transaction. An abort never touches a stage's state: the outbox keeps what was
sent until it is committed. Waiting means that partitions are paused and still polled, so that no membership is ever
lost over it.
"""

import gc
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping

import numpy as np
import pyarrow as pa

from penstock.breaker import Breaker
from penstock.fates import FateError, check_fates, process, tell_failures
from penstock.holdback import Holdback
from penstock.intake import Intake, Piece
from penstock.journal.stepping import STEP_ROWS
from penstock.lanes import Work
from penstock.memory import MIB, Memory, OutgrownError
from penstock.observer import Observer
from penstock.outbox import REFUSED, Outbox, Tally, UnencodableError
from penstock.pace import Pace
from penstock.records import Output, Partition, Reason, Result
from penstock.recovery import IncompleteLogError, Recovery
from penstock.schemas.registry import TransientLookupError
from penstock.stage import Companion, Stage
from penstock.standstill import Standstill
from penstock.transport.protocol import Fenced, Position, Repartitioned, TransactionAborted, Transport

log = logging.getLogger(__name__)

SECOND = 1.0
UNFIT = "output does not fit its schema"
LOOK_S = 0.01
"""How often a worker that is held back looks where the others are."""
MOST_ABORTS = 20
"""Aborts in a row that name no row, after which a worker starts anew: the fault is not one that passes."""
TOLD = (Fenced, Repartitioned, FateError, UnencodableError, IncompleteLogError, OutgrownError, OSError)
"""How a worker ends that knows why; whatever else ends it may be a row's doing."""


class Loop:
    """Runs ``stage`` on ``topics`` until ``stop``. Used by one thread; it is the transport's ``Placement``."""

    def __init__(
        self,
        stage: Stage,
        transport: Transport,
        intake: Intake,
        outbox: Outbox,
        observer: Observer,
        pace: Pace,
        topics: list[str],
        companion: Companion | None = None,
        breaker: Breaker | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.stage, self.transport, self.intake, self.outbox = stage, transport, intake, outbox
        self.recovery = Recovery(
            stage, transport, pace.future_ms, allow_incomplete=pace.allow_incomplete_windows, clock=clock
        )
        self._observer, self._pace, self._topics, self.companion, self._clock = (
            observer,
            pace,
            topics,
            companion,
            clock,
        )
        self._pending: deque[Piece] = deque()
        self._ends: dict[Partition, int] = {}
        self.breaker = breaker or Breaker()
        self.memory: Memory | None = None
        self.standstill = Standstill(transport, intake, observer)
        self._told: dict[Partition, Position] = {}
        self._aborts = 0
        self._holdback = Holdback(transport, intake, topics, pace.lateness_ms)
        self._opened = self._committed = self._second = self._polled = self._looked = 0.0
        self._full = False
        self._stopping = False
        self._outgrown: OutgrownError | None = None

    def stop(self) -> None:
        """Finish the batch in hand, commit, leave. Safe to call from a signal handler."""
        self._stopping = True

    def run(self) -> None:
        """Returns after ``stop``. Raises what stops a worker for good; nothing uncommitted is visible then."""
        if self.companion is not None:
            self.companion.start()
        try:
            while not self._stopping and self.companion is not None and (why := self.companion.unready()) is not None:
                self._observer.waiting("model", why)
                time.sleep(0.02)
            self._observer.waiting("model", None)
            self.transport.subscribe(self._topics, self)
            while not self._stopping:
                self.step()
            self._aborts = 0
            while self.outbox and self._aborts < 3:
                self._commit()
            self.recovery.close(settled=not self.outbox)
            if self._outgrown is not None:
                raise self._outgrown
        except TOLD:
            self.recovery.journal.close()
            raise
        finally:
            self.transport.close()
            if self.companion is not None:
                self.companion.close()

    def step(self) -> None:
        """One turn: everything that is there, at most one batch of each topic."""
        if self.companion is not None:
            for change in self.companion.news():
                change(self.stage)
        self._gather()
        with self._observer.phase("poll"):
            most = self.recovery.journal.most_rows(self._pace.max_batch_rows)
            polled = self.transport.poll(most, self._wait())
        now = self._polled = self._clock()
        self._full = sum(map(len, polled.records)) >= most
        for records in polled.records:
            for piece in self.intake.split(records):
                self._pending.extend(self.recovery.journal.parts(piece))
        self._ends.update(polled.ends)
        self._decode(now)
        if not self._pending:  # what waits to be decoded lies before the end
            for partition, end in self._ends.items():
                self.intake.ended(partition, end)
            # a log that ends in a marker has no row whose work would say that the replay is over
            self.recovery.journal.replayed(self.intake.past_replay(self._ends))
            self._ends.clear()
        singles = STEP_ROWS if self.recovery.journal.stepping else 0
        for work in self.intake.take(now, self.breaker.most_rows(now), singles=singles):
            self._work(work)
            if not self.breaker.most_rows(now):
                break
        self.recovery.journal.over()
        if self.intake.held and now - self._looked >= LOOK_S:
            self._look_around(now)
        self._make_room()
        if now - self._second >= SECOND:
            self._second = now
            self._every_second(now)
        elif not self._observer.ready:  # somebody waits for it: a second is a third of a start
            self._tell(now)
        self._commit_when_due(drained=not polled.records and not self._pending)
        self._stand_or_go(now)

    def _gather(self) -> None:
        early = self._polled + self._pace.gather_s - self._clock()
        if not self._full and 0 < early <= self._pace.gather_s:
            time.sleep(early)

    def _wait(self) -> float:
        if self.outbox:
            return max(0.0, min(self._committed + self._pace.commit_interval_s - self._clock(), self._pace.max_wait_s))
        return self._pace.max_wait_s if not self.intake.buffered else 0.005

    def _decode(self, now: float) -> None:
        rest = None
        while self._pending and rest is None and (most := self.breaker.most_rows(now)):
            piece, rest = self._pending[0].cut(most)
            try:
                with self._observer.phase("decode"):
                    self.recovery.journal.decoding(piece.records)
                    work = self.intake.add(piece, now)
            except TransientLookupError as error:
                self.standstill.say("schemas", str(error))
                return
            self._pending.popleft()
            if rest is not None:
                self._pending.appendleft(rest)
            if work is not None:
                self._work(work)
                if self.recovery.journal.stepping:  # a transaction lasts for seconds, and so may a poll's rows
                    self._commit_when_due(drained=False)
        self.standstill.say("schemas", None)

    def _stand_or_go(self, now: float) -> None:
        """Once a turn, when all that was worked has been counted."""
        if not self.outbox:
            self.breaker.settled(now)
        self.standstill.say("dead letters", self.breaker.why, stopped=not self.breaker.most_rows(now))
        self.standstill.keep()

    def _work(self, work: Work) -> None:
        with self._observer.phase("process"):
            self.recovery.journal.processing(work.batch)
            result = process(self.stage, work.batch)
        if work.batch.replay:
            self._observer.replayed(len(work.batch))
            self.recovery.journal.replayed(work.positions)
            return
        if not self.outbox:
            self._opened = self._clock()
        check_fates(self.stage, work.batch, result)
        tell_failures(self.stage, work.batch, result)
        with self._observer.phase("send"):
            dead = self._send(work, result)
        self.breaker.count(len(work.batch) + len(work.bad), dead, self._polled)
        self._observer.worked(work.batch)

    def _send(self, work: Work, result: Result) -> Mapping[str, int]:
        try:
            return self.outbox.add(work, result)
        except UnencodableError as error:
            return self.outbox.add(work, self._without_unencodable(result, error))

    def _without_unencodable(self, result: Result, error: UnencodableError) -> Result:
        """Rows whose output does not fit its schema become rejects, and leave every output."""
        guilty: dict[int, Reason] = {}
        for output in result.outputs:
            for row, why in self.outbox.unencodable(output).items():
                guilty.setdefault(int(output.source[row]), Reason(UNFIT, why))
        if not guilty:
            raise error
        log.warning("%d rows do not fit their output's schema and are dead letters", len(guilty))
        outputs = []
        for output in result.outputs:
            kept = np.flatnonzero(~np.isin(output.source, list(guilty)))
            rows = output.rows.take(pa.array(kept))
            keys = output.keys.take(pa.array(kept))
            outputs.append(Output(output.topic, keys, rows, output.source[kept], output.fate))
        rejects = {**result.rejects, **guilty}
        dropped = {row: why for row, why in result.dropped.items() if row not in rejects}
        return Result(outputs, rejects, dropped, result.late)

    def _make_room(self) -> None:
        if self.standstill.paused:
            return
        if crowded := self.intake.crowded():
            self.transport.pause(crowded)
        if roomy := self.intake.roomy():
            self.transport.resume(roomy)

    def _every_second(self, now: float) -> None:
        if not any(self.intake.replay_left(partition) for partition in self.intake.lanes):
            self.outbox.add_unsourced(self.stage.tick(int(now * 1000)))
        if not self.outbox:
            self.recovery.committed({})
        if self.memory is not None:
            self._look_at_memory(self.memory, now)
        self._look_around(now)
        self._tell(now)

    def _look_at_memory(self, memory: Memory, now: float) -> None:
        try:
            self.standstill.say("memory", memory.look(now))
        except OutgrownError as error:
            state = [f"{name}: {held // MIB:,} MiB in {n:,} keys" for name, (held, n) in self.stage.sizes().items()]
            undecoded = sum(len(piece.records) for piece in self._pending)
            buffers = f"{self.intake.buffered:,} rows wait for the merge, {undecoded:,} to be decoded"
            self._outgrown = OutgrownError("; ".join([str(error), *state, buffers]))
            self.stop()

    def _look_around(self, now: float) -> None:
        self._looked = now
        if not self.outbox:
            self.outbox.positions.update(self._untold())
        self._holdback.look(now)
        self._observer.waiting("other partitions", self._holdback.why)

    def _untold(self) -> dict[Partition, Position]:
        """Where partitions stand beyond what was committed with their rows: past a log's last markers and aborted rows,
        which else would be lag for ever, and before rows that wait, so that workers who wait for one another see it."""
        return {partition: at for partition, at in self.intake.reached().items() if at != self._told.get(partition)}

    def _tell(self, now: float) -> None:
        self._observer.waiting("single steps", self.recovery.journal.says())
        self._observer.every_second(self.intake, self.transport, self.outbox.positions, now, self.stage.sizes())

    def _commit_when_due(self, *, drained: bool) -> None:
        if not self.outbox:
            return
        now = self._clock()
        interval = self._pace.commit_interval_s
        if now - self._opened >= interval or (drained and now - self._committed >= interval):
            self._commit()

    def _commit(self) -> None:
        """Commits what is open; nothing is recomputed for an abort. Where no row is to blame, the same content is tried
        again after the next poll, for there alone it is told that partitions are another's."""
        self.recovery.journal.over()
        if not self.outbox:
            return
        self.outbox.add_unsourced(self.stage.flush())
        self.outbox.positions.update(self._untold())
        refused = False
        while (aborted := self._try_to_commit()) is not None:
            if not (aborted.refused or refused):
                self._try_later(aborted)
                return
            # a refusal leaves a gap in librdkafka's sequence numbers, over which it aborts once more
            refused = bool(aborted.refused)
        self._observer.waiting("commit", None)
        self._aborts = 0
        self._committed = self._clock()
        positions = self.outbox.positions
        self._told.update(positions)
        self._finished(self.outbox.clear(), positions)
        self._observer.collect_garbage(gc.collect)

    def _try_to_commit(self) -> TransactionAborted | None:
        """None when it is done; else why not, with the same content sent again."""
        with self._observer.phase("commit"):
            try:
                self.transport.commit(self.outbox.positions)
            except TransactionAborted as aborted:
                log.warning("transaction aborted and sent again: %s", aborted)
                self._observer.aborted()
                self._observer.waiting("commit", f"the transaction was aborted: {aborted}")
                self.transport.abort()
                self.outbox.resend(aborted.refused)
                return aborted
        return None

    def _try_later(self, aborted: TransactionAborted) -> None:
        self._aborts += 1
        if self._aborts >= MOST_ABORTS:
            raise Fenced(
                f"the same transaction was aborted {self._aborts} times in a row: {aborted}. Look whether the output "
                "topics are there, whether this user may write to them, and at the broker's log"
            ) from aborted
        time.sleep(min(0.005 * 2**self._aborts, 1.0))

    def assigned(self, committed: Mapping[Partition, Position | None]) -> dict[Partition, int]:
        starts, live = {}, {}
        for partition, at in committed.items():
            start, begin = self.recovery.begin(partition, at)
            self.intake.open(partition, start, begin, self.recovery.journal.aside(partition))
            starts[partition], live[partition] = start.offset, begin.offset
            if at is not None:
                self._told[partition] = at
        self._holdback.forget()
        self._observer.waiting("single steps", self.recovery.journal.says())
        self._observer.assignment(self.intake.lanes, live)
        return starts

    def revoked(self, partitions: Iterable[Partition]) -> None:
        gone = set(partitions)
        settled = not gone & self.outbox.positions.keys() or self._settle(gone)
        self._let_go(gone, settled=settled)

    def _settle(self, gone: set[Partition]) -> bool:
        """Commits before the partitions go; if that fails they are treated as lost, and the rest is sent again."""
        self.outbox.add_unsourced(self.stage.flush())
        try:
            with self._observer.phase("commit"):
                self.transport.commit(self.outbox.positions)
        except TransactionAborted as aborted:
            log.warning("the commit before a revocation was aborted: %s", aborted)
            self._observer.aborted()
            self.transport.abort()
            self.outbox.forget(gone)
            self.outbox.resend(())  # the refusals named rows by their places before the others left: they come again
            return False
        positions = self.outbox.positions
        self._finished(self.outbox.clear(), positions)
        return True

    def _finished(self, tally: Tally, positions: Mapping[Partition, Position]) -> None:
        if refused := tally.dead.get(REFUSED):
            self.breaker.refused(REFUSED, refused, sum(tally.rows_in.values()), self._clock())
        self._observer.committed(tally, positions, self._clock())
        self.recovery.committed(positions)

    def lost(self, partitions: Iterable[Partition]) -> None:
        gone = set(partitions)
        if self.outbox.forget(gone):
            self.transport.abort()
            self.outbox.resend(())
        self._let_go(gone, settled=False)

    def _let_go(self, gone: set[Partition], *, settled: bool) -> None:
        self.recovery.release(gone, settled=settled)
        for partition in gone & set(self.intake.lanes):
            self.intake.close(partition)
            self.stage.release(partition)
        self.standstill.forget(gone)
        for partition in gone:
            self._told.pop(partition, None)
        self._ends = {partition: end for partition, end in self._ends.items() if partition not in gone}
        self._pending = deque(
            Piece(kept, piece.replay)
            for piece in self._pending
            if len(kept := piece.records.without({p.number for p in gone if p.topic == piece.records.topic}))
        )
        self._holdback.forget()
        self._observer.assignment(self.intake.lanes, {})
        log.info("let go of %s", ", ".join(map(str, sorted(gone))))
