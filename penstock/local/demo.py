"""``make demo``: a year's real departures through a real Kafka to predictions, Feast and drift, on one machine.

Sets up from nothing, replays, waits until every stage has read all there is, and then counts from the topics alone
what became of every message. What it needs of a pipeline beside its plan is found by name: ``train``, ``replay`` and
``data`` next to its module.
"""

import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from penstock.local.offsets import OffsetReader, Offsets, Watch
from penstock.local.plans import PlanFile
from penstock.local.replaying import Replaying
from penstock.local.resolve import BrokerHandle, describe_kind, resolve_broker
from penstock.local.scrape import by_label, scrape
from penstock.local.screen import Screen, Status
from penstock.local.state import read_state
from penstock.local.steps import Step
from penstock.local.supervisor import Supervisor, resident_bytes
from penstock.local.tail import Tail
from penstock.local.verify_counts import Counts, count
from penstock.models.control_topic import promote
from penstock.plan import Plan
from penstock.settings import Settings
from penstock.topics import admin_client, check_topics, create_topics, topic_specs

PIPELINE = "pipelines.flights.pipeline:pipeline"
YEAR_SECONDS = 60.0
"""What the replay takes at speed 1."""
IDLE = timedelta(seconds=4)
"""Silence after which the monitor closes its last windows: a replay knows no pauses, so the declared one need not be
sat out."""
SHOW_EVERY_S = 1.0
SCRAPE_EVERY_S = 2.0
READY_TIMEOUT_S = 120.0
DRAIN_TIMEOUT_S = 120.0
QUIET_S = 2.0


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


@dataclass(frozen=True, slots=True)
class Measured:
    """What a run gave: the counts, and what only its watcher saw. ``latency``: seconds since epoch and ms, per
    prediction that was followed."""

    plan: Plan
    version: str
    broker: str
    counts: Counts
    tail: Tail
    peak_rss_mb: float
    restarts: int
    seconds: float


