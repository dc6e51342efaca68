"""What every scenario of the chaos tests stands on: a real broker, a whole pipeline under the supervisor, a steady
stream into it, a verifier that reads along and one that counts everything afterwards.

A scenario is a module in ``scenarios`` with a ``NAME``, a sentence ``HOLDS`` that says what must hold, and ``run(lab,
rounds, result)``, which opens trials, does its harm inside them and has each judged. Nothing of the product is changed
or told that it is watched.
"""

import math
import os
import random
import shutil
import signal
import subprocess
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, Self

from penstock.local.broker import EmbeddedBroker
from penstock.local.launch import launch
from penstock.local.supervisor import OWN, Worker, environment_of
from penstock.models.manifest import Manifest
from penstock.models.registry import ModelRegistry
from penstock.plan import Plan
from pipelines.flights import data
from pipelines.flights.replay import Message, Replay
from tests.chaos.kafka_log import KafkaLog
from tests.chaos.records import Log
from tests.chaos.verdict import Verdict
from tests.chaos.watch import Watcher
from tests.integration.pipeline_world import FATES, ROOT, World, until

VERSION = "1.0.0"
PATH = ("ingest", "features.aircraft", "features.airport", "inference")
"""The stages on an event's way to its prediction."""
OUTPUT = {
    "ingest": "events",
    "features.aircraft": "by.airport",
    "features.airport": "features",
    "inference": "predictions",
}
"""What only that stage writes."""
RATE = 200
"""Messages a second: little for the pipeline, so that two busy cores can do faults and verifiers besides."""
PATIENCE_S = 120.0


@dataclass(slots=True)
class Result:
    """What a scenario came to. ``trials``: faults that were done; ``judged``: those whose pipeline was verified to the
    end, ``inputs`` with it. ``recoveries``: seconds to the first new output of each killed worker's partitions;
    ``parts``: of what these are made, by name; ``notes``: figures of its own; ``problems``: why it did not pass.
    ``control``: without the guarantee, so that doubles have to be seen."""

    scenario: str
    holds: str
    seed: int
    trials: int = 0
    judged: int = 0
    inputs: int = 0
    lost: int = 0
    duplicated: int = 0
    wrong_windows: int = 0
    dead_as_expected: int = 0
    seconds: float = 0.0
    recoveries: list[float] = field(default_factory=list)
    parts: dict[str, list[float]] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    examples: dict[str, list[str]] = field(default_factory=dict)
    control: bool = False
    tell: Callable[[str], None] = lambda what: None

    @property
    def passed(self) -> bool:
        """Of a ``control``, in which rows may come twice, that the verifiers saw it and nothing was lost."""
        if self.problems or self.lost or self.wrong_windows or not self.trials:
            return False
        return (self.duplicated > 0) == self.control

    def add(self, *verdicts: Verdict) -> None:
        """What verifiers of the same records found, so that the same finding counts once; what is not lost, doubled or
        a wrong window is a problem of its own."""
        for kind in {kind for verdict in verdicts for kind in verdict.findings}:
            # the control's doubles are to be seen by each; the one that reads along sees no loss
            least = self.control and kind == "duplicated"
            n = (min if least else max)(verdict.findings.get(kind, 0) for verdict in verdicts)
            shown = [what for verdict in verdicts for what in verdict.examples.get(kind, [])[:3]]
            match kind:
                case "lost":
                    self.lost += n
                case "duplicated":
                    self.duplicated += n
                case "wrong window" if not self.control:  # which row of two is in a window is nobody's promise
                    self.wrong_windows += n
                case _ if self.control:
                    self.notes[kind] = self.notes.get(kind, 0) + n  # what comes twice comes late the second time
                case _:
                    self.problems.append(f"{n} {kind}: {'; '.join(shown)}")
                    continue
            self.examples.setdefault(kind, []).extend(shown)


