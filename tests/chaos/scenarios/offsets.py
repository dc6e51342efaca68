"""Logs change under their readers: retention deletes what a group was to read, a topic is made anew, users' topics get
more partitions, logs end in rows that were never committed and in markers.
"""

import re
import signal
import time
from collections import Counter
from collections.abc import Callable
from itertools import islice
from uuid import uuid4

from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic, OffsetSpec

from tests.chaos.harness import OUTPUT, PATIENCE_S, Lab, Result, Trial
from tests.integration.pipeline_world import World, until

NAME = "offsets"
HOLDS = (
    "never a hang: a stage without windows goes on behind the gap and says so, one with windows refuses with the mend; "
    "partitions that are added are read within seconds, also after a kill; a log that ends in markers has an end"
)
ADDED = 3
BEGUN = re.compile(r"assigned (\S+) from (\d+), live from (\d+)")
READ_WITHIN_S = 30.0
"""A look that finds the partitions, two more, a rebalance, on a busy machine."""


def run(lab: Lab, rounds: int, result: Result) -> None:
    """The verifiers judge what deletes nothing, for they would miss that; the other cases say what they look at."""
    for _ in range(rounds):
        with lab.trial(result, stages=list(OUTPUT)) as trial:
            trial.flowing()
            for killed in (False, True):
                how = "ingest is killed at once" if killed else "nobody is killed"
                result.tell(f"raw and labels get more partitions, {how}")
                partitions_added(trial, killed)
            result.tell("the logs end in markers")
            ends_in_markers(trial)
        late = sum(n for what, n in trial.counts.items() if what.startswith("late in "))
        result.notes.setdefault("rows that came too late", []).append(late)
        for case in CASES:
            name = (case.__doc__ or "").partition(".")[0]
            result.tell(name)
            with lab.trial(result, judged=False, stages=[]) as trial:
                running = {stage: trial.start_extra(stage, 0) for stage in OUTPUT}
                trial.flowing()
                stage = "inference" if "inference" in name else "features.airport"
                if (code := trial.end(running[stage], signal.SIGTERM)) != 0:
                    trial.problem(f"{stage} left with exit code {code}")
                case(trial)
                result.trials += 1


def partitions_added(trial: Trial, killed: bool) -> None:
    world, worker = trial.world, trial.world.worker("ingest")
    began, new = time.time(), set()
    for suffix in ("raw", "labels"):
        topic = world.topic(suffix)
        before = world.partitions[topic]
        world.add_partitions(suffix, before + ADDED)
        new |= {(topic, n) for n in range(before, before + ADDED)}
    if killed:
        world.signal("ingest", signal.SIGKILL)
    said = False

    def read() -> bool:
        nonlocal said
        world.supervisor.check()
        worker.look()
        said |= "readers" in worker.waiting_for
        done = world.committed("ingest")
        return all(done.get(place, 0) > 0 for place in new)

    until(f"rows of {len(new)} added partitions to be read", read, READ_WITHIN_S, 0.1)
    how = "after a kill" if killed else "without a kill"
    trial.result.notes.setdefault(f"added partitions read {how}, s", []).append(round(time.time() - began, 1))
    if killed and not said:
        trial.problem("ingest did not say that it is not ready while the added partitions had no reader")
    trial.flowing()
    trial.result.trials += 1


def ends_in_markers(trial: Trial) -> None:
    """Every log that a stage reads ends in rows of an aborted transaction when all stages are killed. They come back,
    read all of it again, and their lag is none."""
    world = trial.world
    trial.settle()
    topics = [source.topic for stage in OUTPUT for source in world.plan.stage(stage).inputs]
    given_up(world, topics)
    for stage in OUTPUT:
        world.signal(stage, signal.SIGKILL)
    for stage in OUTPUT:
        world.wait_restarted(stage, 1 + (stage == "ingest"))
        until(f"{stage} to have no lag", lambda stage=stage: world.behind(stage) == 0, PATIENCE_S, 0.2)
    given_up(world, topics)
    trial.burst(list(islice(trial.lab.feed(start="2013-06-01"), 400)))
    trial.result.trials += 1


def given_up(world: World, topics: list[str]) -> None:
    """Rows and a marker in each partition, none of which was ever committed."""
    producer = Producer({"bootstrap.servers": world.bootstrap, "transactional.id": f"given-up-{uuid4().hex}"})
    producer.init_transactions(30)
    producer.begin_transaction()
    for topic in topics:
        for number in range(world.partitions[topic]):
            for _ in range(3):
                producer.produce(topic, b"never committed", b"nobody", partition=number)
    producer.flush(30)
    producer.abort_transaction(30)


