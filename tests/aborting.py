"""A worker some of whose transactions end as a broker ends them: with an error after which they have to be aborted.

``python -m tests.aborting STAGE PLAN SEED`` is ``penstock run``. While the file ``aborting`` beside the plan is there,
the share of transactions that it names meets such an error, half of them when the offsets are sent, half at the commit.
"""

import random
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from penstock import worker
from penstock.local.supervisor import Worker
from penstock.plan import Plan
from penstock.settings import Settings
from penstock.transport.clients import Producer
from penstock.transport.librdkafka import KafkaFault, Place

ILLEGAL_GENERATION = 22
WHY = "an abort of the tests"


def command(seed: int) -> Callable[[Worker, Path], list[str]]:
    """How a supervisor starts one; of slot 0 alone."""
    return lambda worker, plan: [sys.executable, "-m", "tests.aborting", worker.stage, str(plan), str(seed)]


def abort_at_times(said: Path, draw: random.Random) -> None:
    begin, send_offsets, commit = Producer.begin, Producer.send_offsets, Producer.commit
    fate = [0.0, 0.0]
    """What was drawn for the open transaction, and the share of those that fail."""

    def begun(producer: Producer) -> None:
        begin(producer)
        fate[:] = draw.random(), float(said.read_text()) if said.exists() else 0.0

    def offsets(producer: Producer, places: Iterable[Place], group: int, wait_s: float) -> None:
        send_offsets(producer, places, group, wait_s)
        drawn, share = fate
        if drawn < share / 2:
            fail()

    def committed(producer: Producer, wait_s: float) -> None:
        drawn, share = fate
        if drawn < share:
            fail()
        commit(producer, wait_s)

    def fail() -> None:
        raise KafkaFault(ILLEGAL_GENERATION, WHY, abortable=True)

    Producer.begin, Producer.send_offsets, Producer.commit = begun, offsets, committed  # type: ignore[method-assign]


if __name__ == "__main__":
    stage, plan_path, seed = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    abort_at_times(plan_path.parent / "aborting", random.Random(f"{seed} {stage}"))
    sys.exit(worker.run(Plan.load(plan_path), stage, Settings()))
