"""``make demo``: a year's real departures through a real Kafka to predictions, Feast and drift, on one machine.

Sets up from nothing, replays, waits until every stage has read all there is, and then counts from the topics alone
what became of every message. What it needs of a pipeline beside its plan is found by name: ``train``, ``replay`` and
``data`` next to its module.
"""

import logging
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from confluent_kafka import KafkaException

from penstock.local.drift_history import drift_history
from penstock.local.offsets import OffsetReader, Watch
from penstock.local.plans import PlanFile
from penstock.local.replaying import Replaying
from penstock.local.resolve import BrokerHandle, describe_kind, resolve_broker
from penstock.local.scrape import scrape
from penstock.local.screen import Screen, Status
from penstock.local.state import make_folder, read_state
from penstock.local.steps import Step
from penstock.local.summary import Summary, summarize
from penstock.local.supervisor import Supervisor
from penstock.local.tail import Tail
from penstock.local.verify_counts import Counts, count
from penstock.memory import resident_bytes
from penstock.models.control_topic import promote
from penstock.plan import Plan
from penstock.records import Partition
from penstock.settings import Settings
from penstock.topics import admin_client, check_topics, create_topics, topic_specs

PIPELINE = "pipelines.flights.pipeline:pipeline"
NINE_MONTHS_S = 60.0
"""What the replay of the nine months takes at speed 1."""
IDLE = timedelta(seconds=4)
"""Silence after which the monitor closes its last windows: a replay knows no pauses, so the declared one need not be
sat out."""
COMMIT_INTERVAL_MS = 100
"""On two cores that a broker, seven workers and the replay share, fewer transactions are sooner done: at 20 ms, the
default, the replay took a fifth longer and so did the way of an event."""
SHOW_EVERY_S = 1.0
SCRAPE_EVERY_S = 3.0
READY_TIMEOUT_S = 120.0
DRAIN_TIMEOUT_S = 120.0
QUIET_S = 4.0
"""The merge looks once a second whether the stream has stopped, and then reads all that it saw there was."""
SILENCE_S = 60.0


class DemoError(Exception):
    """The demo cannot start or go on; the message names the mend."""


@dataclass(frozen=True, slots=True)
class Options:
    """``speed`` None is as fast as it goes. ``folder`` holds what the demo writes."""

    speed: float | None = 1.0
    limit: int | None = None
    docker: bool = False
    folder: Path = Path("var/demo")
    models_url: str = "var/models"
    pipeline: str = PIPELINE


