"""A whole pipeline on the session's broker: topics under a name of its own, every worker a process under the supervisor
as in production, and a log of real departures that a test plays on piece by piece.

What is read back here is read with plain confluent-kafka and fastavro, and judged by ``tests/chaos/verify.py``.
"""

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any, Self

import fastavro
import orjson
from confluent_kafka import OFFSET_BEGINNING, Consumer, ConsumerGroupTopicPartitions, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewPartitions, OffsetSpec

from penstock.local.supervisor import Supervisor, Worker, run_command, tail
from penstock.models.control_topic import promote
from penstock.plan import Plan
from penstock.settings import Settings
from penstock.topics import admin_client, create_topics, topic_specs
from pipelines.flights.replay import HEADER
from pipelines.flights.replay import Message as Event
from tests.chaos.declared import declared
from tests.chaos.kafka_log import KafkaLog
from tests.chaos.records import Log, Schemas
from tests.chaos.verdict import Verdict
from tests.chaos.verify import verify
from tests.conftest import read_all_committed

ROOT = Path(__file__).parents[2]
LOCK = ROOT / "pipelines/flights/schemas.lock"
STORE = "pipelines/flights"
PATIENCE_S = 90.0
QUIET = {"log_level": 0, "error_cb": lambda error: None}
"""A client of a broker that comes and goes need not say so on stderr."""
FATES = ("outcomes", "dead", "dropped")
"""Every event ends as the outcome of a prediction, a dead letter or a drop; every label as one of the first two."""


def renamed(plan: Plan, name: str) -> Plan:
    """The same pipeline with its topics, subjects and groups under another name."""
    names = {plan.pipeline: name}
    names |= {topic.name: f"{name}.{topic.name.split('.', 1)[1]}" for topic in plan.topics}
    names |= {f"{topic}-value": f"{new}-value" for topic, new in names.items()}
    return Plan.model_validate(_renamed(plan.model_dump(mode="json"), names))


