"""A worker process that dies of certain rows, as a bug in native code or the OOM killer ends one.

``python -m tests.dying STAGE PLAN`` is ``penstock run`` with such rows; ``python -m tests.dying small FOLDER TOPICS``
is the small loop on Kafka. ``DYING`` says of what, as JSON: ``decoding`` and ``processing`` list texts (of the small
loop event times, else event ids), ``how`` is ``segfault``, ``kill``, ``exit`` or ``memory``. Workers of a supervisor,
which have one environment, may be given slot and DYING behind the plan.
"""

import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa

from penstock import logs, worker
from penstock.codec.decoded import Decoded
from penstock.intake import TopicReader
from penstock.journal.notes import Notes
from penstock.journal.stepping import Journal
from penstock.memory import resident_bytes
from penstock.plan import InputPlan, Plan
from penstock.records import Batch, Result
from penstock.settings import Settings
from penstock.snapshots.files import Store
from penstock.stage import Stage
from penstock.transport.kafka import KafkaTransport
from tests.small_loop import TARGET, Passing, decode, small_loop

REACH_MS = 1 << 40
MOST_BYTES, BITE_BYTES = 600 << 20, 16 << 20


class Dying:
    """``said``: of what, and how, as JSON."""

    def __init__(self, said: str) -> None:
        of = json.loads(said)
        self._decoding = [text.encode() for text in of.get("decoding", [])]
        self._processing = set(of.get("processing", []))
        self._how = of.get("how", "segfault")

    def die(self) -> None:
        if self._how == "exit":
            os._exit(70)
        eaten = []
        while self._how == "memory" and resident_bytes(os.getpid()) < MOST_BYTES:
            eaten.append(b"\1" * BITE_BYTES)  # and then the OOM killer comes
        os.kill(os.getpid(), signal.SIGSEGV if self._how == "segfault" else signal.SIGKILL)

    def decoding(self, decode: Callable[[pa.BinaryArray], Decoded]) -> Callable[[pa.BinaryArray], Decoded]:
        def dying(values: pa.BinaryArray) -> Decoded:
            for value in values.to_pylist():
                if any(text in (value or b"") for text in self._decoding):
                    self.die()
            return decode(values)

        return dying

    def processing(self, stage: Stage, column: Callable[[Batch], "pa.Array | None"]) -> Stage:
        process = stage.process

        def dying(batch: Batch) -> Result:
            found = column(batch)
            if found is not None and self._processing & set(found.to_pylist()):
                self.die()
            return process(batch)

        stage.process = dying  # type: ignore[method-assign]
        return stage


def event_ids(batch: Batch) -> "pa.Array | None":
    for name in ("_event_id", "flight_id"):
        if name in batch.rows.schema.names and not batch.topic.endswith(".labels"):
            return batch.rows.column(name)
    return None


def run_stage(name: str, plan_path: Path, slot: str | None = None, said: str | None = None) -> int:
    settings = Settings() if slot is None else Settings(slot=int(slot))
    dying, reader, find_kind = Dying(said or os.environ["DYING"]), worker.reader, worker.find_kind

    def dying_reader(source: InputPlan, lookup: worker.Lookup, largest: int) -> TopicReader:
        found = reader(source, lookup, largest)
        return found if source.topic.endswith(".labels") else replace(found, decode=dying.decoding(found.decode))

    def dying_kind(name: str) -> worker.StageKind:
        kind = find_kind(name)
        return replace(kind, build=lambda plan, name: dying.processing(kind.build(plan, name), event_ids))

    worker.reader, worker.find_kind = dying_reader, dying_kind
    return worker.run(Plan.load(plan_path), name, settings)


def run_small(folder: Path, topics: dict[str, str]) -> int:
    """Its state reaches back to the log's begin, so every start replays all that is committed."""
    settings, dying, group = Settings(), Dying(os.environ["DYING"]), topics[TARGET]
    logs.set_up("small", settings.slot, "INFO")
    transport = KafkaTransport(settings, group, "small")
    stage = dying.processing(Passing(topics[TARGET], REACH_MS), lambda batch: batch.rows.column("value").cast("string"))
    loop = small_loop(transport, stage, topics, decode=dying.decoding(decode))
    journal = Journal(Notes(Store(str(folder), group)), transport.identity, "small", loop.intake.most_in_hand)
    loop.recovery.journal = journal
    signal.signal(signal.SIGTERM, lambda number, frame: loop.stop())
    loop.run()
    return 0


if __name__ == "__main__":
    if sys.argv[1] == "small":
        sys.exit(run_small(Path(sys.argv[2]), json.loads(sys.argv[3])))
    sys.exit(run_stage(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:]))