class Demo:
    """One run; everything that it starts is ended by its ``stack``."""

    def __init__(self, options: Options, screen: Screen, stack: ExitStack) -> None:
        self._options, self._screen, self._stack = options, screen, stack
        self._folder = options.folder
        self._peak = 0

    def run(self) -> Measured:
        """Set up, replay, drain, count. Raises what says why it could not."""
        options, screen = self._options, self._screen
        screen.line(describe_kind(options.docker))
        self._clean()
        plan_file = PlanFile(options.pipeline, self._folder / "compiled" / "plan.json", self._folder / "logs" / "compile.log")
        self._stack.callback(plan_file.close)
        if plan_file.fresh:
            screen.line("compiling the pipeline: this imports feast, once")
        broker = self._stack.enter_context(resolve_broker(options.docker, self._folder / "broker"))
        plan = plan_file.load()
        plan = plan.model_copy(update={"monitors": plan.monitors.model_copy(update={"idle_ms": IDLE // timedelta(milliseconds=1)})})
        plan_path = self._folder / "plan.json"
        plan.save(plan_path)
        settings = self._settings(plan, broker)
        training = self._stack.enter_context(
            Step("training", ["penstock.local.train_step", options.pipeline, str(plan_path), options.models_url], self._folder / "logs" / "train.log")
        )
        make_topics(plan, settings)
        version = training.wait(screen.line)
        promote(settings, plan, version, "demo", "trained on January to March")
        supervisor = self._stack.enter_context(Supervisor(plan, plan_path, settings, self._folder / "logs", tell=screen.line))
        screen.line(f"starting {len(supervisor.workers)} workers; their logs are in {self._folder / 'logs'}")
        replaying = Replaying(options.pipeline, plan, settings, options.limit)
        supervisor.wait_ready(READY_TIMEOUT_S)
        return self._replay(plan, settings, broker, supervisor, replaying, version)

    def _replay(self, plan: Plan, settings: Settings, broker: BrokerHandle, supervisor: Supervisor, replaying: Replaying, version: str) -> Measured:
        options, screen = self._options, self._screen
        duration = None if options.speed is None else YEAR_SECONDS / options.speed * replaying.share
        bounding = [s for s in plan.stages if s.kind in ("ingest", "inference") or s.views]
        inputs = [source.topic for source in plan.stage("ingest").inputs]
        watch = Watch(OffsetReader(plan, settings), bounding, inputs, replaying.sent_so_far)
        tail = Tail(plan, settings)
        began = time.monotonic()
        with running(watch), running(tail):
            self._stack.callback(replaying.stop)
            replaying.start(duration, watch.slowest)
            status = Status(plan, began, replaying.first, replaying.last, len(replaying))
            self._follow(plan, settings, broker, supervisor, replaying, tail, status)
        screen.line("all stages have read everything; counting from the topics")
        counts = count(plan, settings, screen.line)
        return Measured(plan, version, broker.description.removeprefix("broker: "), counts, tail, self._peak / 2**20, supervisor.restarted, time.monotonic() - began)

    def _follow(self, plan: Plan, settings: Settings, broker: BrokerHandle, supervisor: Supervisor, replaying: Replaying, tail: Tail, status: Status) -> None:
        """Shows what goes on until the replay is through and every stage has read all there is."""
        reader = OffsetReader(plan, settings)
        scraped = quiet = 0.0
        drained: Offsets | None = None
        deadline: float | None = None
        while True:
            now = time.monotonic()
            supervisor.check()
            look = reader.read()
            if now - scraped >= SCRAPE_EVERY_S:
                scraped = now
                status.samples = scrape(supervisor.workers)
                self._peak = max(self._peak, supervisor.resident_bytes() + self._broker_bytes(broker))
            status.update(look, replaying.sent, tail)
            self._screen.show(status)
            if replaying.finished:
                if deadline is None:
                    deadline = now + DRAIN_TIMEOUT_S
                if now > deadline:
                    raise DemoError(f"the stages did not read all there is within {DRAIN_TIMEOUT_S:.0f} s: {status.lags()}. See {self._folder / 'logs'}")
                lagging = any(sum(look.lag(stage).values()) for stage in plan.stages)
                if lagging or drained is None or drained.ends != look.ends:
                    drained, quiet = (None if lagging else look), now
                elif now - quiet >= QUIET_S and self._closed(plan, status):
                    return
            time.sleep(max(0.0, now + SHOW_EVERY_S - time.monotonic()))

    def _closed(self, plan: Plan, status: Status) -> bool:
        """The monitor's last windows are closed: their topic has been silent for longer than it waits."""
        return status.silent("profiles") > plan.monitors.idle_ms / 1000 + 3.0

    def _broker_bytes(self, broker: BrokerHandle) -> int:
        if broker.kind != "embedded":
            return 0
        state = read_state(self._folder / "broker")
        return resident_bytes(state.pid) if state is not None and state.pid is not None else 0

    def _settings(self, plan: Plan, broker: BrokerHandle) -> Settings:
        """The environment's, on this broker; Feast's stores are the demo's own, because a new log begins at offset 0."""
        update: dict[str, object] = {"bootstrap_servers": broker.bootstrap, "state_dir": self._folder / "state", "models_url": self._options.models_url}
        if plan.feature_store is not None:
            store = self._folder / "feast" / plan.feature_store
            store.mkdir(parents=True)
            (self._folder / "feast" / "var").mkdir(exist_ok=True)  # Feast makes the last folder of its paths only
            shutil.copy(Path(plan.feature_store) / "feature_store.yaml", store)
            update["feature_store_dir"] = store
        return Settings().model_copy(update=update)

    def _clean(self) -> None:
        state = read_state(self._folder / "broker") if (self._folder / "broker").exists() else None
        if state is not None and (pid := state.running_pid()) is not None:
            raise DemoError(f"a demo is running in {self._folder} (its broker is process {pid}). End it first, with Ctrl-C where it runs")
        for name in ("broker", "state", "feast", "logs"):
            shutil.rmtree(self._folder / name, ignore_errors=True)
        (self._folder / "logs").mkdir(parents=True)


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


@contextmanager
def running(thing: Watch | Tail) -> Iterator[None]:
    """``start`` and ``stop``."""
    thing.start()
    try:
        yield
    finally:
        thing.stop()
