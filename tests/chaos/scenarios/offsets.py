"""Where a group has committed to is not there any more: retention has deleted it, or the topic was made anew."""

import signal
import time
from collections.abc import Callable

from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic, OffsetSpec

from tests.chaos.harness import OUTPUT, PATIENCE_S, Lab, Result, Trial
from tests.integration.pipeline_world import until

NAME = "offsets"
HOLDS = (
    "never a hang: a stage without windows goes on behind the gap and says so, one with windows refuses with the mend"
)


def run(lab: Lab, rounds: int, result: Result) -> None:
    """Not judged by the verifiers, who would miss what is deleted here; each case says what it looks at."""
    for _ in range(rounds):
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
    admin, topic = AdminClient({"bootstrap.servers": trial.world.bootstrap}), trial.world.topic("features")
    for running in trial.extra:
        if running.running:
            trial.end(running, signal.SIGTERM)
    admin.delete_topics([topic])[topic].result(30)
    config = {"message.timestamp.type": "LogAppendTime"}

    def made() -> bool:
        (answer,) = admin.create_topics([NewTopic(topic, trial.lab.plan.partitions, 1, config=config)]).values()
        return answer.exception(30) is None

    until("the topic to be made anew", made, PATIENCE_S, 0.2)
    for stage in OUTPUT:
        trial.start_extra(stage, 0)
    trial.flowing()


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
