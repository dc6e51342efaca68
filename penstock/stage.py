"""The one protocol of a stream processor. A stage knows no Kafka, no clock and no I/O, so the same object runs in a
unit test, in a backfill over Parquet and in production, and two of them can be fused into one process.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from penstock.plan import Plan
from penstock.records import Batch, Partition, Result, State
from penstock.settings import Settings


class Stage(ABC):
    """Turns batches into results. Called by one thread only.

    Obligations: ``process`` must be deterministic (same state and batch, same result), must not change its input, must
    not block and must give every row exactly one fate. A bad row is a reject with its reason; an exception means
    the whole batch could not be computed, and the loop then halves the batch until the guilty row stands alone: state
    must be as before the call whenever ``process`` raises.
    """

    absorbs: bool = False
    """Rows without an output, reject or drop are kept in state."""

    @abstractmethod
    def process(self, batch: Batch) -> Result:
        """The fate of every row. In a ``batch.replay`` only state changes count; the result is thrown away."""

    def reach(self, topic: str) -> int | None:
        """How far back in event time (ms) the state of one of the topic's partitions depends on its log, so that
        replaying that much brings it back; None where rows of the topic leave no state.
        """
        return None

    def restore(self, partition: Partition, snapshot: State | None) -> None:
        """Start ``partition`` from a snapshot, or empty. Called at assignment, before its first row. Raises
        ``ValueError``, with the partition as before, for a snapshot that it cannot take."""

    def release(self, partition: Partition) -> None:
        """The partition is gone: forget its state."""

    def sizes(self) -> dict[str, tuple[int, int]]:
        """Bytes and entries of each part of the state (a view's windows), for the metrics; empty if there is none."""
        return {}

    def snapshot(self, partition: Partition) -> State:
        """The partition's state as ``restore`` accepts it. Shares no memory with what ``process`` changes."""
        raise NotImplementedError(f"{type(self).__name__} keeps no state to snapshot")

    def state_version(self) -> str:
        """What form and meaning of the state depend on: a snapshot of another version is never restored."""
        return ""

    def tick(self, now: int) -> Result:
        """Time passed: ``now`` is ms since epoch. Called at most once a second, between batches; sources are -1."""
        return Result()

    def flush(self) -> Result:
        """What must go out before the offsets of the rows seen so far are committed; sources are -1."""
        return Result()


class Companion(Protocol):
    """Something that runs beside a loop on a thread of its own and hands the stage news between two batches,
    such as the watcher of the control topic that loads models."""

    def start(self) -> None: ...

    def unready(self) -> str | None:
        """Why the worker may not start yet, or None when it may."""

    def news(self) -> list[Callable[[Stage], None]]:
        """Changes to apply to the stage now, between two batches. Must not block."""

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class StageKind:
    """What a service registers in the entry-point group ``penstock.stages`` under its kind (``ingest``, ``features``…).

    ``build(plan, name)`` makes the stage called ``name`` in the plan (``features.aircraft``). ``companion``, where the
    stage needs one, is made by ``companion(plan, name, settings)``. ``commit_interval_ms`` replaces the settings' one
    for stages whose outputs are summaries. A kind that is no loop at all (the Feast writer, the Faust merge) registers
    ``main(plan, name, settings)`` in the group ``penstock.workers`` instead, which runs until SIGTERM.
    """

    build: Callable[[Plan, str], Stage]
    companion: Callable[[Plan, str, Settings], Companion] | None = None
    commit_interval_ms: int | None = None
