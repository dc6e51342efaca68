"""What the throughput cases share: broker, plans and topics, and how a case is measured: beside the bare copy of its
own input, its output counted by an independent reader before its figures are taken.
"""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

from bench.cluster import Census, Cluster, Moving, Progress
from bench.plans import CARDS, FRAUD, WINDOWS, compiled, without_view_topics
from bench.processes import Copy, Measured, Process, Worker, follow
from penstock.models.control_topic import promote
from penstock.plan import Plan
from penstock.settings import Settings

COMMIT_MS = 100
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Job:
    """A stage to measure: ``outputs`` are emptied before each run, ``check`` counts them after it."""

    title: str
    plan: Plan
    stage: str
    inputs: list[Census]
    outputs: list[str]
    check: Callable[[], None]


class Workshop:
    """What the cases share: the broker, the plans, what the topics hold."""

    def __init__(self, cluster: Cluster, folder: Path, models: str, events: int, repeats: int, say: Say) -> None:
        self.cluster, self.folder, self.models = cluster, folder, models
        self.events, self.repeats, self.say = events, repeats, say
        self.known: dict[str, Census] = {}
        """What topics hold that a case may read again."""
        self.versions: dict[str, str] = {}
        self._made: set[str] = set()
        self._numbers = 0

    @cached_property
    def fraud(self) -> Plan:
        return compiled(FRAUD, self.folder)

    @cached_property
    def windows(self) -> Plan:
        return without_view_topics(compiled(WINDOWS, self.folder))

    @cached_property
    def cards(self) -> Plan:
        return compiled(CARDS, self.folder)

    def settings(self) -> Settings:
        return Settings().model_copy(
            update={"bootstrap_servers": self.cluster.bootstrap, "models_url": self.models, "state_dir": self.folder}
        )

    def make(self, plan: Plan) -> None:
        """The plan's topics, those that are not there yet."""
        self.create([topic.name for topic in plan.topics])

    def create(self, topics: Iterable[str]) -> None:
        new = [topic for topic in topics if topic not in self._made]
        self.cluster.create(new, self.fraud.partitions)
        self._made.update(new)

    def empty(self, topics: Iterable[str]) -> None:
        topics = list(topics)
        self.cluster.delete(topics)
        self._made.difference_update(topics)
        for topic in topics:
            self.known.pop(topic, None)
        self.create(topics)

    def drop(self, topics: Iterable[str]) -> None:
        topics = list(topics)
        self.cluster.delete(topics)
        self._made.difference_update(topics)

    def fresh(self, name: str) -> str:
        """A name that nothing had before."""
        self._numbers += 1
        return f"bench.{name}.{self._numbers}"

    def saved(self, plan: Plan, name: str) -> Path:
        path = self.folder / f"{name}.plan.json"
        plan.save(path)
        return path

    def worker(self, plan: Plan, stage: str, commit_ms: int = COMMIT_MS) -> Worker:
        path = self.saved(plan, plan.pipeline)
        return Worker(stage, path, self.cluster.bootstrap, self.models, commit_ms, self.folder / plan.pipeline)

    def copy(self, sources: list[str], target: str, commit_ms: int = COMMIT_MS) -> Copy:
        group = self.fresh("copy")
        return Copy(group, sources, target, self.cluster.bootstrap, commit_ms, self.folder / "copies")

    def serve(self, plan: Plan, version: str) -> None:
        """Makes ``version`` the champion of ``plan``."""
        promote(self.settings(), plan, version, "bench")


def measure(shop: Workshop, job: Job) -> dict[str, Any]:
    """Baseline and case in turn, ``repeats`` times; the pair with the median ratio is the result."""
    pairs = []
    for number in range(shop.repeats):
        shop.say(f"{job.title}: bare copy")
        bare = run_copies(shop, job.inputs, 1)
        shop.say(f"{job.title}: run {number + 1} of {shop.repeats}")
        shop.cluster.forget([job.plan.group(job.stage)])
        shop.empty(job.outputs)
        with shop.worker(job.plan, job.stage) as worker:
            ours = followed(shop, [worker], job.plan.group(job.stage), job.inputs)
        shop.say(f"{job.title}: counting")
        job.check()
        pairs.append((ours, bare))
    return result(job.title, pairs)


def result(title: str, pairs: list[tuple[Measured, Measured]]) -> dict[str, Any]:
    """The figures of the pair whose ratio is the median, and the ratios of all."""
    ratios = [ours.rows_per_second / bare.rows_per_second for ours, bare in pairs]
    middle = min(range(len(pairs)), key=lambda i: abs(ratios[i] - median(ratios)))
    ours, bare = pairs[middle]
    return {
        "title": title,
        **figures(ours),
        "ratio": round(ratios[middle], 3),
        "cpu_ratio": round(ours.rows_per_cpu_second / bare.rows_per_cpu_second, 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
        "phases": ours.phases,
        "baseline": figures(bare),
    }


def figures(run: Measured) -> dict[str, Any]:
    return {
        "events_per_second": round(run.rows_per_second),
        "events_per_cpu_second": round(run.rows_per_cpu_second),
        "rss_mb": round(run.rss_mb),
        "state_mb": round(run.state_mb),
        "seconds": round(run.seconds, 2),
    }


def run_copies(shop: Workshop, inputs: list[Census], hops: int) -> Measured:
    """Bare copies of ``inputs``, one after another through ``hops`` topics, each its own process."""
    targets = [shop.fresh("hop") for _ in range(hops)]
    shop.create(targets)
    sources = [[census.topic for census in inputs], *([target] for target in targets[:-1])]
    rows = sum(census.rows for census in inputs)
    with ExitStack() as stack:
        copies = [shop.copy(source, target) for source, target in zip(sources, targets, strict=True)]
        # the last one first: a chain starts together when the first has begun
        for one in reversed(copies[1:]):
            stack.enter_context(one).wait_ready()
        stack.enter_context(copies[0])
        first = Progress(shop.cluster, copies[0].name, inputs)
        others = [
            Moving(shop.cluster, one.name, source, shop.fraud.partitions)
            for one, source in zip(copies[1:], sources[1:], strict=True)
        ]
        measured = follow(copies, first, others)
    shop.cluster.count(targets[-1], rows)
    shop.drop(targets)
    return measured


def followed(shop: Workshop, processes: list[Process], group: str, inputs: list[Census]) -> Measured:
    """The figures of ``processes`` until ``group`` has committed all of ``inputs``."""
    watched = Progress(shop.cluster, group, inputs)
    try:
        return follow(processes, watched)
    finally:
        watched.close()
