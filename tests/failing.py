"""A worker that ends or stops by itself at a named point of its work, in the middle of whatever it has under way.

``python -m tests.failing STAGE PLAN SLOT`` is ``penstock run``. The file ``failpoint-STAGE.SLOT.json`` beside the plan
arms one point of it: ``{"point": "send", "passes": 3}`` ends it the third time it comes by, with the exit code
``CODE``. It takes the file away before, and leaves ``failpoint-STAGE.SLOT.died``, so the next process lives. With
``"then": "stop"`` it stops there as of SIGSTOP, and goes on at SIGCONT. With ``"then": "wait"`` its loop alone stands
still, while the threads of its clients go on, until ``failpoint-STAGE.SLOT.died`` is taken away.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from ctypes import c_uint64
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from penstock import worker
from penstock.codec.decoded import Decoded
from penstock.intake import TopicReader
from penstock.local.supervisor import Worker
from penstock.plan import InputPlan, Plan
from penstock.records import Batch, Partition, Result
from penstock.settings import Settings
from penstock.snapshots.files import SnapshotFiles
from penstock.stage import Stage
from penstock.transport.clients import Producer
from penstock.transport.kafka import KafkaTransport
from penstock.transport.librdkafka import Message, rd, topic_name
from penstock.transport.protocol import Polled

CODE = 86
LOOP = ("poll", "decode", "process", "send", "offsets", "commit")
"""Just after each of these; ``send``: the rows are at the broker; ``offsets``: they are in the transaction; ``commit``:
it is done, and nothing of it is noted yet."""
FIRST_ROW = "first row of "
"""And a partition, in the middle of a poll: it has this row from the client, and asks for the others and for whatever
else there is to hear."""
SNAPSHOT = ("snapshot, half", "snapshot, whole")
"""Half of the file is written; it is in its place."""
FEAST = ("online", "offline, half", "offline, whole", "feast commit")
"""The store has the rows; half of the file is written; it is in its place; just before the offsets are committed."""
FEAST_STAGE = "features.feast"
FILE_S = 0.5
"""How long rows wait for a file, so that one is written often enough to die of."""
Then = Literal["end", "stop", "wait"]


def command(worker: Worker, plan_path: Path) -> list[str]:
    """How a supervisor starts one."""
    return [sys.executable, "-m", "tests.failing", worker.stage, str(plan_path), str(worker.slot)]


def armed_by(folder: Path, stage: str, slot: int = 0) -> Path:
    return folder / f"failpoint-{stage}.{slot}.json"


def arm(folder: Path, death: "Death", slot: int = 0, then: Then = "end") -> Path:
    """Returns the file that is there once the worker has ended, has stopped or waits of it."""
    armed = armed_by(folder, death.stage, slot)
    died, aside = armed.with_suffix(".died"), armed.with_suffix(".aside")
    died.unlink(missing_ok=True)
    aside.write_text(json.dumps({"point": death.point, "passes": death.passes, "then": then}))
    aside.rename(armed)
    return died


@dataclass(frozen=True, slots=True)
class Death:
    """At which point of which stage, and how often that has come by then."""

    point: str
    stage: str
    passes: int


class FailPoint:
    """The one that the file arms."""

    def __init__(self, armed: Path) -> None:
        self._armed, self._passes = armed, 0

    def due(self, point: str) -> bool:
        """Whether it is now that the process ends. Counts this pass."""
        if not self._armed.exists():
            return False
        said = json.loads(self._armed.read_text())
        if said["point"] != point:
            return False
        self._passes += 1
        return bool(self._passes >= said["passes"])

    def die(self) -> None:
        then, died = json.loads(self._armed.read_text())["then"], self._armed.with_suffix(".died")
        self._armed.rename(died)
        self._passes = 0
        match then:
            case "end":
                os._exit(CODE)
            case "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            case "wait":
                while died.exists():
                    time.sleep(0.01)

    def passed(self, point: str) -> None:
        if self.due(point):
            self.die()


def after(owner: Any, name: str, then: Callable[..., None]) -> None:
    """From now on a call of ``owner.name`` is followed by ``then(answer, *arguments)``."""
    call = getattr(owner, name)

    def followed(*args: Any, **options: Any) -> Any:
        answer = call(*args, **options)
        then(answer, *args)
        return answer

    setattr(owner, name, followed)


def fail_in_loop(at: FailPoint) -> None:
    reader, find_kind = worker.reader, worker.find_kind

    def polled(answer: Polled, *_: object) -> None:
        if answer.records:
            at.passed("poll")

    def fetched(found: int, _: int, __: int, pointers: int, most: int) -> None:
        if found != 1 or most != 1:
            return
        message = Message.from_address(c_uint64.from_address(pointers).value)
        if not message.err:
            at.passed(f"{FIRST_ROW}{Partition(topic_name(message.topic), message.partition)}")

    def sent(_: None, transport: KafkaTransport, *__: object) -> None:
        if at.due("send"):
            transport._transactions._producer.flush(10.0)
            at.die()

    def failing_reader(source: InputPlan, lookup: worker.Lookup, largest: int) -> TopicReader:
        found = reader(source, lookup, largest)

        def decode(values: pa.BinaryArray) -> Decoded:
            decoded = found.decode(values)
            at.passed("decode")
            return decoded

        return replace(found, decode=decode)

    def processing(stage: Stage) -> Stage:
        process = stage.process

        def failing(batch: Batch) -> Result:
            result = process(batch)
            at.passed("process")
            return result

        stage.process = failing  # type: ignore[method-assign]
        return stage

    def failing_kind(name: str) -> worker.StageKind:
        kind = find_kind(name)
        return replace(kind, build=lambda plan, name: processing(kind.build(plan, name)))

    after(rd, "consume_batch_queue", fetched)
    after(KafkaTransport, "poll", polled)
    after(KafkaTransport, "send", sent)
    after(Producer, "send_offsets", lambda *_: at.passed("offsets"))
    after(Producer, "commit", lambda *_: at.passed("commit"))
    worker.reader, worker.find_kind = failing_reader, failing_kind


def fail_in_files(at: FailPoint) -> None:
    """Whatever is to outlive a power cut is brought to the disk before it is put in its place."""
    sync = os.fsync

    def failing(descriptor: int) -> None:
        name = Path(os.readlink(f"/proc/self/fd/{descriptor}")).name
        for kind, point in ((".snapshot.", "snapshot, half"), (".parquet.", "offline, half")):
            if kind in name and at.due(point):
                os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
                at.die()
        sync(descriptor)

    os.fsync = failing  # type: ignore[assignment]
    after(SnapshotFiles, "write", lambda *_: at.passed("snapshot, whole"))


def fail_in_feast(at: FailPoint) -> None:
    from penstock_features import writer

    from penstock.feast.offline import OfflineAppender
    from penstock.feast.stores import ViewStores

    open_stores, commit = writer.open_stores, KafkaTransport.commit

    def failing_stores(plan: Plan, settings: Settings) -> Sequence[ViewStores]:
        return [replace(found, write_online=failing_write(found.write_online)) for found in open_stores(plan, settings)]

    def failing_write(write: Callable[[pa.Table], int] | None) -> Callable[[pa.Table], int]:
        assert write is not None, "flights writes every view online"

        def failing(rows: pa.Table) -> int:
            written = write(rows)
            at.passed("online")
            return written

        return failing

    def failing_commit(transport: KafkaTransport, positions: Any) -> None:
        at.passed("feast commit")
        commit(transport, positions)

    after(OfflineAppender, "append", lambda written, *_: at.passed("offline, whole") if written else None)
    writer.open_stores, KafkaTransport.commit = failing_stores, failing_commit  # type: ignore[assignment,method-assign]
    writer.Pace = partial(writer.Pace, file_s=FILE_S)  # type: ignore[assignment,misc]


def main(stage: str, plan_path: Path, slot: int) -> int:
    settings = Settings(slot=slot)
    at = FailPoint(armed_by(plan_path.parent, stage, slot))
    fail_in_files(at)
    (fail_in_feast if stage == FEAST_STAGE else fail_in_loop)(at)
    return worker.run(Plan.load(plan_path), stage, settings)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])))