class Demo:
    """One run; everything that it starts is ended by ``stack``."""

    def __init__(self, options: Options, screen: Screen, stack: ExitStack) -> None:
        self._options, self._screen, self._stack = options, screen, stack
        self._folder, self._environment = options.folder, Settings()
        self._peak = 0

    def run(self) -> Summary:
        """Set up, replay, drain, count, report. Raises what says why it could not."""
        options, screen, logs = self._options, self._screen, self._folder / "logs"
        screen.line(describe_kind(options.docker))
        self._clean()
        # what the clients say of themselves would run through the picture
        logging.basicConfig(filename=logs / "demo.log", format="%(asctime)s %(name)s %(message)s", force=True)
        plan_file = PlanFile(options.pipeline, self._folder / "compiled" / "plan.json", logs / "compile.log")
        self._stack.callback(plan_file.close)
        if plan_file.fresh:
            screen.line("compiling the pipeline: this imports feast, once")
        broker = self._stack.enter_context(resolve_broker(options.docker, self._folder / "broker"))
        self.bootstrap = broker.bootstrap
        plan = plan_file.load()
        monitors = plan.monitors.model_copy(update={"idle_ms": IDLE // timedelta(milliseconds=1)})
        plan = plan.model_copy(update={"monitors": monitors})
        plan_path = self._folder / "plan.json"
        plan.save(plan_path)
        settings = self._settings(plan, broker)
        train = ["penstock", "model", "train", options.pipeline, "--plan", str(plan_path)]
        train += ["--registry", options.models_url]
        training = self._stack.enter_context(Step("training", train, logs / "train.log"))
        make_topics(plan, settings)
        version = training.wait(screen.line)
        promote(settings, plan, version, "demo", "trained on the months before those that are replayed")
        self.supervisor = Supervisor(plan, plan_path, settings, logs, tell=screen.line)
        self._stack.enter_context(self.supervisor)
        screen.line(f"starting {len(self.supervisor.workers)} workers; their logs are in {logs}")
        replaying = Replaying(options.pipeline, plan, settings, options.limit)
        self._stack.callback(replaying.stop)
        self.supervisor.wait_ready(READY_TIMEOUT_S)
        tail = self._replay(plan, settings, broker, replaying)
        screen.line("every stage has read all there is; what became of it is counted from the topics")
        # meanwhile the monitor closes its last windows, and says what it has to
        closed = time.monotonic() + plan.monitors.idle_ms / 1000 + QUIET_S
        counts = count(plan, settings, screen.line, lambda: time.sleep(max(0.0, closed - time.monotonic())))
        summary = summarize(counts, tail, self._peak / 2**20, broker.description.removeprefix("broker: "))
        (self._folder / "summary.json").write_text(summary.model_dump_json(indent=1) + "\n")
        self._report(plan, settings, version, summary, counts, tail)
        return summary

    def addresses(self) -> str:
        """Where broker and workers listen."""
        return addresses(self.bootstrap, self._folder / "state", self.supervisor)

    def _report(
        self, plan: Plan, settings: Settings, version: str, summary: Summary, counts: Counts, tail: Tail
    ) -> None:
        from penstock.local.report import Run, render  # matplotlib is needed here alone

        model = f"{plan.model.name} {version}" if plan.model is not None else "none"
        history = drift_history(plan, settings, version)
        run = Run(f"Penstock: {plan.pipeline}, replayed", model, summary, counts, tail.latency, history)
        (self._folder / "report.html").write_text(render(run), encoding="utf-8")

    def _replay(self, plan: Plan, settings: Settings, broker: BrokerHandle, replaying: Replaying) -> Tail:
        speed = self._options.speed
        duration = None if speed is None else NINE_MONTHS_S / speed * replaying.share
        # inference too: a label must not run further ahead of its prediction than the join waits
        bounding = [stage for stage in plan.stages if stage.kind in ("ingest", "inference") or stage.views]
        inputs = [source.topic for source in plan.stage("ingest").inputs]
        watch = Watch(plan, settings, bounding, inputs, replaying.sent_so_far)
        tail = Tail(plan, settings)
        with running(tail):
            replaying.start(duration, watch.slowest)
            status = Status(plan, replaying.first, replaying.last, len(replaying))
            with self._screen.live():
                self._follow(plan, settings, broker, replaying, tail, status)
        return tail

    def _follow(
        self, plan: Plan, settings: Settings, broker: BrokerHandle, replaying: Replaying, tail: Tail, status: Status
    ) -> None:
        """Shows what goes on until the replay is through and every stage has read all there is."""
        reader = OffsetReader(plan, settings)
        scraped = 0.0
        answered = time.monotonic()
        ends: Mapping[Partition, int] = {}
        deadline: float | None = None
        while True:
            now = time.monotonic()
            self.supervisor.check()
            try:
                look = reader.read()
                answered = now
            except KafkaException as error:
                if now - answered > SILENCE_S:
                    raise DemoError(f"{broker.bootstrap} no longer answers: {error.args[0].str()}") from None
                continue
            if now - scraped >= SCRAPE_EVERY_S:
                scraped = now
                status.samples = scrape(self.supervisor.workers)
                self._peak = max(self._peak, self.supervisor.resident_bytes() + self._broker_bytes(broker))
            status.update(look, replaying.sent, tail)
            self._screen.show(status)
            if replaying.finished:
                deadline = deadline or now + DRAIN_TIMEOUT_S
                if now > deadline:
                    raise DemoError(
                        f"not everything was read within {DRAIN_TIMEOUT_S:.0f} s of the replay's end: {status.lags()}. "
                        f"Look at the logs in {self._folder / 'logs'}"
                    )
                if ends == look.ends and not any(status.lag().values()):
                    return
                ends = look.ends
            time.sleep(max(0.0, now + SHOW_EVERY_S - time.monotonic()))

    def _broker_bytes(self, broker: BrokerHandle) -> int:
        if broker.kind != "embedded":
            return 0
        state = read_state(self._folder / "broker")
        return resident_bytes(state.pid) if state is not None and state.pid is not None else 0

    def _settings(self, plan: Plan, broker: BrokerHandle) -> Settings:
        """The environment's, on this broker; with Feast's stores of its own, because a new log begins at offset 0."""
        update: dict[str, object] = {
            "bootstrap_servers": broker.bootstrap,
            "state_dir": self._folder / "state",
            "models_url": self._options.models_url,
        }
        if plan.feature_store is not None:
            store = self._folder / "feast" / plan.feature_store
            config = Path(plan.feature_store) / "feature_store.yaml"
            if not config.is_file():
                raise DemoError(f"{config} is not below {Path.cwd()}. Run the demo in the folder that has {config}")
            store.mkdir(parents=True)
            (self._folder / "feast" / "var").mkdir(exist_ok=True)  # Feast makes the last folder of its paths only
            shutil.copy(config, store)
            update["feature_store_dir"] = store
        if "commit_interval_ms" not in self._environment.model_fields_set:
            update["commit_interval_ms"] = COMMIT_INTERVAL_MS
        return self._environment.model_copy(update=update)

    def _clean(self) -> None:
        state = read_state(self._folder / "broker") if (self._folder / "broker").exists() else None
        if state is not None and (pid := state.running_pid()) is not None:
            raise DemoError(
                f"a demo is running in {self._folder} (its broker is process {pid}). End it with Ctrl-C where it runs"
            )
        for name in ("broker", "state", "feast", "logs"):
            shutil.rmtree(self._folder / name, ignore_errors=True)
        make_folder(self._folder / "logs")


def make_topics(plan: Plan, settings: Settings) -> None:
    """Makes the plan's topics. Raises ``DemoError`` when one of them holds records already, or is not as it must be."""
    admin = admin_client(settings)
    specs = topic_specs(plan)
    create_topics(admin, specs)
    wrong = check_topics(admin, specs)
    if wrong:
        raise DemoError("; ".join(f"{d.topic} {d.what}. Mend: {d.mend}" for d in wrong))
    if used := sorted({p.topic for p, end in OffsetReader(plan, settings).ends().items() if end}):
        raise DemoError(
            f"{settings.bootstrap_servers} holds records of an earlier run in {', '.join(used)}. Delete the topics "
            f"{plan.pipeline}.* and the groups {plan.pipeline}.* there, or leave the choice of the broker to the demo"
        )


def addresses(bootstrap: str, state: Path, supervisor: Supervisor) -> str:
    """Where to look, for a person: the broker, and every worker's metrics."""
    width = max(len(worker.name) for worker in supervisor.workers)
    lines = [f"  {w.name:<{width}}  http://127.0.0.1:{w.port}/metrics" for w in supervisor.workers]
    return "\n".join([f"export KAFKA_BOOTSTRAP_SERVERS={bootstrap} PENSTOCK_STATE_DIR={state}", *lines])


@contextmanager
def running(tail: Tail) -> Iterator[None]:
    """``start`` and ``stop``."""
    tail.start()
    try:
        yield
    finally:
        tail.stop()