class Stream(threading.Thread):
    """Sends the feed to a world, ``rate`` messages a second, until ``stop``."""

    def __init__(self, world: World, feed: Iterator[Message], rate: int) -> None:
        super().__init__(name="stream", daemon=True)
        self._world, self._feed, self._rate = world, feed, rate
        self._stopping = threading.Event()
        self.failure: BaseException | None = None

    def run(self) -> None:
        began, sent = time.monotonic(), 0
        try:
            while not self._stopping.wait(0.02):
                due = int((time.monotonic() - began) * self._rate) - sent
                # after a broker was away its share comes at once, but not all in one piece
                part = list(islice(self._feed, min(due, self._rate)))
                sent += len(self._world.send(part))
        except BaseException as error:  # noqa: BLE001  # told by stop
            self.failure = error

    def stop(self) -> None:
        self._stopping.set()
        self.join()
        if self.failure is not None:
            raise self.failure


class Lab:
    """Plan, data, model and a broker, for all scenarios of a run; a context manager.

    ``folder``: everything that is written goes there. The model is kept there for the next run with the same features.
    """

    def __init__(self, folder: Path, seed: int, broker: EmbeddedBroker | None = None) -> None:
        self.folder, self.seed = folder.absolute(), seed
        self.broker = broker or EmbeddedBroker(self.folder / "broker")
        self.plan = quick_plan()
        self.flights = data.load(ROOT / "var/data")
        self.models = trained(self.plan, self.flights, self.folder / "models")
        self._trials = 0

    def __enter__(self) -> Self:
        shutil.rmtree(self.broker.data_dir, ignore_errors=True)  # of a run that was killed: its topics have our names
        self.broker.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.broker.stop()
        shutil.rmtree(self.broker.data_dir, ignore_errors=True)

    def random(self, scenario: str) -> random.Random:
        """The same for the same seed and scenario, whatever ran before."""
        return random.Random(f"{self.seed} {scenario}")

    def feed(self, broken: int = 0, start: str = "2013-04-01") -> Iterator[Message]:
        """Departures and landings from ``start`` to the end of the year, in the order in which they became known."""
        assert self.plan.label is not None
        flights = self.flights.between(start, "2014-01-01")
        replay = Replay(flights, (self.plan.event.id, self.plan.label.id), broken=broken, seed=self.seed)
        return (message for chunk in replay.chunks(64) for message in chunk)

    @contextmanager
    def trial(self, result: Result, rate: int = RATE, judged: bool = True, **options: Any) -> Iterator["Trial"]:
        """A pipeline of its own, with a stream into it; judged when the block is left without an error.

        ``options``: ``bootstrap`` and ``models`` where they are not the lab's, and what ``World`` takes.
        """
        self._trials += 1
        name = f"{result.scenario.replace('-', '_')}_{self._trials}"
        folder = self.folder / "trials" / f"{result.scenario}-{self._trials}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        with Trial(self, result, name, folder, rate, judged, options) as trial:
            try:
                yield trial
                if judged:
                    trial.judge()
            except Exception:
                (folder / "state.txt").write_text(trial.state())
                raise
        if result.passed:  # what went wrong is to be looked at
            shutil.rmtree(folder, ignore_errors=True)