def _renamed(value: Any, names: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        # within a schema a text may be the pipeline's name by chance
        return {key: part if key in ("avro", "schemas") else _renamed(part, names) for key, part in value.items()}
    if isinstance(value, list):
        return [_renamed(part, names) for part in value]
    return names.get(value, value) if isinstance(value, str) else value


def until(what: str, look: Callable[[], Any], seconds: float = PATIENCE_S, pause: float = 0.05) -> Any:
    """The first true answer of ``look``. Raises AssertionError with ``what`` when none comes."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, f"{what}: not within {seconds:.0f} s"
        time.sleep(pause)
    return found


def framed(schema: dict[str, Any], schema_id: int, row: dict[str, Any]) -> bytes:
    """A row as a third party writes it: fastavro behind the Confluent frame."""
    stream = BytesIO()
    fastavro.schemaless_writer(stream, fastavro.parse_schema(schema, named_schemas={}), row)
    return b"\0" + schema_id.to_bytes(4, "big") + stream.getvalue()


class Arrivals:
    """Counts the committed records of some topics as they come."""

    def __init__(self, bootstrap: str, topics: Mapping[str, int]) -> None:
        self.counts = dict.fromkeys(topics, 0)
        self._consumer = Consumer(
            {
                "bootstrap.servers": bootstrap,
                "group.id": "arrivals",
                "enable.auto.commit": False,
                "isolation.level": "read_committed",
                "fetch.wait.max.ms": 20,
                **QUIET,
            }
        )
        self._consumer.assign([TopicPartition(t, n, OFFSET_BEGINNING) for t, of in topics.items() for n in range(of)])

    def look(self) -> dict[str, int]:
        for message in self._consumer.consume(10_000, 0.05):
            assert message.error() is None, message.error()
            self.counts[message.topic()] += 1
        return self.counts

    def close(self) -> None:
        self._consumer.close()


class World:
    """One deployment of ``plan`` as ``name``; a context manager. ``stages``: which of its stages run, all if not given;
    ``workers``: how many of a stage, where that is not one.

    ``model``: the version that is promoted. ``command``: how a worker is started, where that is not as in production.
    ``settings`` are changes to those of the workers.
    """

    def __init__(
        self,
        plan: Plan,
        name: str,
        bootstrap: str,
        folder: Path,
        models_url: Path,
        model: str,
        stages: Sequence[str] | None = None,
        workers: Mapping[str, int] | None = None,
        command: Callable[[Worker, Path], list[str]] = run_command,
        **settings: Any,
    ) -> None:
        self.command = command
        self.plan, self.name, self.bootstrap, self.folder = renamed(plan, name), name, bootstrap, folder
        self.store = folder / "feast" / STORE
        self.store.mkdir(parents=True)
        shutil.copy(ROOT / STORE / "feature_store.yaml", self.store)
        self.settings = Settings(bootstrap_servers=bootstrap).model_copy(
            update={
                "state_dir": folder / "state",
                "models_url": str(models_url),
                "feature_store_dir": self.store,
                **settings,
            }
        )
        self.lock = folder / "schemas.lock"
        self.lock.write_text(LOCK.read_text("utf-8").replace('"subject":"flights.', f'"subject":"{name}.'), "utf-8")
        self.schemas = Schemas(name, self.lock.read_text("utf-8").splitlines())
        self.events: list[Event] = []
        self.heard: list[str] = []
        self._admin = admin_client(Settings(bootstrap_servers=bootstrap))
        specs = topic_specs(self.plan)
        create_topics(self._admin, specs)
        self.partitions = {spec.name: spec.partitions for spec in specs}
        promote(self.settings, self.plan, model, "test", "the tests' own")
        plan_path = folder / "plan.json"
        self.plan.save(plan_path)
        counts = {stage.name: int(stages is None or stage.name in stages) for stage in self.plan.stages}
        counts |= workers or {}
        self.supervisor = Supervisor(
            self.plan, plan_path, self.settings, folder / "logs", counts, self.heard.append, command
        )
        self._producer = self._new_producer()
        self._fates = Arrivals(bootstrap, {f"{name}.{suffix}": plan.partitions for suffix in FATES})

    def __enter__(self) -> Self:
        try:
            self.supervisor.start()
            self.supervisor.wait_ready(PATIENCE_S)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.supervisor.stop()
        self._fates.close()
        # so that a broker that stays is left as it was found
        for deletion in self._admin.delete_topics(list(self.partitions)).values():
            deletion.result(30)

    def topic(self, suffix: str) -> str:
        return f"{self.name}.{suffix}"

    def _new_producer(self) -> Producer:
        return Producer(
            {"bootstrap.servers": self.bootstrap, "partitioner": "murmur2_random", "message.max.bytes": 16_000_000}
            | {"enable.idempotence": True, **QUIET}
        )

    def add_partitions(self, suffix: str, total: int) -> None:
        """What is sent from now on goes to all of them; some keys go elsewhere than before."""
        topic = self.topic(suffix)
        self._admin.create_partitions([NewPartitions(topic, total)])[topic].result(30)
        # the broker tells of them a moment later, and a client that asks before keeps what it heard for minutes
        until(f"{total} partitions", lambda: len(self._admin.list_topics(topic, 10).topics[topic].partitions) == total)
        self.partitions[topic] = total
        self._producer = self._new_producer()

    def send(self, events: Iterable[Event], headers: Sequence[tuple[str, bytes]] = ()) -> list[Event]:
        """To the raw and label topics, with ``headers``; returns what was sent, acknowledged."""
        sent, producer = list(events), self._producer
        for event in sent:
            own = [(HEADER, event.broken.encode())] if event.broken else []
            producer.produce(self.topic(event.topic), event.value, event.key, headers=[*own, *headers])
        assert producer.flush(PATIENCE_S) == 0
        self.events += sent
        return sent

    def finish(self) -> None:
        """Returns when everything that was sent has a fate."""
        until(f"{len(self.events)} fates", self._finished, pause=0.0)

    def _finished(self) -> bool:
        self.supervisor.check()
        counts = self._fates.look()
        return sum(counts.values()) >= len(self.events)

    def play(self, events: Iterable[Event], at_once: int = 800) -> list[Event]:
        """Sends in parts that each wait for the one before, as the replay does that never runs far ahead."""
        feed, sent = iter(events), []
        while part := list(islice(feed, at_once)):
            sent += self.send(part)
            self.finish()
        return sent

    def records(self, suffix: str) -> list[Message]:
        """All committed records of a topic."""
        return read_all_committed(self.bootstrap, self.topic(suffix))

    def rows(self, suffix: str) -> list[dict[str, Any]]:
        """All committed records of a topic, decoded with fastavro, by partition and offset."""
        return [self.schemas.decode(message.value()) for message in self.records(suffix)]

    def row(self, event: Event) -> dict[str, Any]:
        """A good event or label as it was sent."""
        value = event.value or b""
        return self.schemas.decode(value) if value[:1] == b"\0" else orjson.loads(value)

    def verdict(self, log: Log | None = None) -> Verdict:
        log = log or KafkaLog(self.bootstrap)
        plan, models = declared(self.folder / "plan.json"), Path(self.settings.models_url)
        return verify(self.name, self.schemas, log, plan, models)

    def check(self) -> dict[str, int]:
        """The verifier's counts, after it found nothing, and all that was sent was there."""
        verdict = self.verdict()
        assert verdict.ok, verdict.json()
        sent = [event.topic for event in self.events]
        assert (verdict.counts["raw"], verdict.counts["labels"]) == (sent.count("raw"), sent.count("labels"))
        return verdict.counts

    def worker(self, stage: str, slot: int = 0) -> Worker:
        (found,) = [w for w in self.supervisor.workers if (w.stage, w.slot) == (stage, slot)]
        return found

    def log(self, stage: str) -> str:
        return tail(self.worker(stage).log_path, 400)

    def _new_admin(self) -> AdminClient:
        """One that knew the broker before it was stopped or killed may ask a leader of then, or wait for ever."""
        return admin_client(Settings(bootstrap_servers=self.bootstrap))

    def committed(self, stage: str) -> dict[tuple[str, int], int]:
        """Partition → the offset that the stage's group has committed."""
        group = self.plan.group(stage)
        asked = ConsumerGroupTopicPartitions(group)
        admin = self._new_admin()
        found = admin.list_consumer_group_offsets([asked], request_timeout=15)[group].result(30)
        return {(p.topic, p.partition): max(0, p.offset) for p in found.topic_partitions}

    def behind(self, stage: str) -> int:
        """Records that the stage's group has not committed; markers count."""
        done = self.committed(stage)
        inputs = [source.topic for source in self.plan.stage(stage).inputs]
        latest = {TopicPartition(t, n): OffsetSpec.latest() for t in inputs for n in range(self.partitions[t])}
        admin = self._new_admin()  # an answer is lost with its client
        ends = admin.list_offsets(latest, request_timeout=15)
        return sum(answer.result(30).offset - done.get((p.topic, p.partition), 0) for p, answer in ends.items())

    def restarts(self, stage: str) -> int:
        return len(self.worker(stage).restarts)

    def signal(self, stage: str, number: signal.Signals, slot: int = 0) -> None:
        pid = self.worker(stage, slot).pid
        assert pid is not None
        os.kill(pid, number)

    def ask_to_leave(self, stage: str) -> None:
        """SIGTERM; returns when the worker is gone, with exit code 0. The supervisor starts it again."""
        said = f"{stage}.0 ended with exit code "
        before = sum(line.startswith(said) for line in self.heard)
        self.signal(stage, signal.SIGTERM)
        until(f"{stage} to leave", lambda: sum(line.startswith(said) for line in self.heard) > before)
        (*_, last) = (line for line in self.heard if line.startswith(said))
        assert last.startswith(f"{said}0;"), last

    def wait_restarted(self, stage: str, times: int) -> None:
        """Returns once the stage was started again ``times`` times in all, and is ready."""

        def again() -> bool:
            self.supervisor.check()
            worker = self.worker(stage)
            if len(worker.restarts) >= times and worker.running:
                worker.look()
                return worker.ready
            return False

        until(f"{stage} is back ({self.log(stage)[-2000:]})", again)

    def said(self, stage: str, slot: int = 0) -> list[dict[str, Any]]:
        """The lines of a worker's log that are JSON, as all of its own are."""
        lines = self.worker(stage, slot).log_path.read_text(errors="replace").splitlines()
        return [orjson.loads(line) for line in lines if line.startswith("{")]