def deleted_before_inference(trial: Trial) -> None:
    """Rows that inference has not read are deleted by retention. It goes on behind them, and says which."""
    delete(trial, "features", "inference")
    worker = trial.start_extra("inference", 0)
    trial.flowing()
    said = worker.log_path.read_text()
    if "deleted by retention" not in said:
        trial.problem("inference went on behind deleted rows and did not say so")


def deleted_before_windows(trial: Trial) -> None:
    """Rows that the airport windows need are deleted by retention. The stage refuses, or goes on if it is told to."""
    delete(trial, "by.airport", "features.airport")
    refused(trial, "features.airport", "PENSTOCK_ALLOW_INCOMPLETE_WINDOWS")
    trial.start_extra("features.airport", 0, allow_incomplete_windows=True)
    trial.new_output(OUTPUT["features.airport"], time.time())


def made_anew(trial: Trial) -> None:
    """The topic that inference reads is made anew. Kafka forgets its offsets with it, and it is read from its start."""
    world = trial.world
    admin, topic = AdminClient({"bootstrap.servers": world.bootstrap}), world.topic("features")
    for running in trial.extra:
        if running.running:
            trial.end(running, signal.SIGTERM)
    if not any(world.committed("inference").values()):
        trial.problem("inference had committed no offset of the topic that is to be made anew")
    admin.delete_topics([topic])[topic].result(30)
    config = {"message.timestamp.type": "LogAppendTime"}

    def made() -> bool:
        (answer,) = admin.create_topics([NewTopic(topic, trial.lab.plan.partitions, 1, config=config)]).values()
        return answer.exception(30) is None

    until("the topic to be made anew", made, PATIENCE_S, 0.2)
    # rows that it has before inference comes, so that its start is another place than its end
    for stage in (stage for stage in OUTPUT if stage != "inference"):
        trial.start_extra(stage, 0)
    until("rows of the new topic", lambda: world.behind("inference") > 100, PATIENCE_S, 0.2)
    inference = trial.start_extra("inference", 0)
    trial.flowing()
    trial.stop_stream()
    for stage in OUTPUT:
        until(f"{stage} to have read all", lambda stage=stage: world.behind(stage) == 0, PATIENCE_S, 0.2)
    begun = set(BEGUN.findall(inference.log_path.read_text()))
    start = {(f"{topic}/{number}", "0", "0") for number in range(trial.lab.plan.partitions)}
    if begun != start:
        trial.problem(f"inference is to say that it begins the new topic at its start, and said {sorted(begun)}")
    rows = Counter(row["_event_id"] for row in world.rows("features"))
    made_of = Counter(row["prediction_id"] for row in world.rows("predictions"))
    wrong = {event: made_of[event] for event, n in rows.items() if (n, made_of[event]) != (1, 1)}
    trial.result.notes["rows of a topic made anew"] = trial.result.notes.get("rows of a topic made anew", 0) + len(rows)
    if wrong:
        some = dict(islice(wrong.items(), 3))
        trial.problem(f"{len(wrong)} of {len(rows)} rows of the new topic have not one prediction each: {some}")


def delete(trial: Trial, suffix: str, stage: str) -> None:
    """Everything up to the end, once something is there that the stage, which has left, has not read."""
    world, topic = trial.world, trial.world.topic(suffix)
    until(f"rows that {stage} has not read", lambda: world.behind(stage) > 100, PATIENCE_S, 0.2)
    admin = AdminClient({"bootstrap.servers": world.bootstrap})
    asked = {TopicPartition(topic, n): OffsetSpec.latest() for n in range(trial.lab.plan.partitions)}
    ends = {p: answer.result(30).offset for p, answer in admin.list_offsets(asked).items()}
    for answer in admin.delete_records([TopicPartition(p.topic, p.partition, end) for p, end in ends.items()]).values():
        answer.result(30)


def refused(trial: Trial, stage: str, mend: str) -> None:
    worker = trial.start_extra(stage, 0)
    until(
        f"{stage} to refuse or to go on",
        lambda: not worker.running or '"assigned ' in worker.log_path.read_text(),
        PATIENCE_S,
        0.1,
    )
    if worker.running:
        trial.problem(f"{stage} went on where it has to refuse; see {worker.log_path.relative_to(trial.lab.folder)}")
        trial.end(worker, signal.SIGKILL)
        return
    code, said = trial.wait_ended(worker), worker.log_path.read_text()
    if code != 1 or mend not in said:
        trial.problem(f"{stage} ended with {code} and did not name the mend: {said[-400:]!r}")


CASES: tuple[Callable[[Trial], None], ...] = (deleted_before_inference, deleted_before_windows, made_anew)