class Trial:
    """One pipeline while it is harmed; made by ``Lab.trial``. ``feed``: of the stream, for whoever goes on with it once
    that is stopped; ``extra``: the workers of ``start_extra``; ``counts``: of the verifier, once it was judged;
    ``log``: what both verifiers read."""

    def __init__(
        self,
        lab: Lab,
        result: Result,
        name: str,
        folder: Path,
        rate: int,
        judged: bool,
        options: Mapping[str, Any],
    ) -> None:
        self.lab, self.result, self._rate = lab, result, rate
        self.expected_dead = 0
        """Dead letters that were meant, by the time of the judgement."""
        result.tell("starting")
        given = {"max_batch_rows": 256, **options}
        bootstrap = given.pop("bootstrap", None) or lab.broker.bootstrap
        self.world = World(lab.plan, name, bootstrap, folder, given.pop("models", lab.models), VERSION, **given)
        self.watcher = Watcher(bootstrap, name, self.world.schemas, lab.plan.partitions, judged)
        self.feed = lab.feed()
        self.stream = Stream(self.world, self.feed, rate)
        self._before = result.trials
        self.extra: list[Worker] = []
        self.counts: dict[str, int] = {}
        self.log: Log = KafkaLog(bootstrap)

    def __enter__(self) -> Self:
        self.world.__enter__()
        self.watcher.__enter__()
        if self._rate:
            self.stream.start()
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.stop_stream()
        finally:
            for worker in self.extra:
                self.end(worker, signal.SIGKILL)
            self.watcher.__exit__()
            self.world.__exit__()

    def stop_stream(self) -> None:
        """Safe to repeat. Raises what had ended it."""
        if self.stream.ident is not None:
            self.stream.stop()

    def judge(self) -> None:
        """Ends the stream, waits for every fate, and lets both verifiers look."""
        self.settle()
        self.result.tell("verifying")
        verdict = self.world.verdict(self.log)
        self.counts = verdict.counts
        self.result.judged += self.result.trials - self._before
        self.result.inputs += verdict.counts["raw"] + verdict.counts["labels"]
        self.result.add(verdict, self.watcher.settle(self.log))
        sent = [event.topic for event in self.world.events]
        for suffix in ("raw", "labels"):
            if verdict.counts[suffix] != sent.count(suffix):
                self.problem(f"{verdict.counts[suffix]} records in {suffix}, {sent.count(suffix)} were sent")
        if verdict.counts["dead"] != self.expected_dead:
            self.problem(f"{verdict.counts['dead']} dead letters, {self.expected_dead} were expected")
        least, most = self._undeparted()
        if not (self.result.control or least - self.expected_dead <= verdict.counts["dropped"] <= most):
            self.problem(f"{verdict.counts['dropped']} events were dropped, {least} to {most} flights had not departed")
        if not verdict.counts["windows"]:
            self.problem("no window value was held against the log")

    def settle(self) -> None:
        """Ends the stream and waits for every fate. What has none by then, the verifiers are to find and to count."""
        self.stop_stream()
        self.result.tell("waiting for every fate")
        self._await_fates(0.1)

    def _await_fates(self, pause: float) -> None:
        try:
            until("every fate", self.finished, PATIENCE_S, pause)
        except AssertionError as error:
            self.problem(f"{error}: {self.fates} of {len(self.world.events)}")

    def _undeparted(self) -> tuple[int, int]:
        """How many flights that never left their gates were sent: whole ones, and with those that are so only if what
        was done to them leaves them readable."""
        least = most = 0
        for event in self.world.events:
            if event.topic != "raw":
                continue
            try:
                departed = self.world.row(event)["status"] == "departed"
            except (ValueError, KeyError, TypeError, RecursionError):
                continue
            most += not departed
            least += not departed and not event.broken
        return least, most

    def burst(self, events: list[Message]) -> float:
        """Sends all at once; seconds until each has a fate."""
        began = time.monotonic()
        self.world.send(events)
        self._await_fates(0.02)
        return time.monotonic() - began

    def state(self) -> str:
        """Where everything is, for whoever looks at a trial that did not end well."""
        lines = [f"sent {len(self.world.events)}, stream {self.stream.is_alive()} {self.stream.failure!r}"]
        lines.append(f"seen {self.watcher.watch.verdict.counts}, watcher {self.watcher.failure!r}")
        topics = [topic.name for topic in self.world.plan.topics]
        for worker in [*self.world.supervisor.workers, *self.extra]:
            lines.append(f"{worker.name} runs {worker.running}: {worker.ask('/health/ready')}")
        for what, tell in (
            ("open", lambda: KafkaLog(self.world.bootstrap, 5.0).unstable(topics)),
            ("unread", lambda: {s.name: self.world.behind(s.name) for s in self.world.plan.stages}),
        ):
            try:
                lines.append(f"{what} {tell()}")
            except Exception as error:  # noqa: BLE001  # the broker may be what is broken
                lines.append(f"{what}: the broker does not tell: {error}")
        return "\n".join(lines)

    def problem(self, what: str) -> None:
        self.result.problems.append(what)

    @property
    def fates(self) -> int:
        return sum(self.watcher.watch.distinct(suffix) for suffix in FATES)

    def finished(self) -> bool:
        """Whether everything that was sent has a fate."""
        self.world.supervisor.check()
        if self.watcher.failure is not None:
            raise self.watcher.failure
        return self.fates >= len(self.world.events)

    def flowing(self, within_s: float = PATIENCE_S) -> None:
        """Returns when predictions come that were made from now on."""
        self.new_output("predictions", time.time(), within_s)

    def new_output(self, suffix: str, moment: float, within_s: float = PATIENCE_S) -> float:
        """When the first record appended after ``moment``, which is now, is seen committed; seconds since epoch."""
        mark = len(self.watcher.at[suffix])

        def look() -> float | None:
            self.world.supervisor.check()
            return self.watcher.first_after(suffix, mark, moment)

        found: float = until(f"new {suffix}", look, within_s, pause=0.02)
        return found

    def longest_stall(self, suffix: str, since: float) -> float:
        """The longest time from ``since`` until now for which a reader saw nothing new in a partition of a topic that
        ever had anything, seconds."""
        seen = {partition: [since] for _, _, partition in self.watcher.at[suffix]}
        for _, at, partition in self.watcher.at[suffix]:
            if at > since:
                seen[partition].append(at)
        for times in seen.values():
            times.append(time.time())
        gaps = (later - earlier for times in seen.values() for earlier, later in pairwise(times))
        return max(gaps, default=0.0)

    def start_extra(self, stage: str, slot: int, **settings: Any) -> Worker:
        """A worker beside those of the supervisor; nobody starts it again."""
        number = len(self.extra)
        worker = Worker(stage, slot, self.world.folder / "logs" / f"extra-{number}-{stage}.{slot}.log")
        given = environment_of(self.world.settings.model_copy(update=settings))
        keep = {name: value for name, value in os.environ.items() if name not in OWN}
        command = self.world.command(worker, self.world.folder / "plan.json")
        worker.process, worker.pid = launch(command, Path.cwd(), worker.log_path, environ=keep | given)
        self.extra.append(worker)
        return worker

    def end(self, worker: Worker, number: signal.Signals) -> int | None:
        """Ends a worker of ``start_extra``; its exit code."""
        assert worker.process is not None
        if worker.running and worker.pid is not None:
            os.kill(worker.pid, number)
        return self.wait_ended(worker)

    def wait_ended(self, worker: Worker, seconds: float = PATIENCE_S) -> int | None:
        assert worker.process is not None
        try:
            worker.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{worker.name} did not end within {seconds:.0f} s") from None
        with worker.process:
            pass
        return worker.process.returncode


def quick_plan() -> Plan:
    """The flights pipeline, its monitor closing windows soon enough to see them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # feast's own libraries are full of deprecated calls
        from penstock.compiling import compile_pipeline

        plan = compile_pipeline("pipelines.flights.pipeline:pipeline")
    day = 86_400_000
    quick = {"pane_ms": day // 4, "window_ms": day, "idle_ms": 2000, "minimum_rows": 300}
    return plan.model_copy(update={"monitors": plan.monitors.model_copy(update=quick)})


def trained(plan: Plan, flights: data.Flights, folder: Path) -> Path:
    """A registry with a model of a month, by the pipeline's own training; kept for the same features."""
    registry = folder / plan.service.hash
    if not (registry / "flight_delay" / VERSION / "manifest.json").exists():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the libraries that convert the model
            from pipelines.flights import train

            rows = train.training_set(plan, flights.between("2013-02-22", "2013-03-22"))
            files, metrics, codes = train.fit(plan, rows, VERSION)
        registry.mkdir(parents=True, exist_ok=True)
        manifest = Manifest.of(plan, VERSION, files, metrics=metrics, data_hash="0" * 64, codes=codes)
        ModelRegistry(str(registry)).register(manifest, files)
    return registry


def percentile(values: Sequence[float], share: float) -> float | None:
    """The value that ``share`` of all do not exceed."""
    ordered = sorted(values)
    return ordered[math.ceil(len(ordered) * share) - 1] if ordered else None
