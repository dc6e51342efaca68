"""A pipeline under development: broker, topics and workers for as long as it is wanted. Unlike the demo it keeps its
broker's records from one time to the next, as the pipeline's own Feast stores do.
"""

import re
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from penstock.local.plans import PlanFile
from penstock.local.resolve import resolve_broker
from penstock.local.state import make_folder
from penstock.local.supervisor import Supervisor
from penstock.models.control_topic import ControlUnavailable, promote, read_control
from penstock.models.registry import ModelRegistry
from penstock.pipeline import train_module
from penstock.plan import Plan
from penstock.settings import Settings
from penstock.topics import admin_client, check_topics, create_topics, topic_specs

LOOK_EVERY_S = 1.0
NUMBER = re.compile(r"\d[\d,.]*")


class Development:
    """Starts all that ``source`` needs; ``stack`` ends it. ``say`` hears of what is not ready, and why."""

    def __init__(
        self, source: str, docker: bool, folder: Path | None, say: Callable[[str], None], stack: ExitStack
    ) -> None:
        self._say, self._said, self._looked = say, "", 0.0
        settings = Settings()
        name = source.partition(":")[0].replace(".", "_")
        self._folder = folder or Path("var/dev") / name
        logs = self._folder / "logs"
        make_folder(logs)
        self._plan_path = self._folder / "plan.json"
        plan_file = PlanFile(source, self._plan_path, logs / "compile.log", extend_lock=True)
        stack.callback(plan_file.close)
        broker = stack.enter_context(resolve_broker(docker, self._folder / "broker"))
        self._plan, self._train = plan_file.load(), train_command(source)
        self._bootstrap, self._models = broker.bootstrap, ModelRegistry(settings.models_url)
        self._settings = settings = settings.model_copy(
            update={"bootstrap_servers": broker.bootstrap, "state_dir": self._folder / "state"}
        )
        admin, specs = admin_client(settings), topic_specs(self._plan)
        create_topics(admin, specs)
        for difference in check_topics(admin, specs):
            say(f"{difference.topic} {difference.what}. Mend: {difference.mend}")
        promote_newest(self._plan, settings, say)
        self._supervisor = Supervisor(self._plan, self._plan_path, settings, logs, tell=say)
        stack.enter_context(self._supervisor)

    def page(self) -> str:
        """What is where, for a person."""
        facts = self.facts()
        workers = facts["workers"]
        assert isinstance(workers, dict)
        width = max(map(len, workers))
        return "\n".join(
            [
                f"export KAFKA_BOOTSTRAP_SERVERS={self._bootstrap} PENSTOCK_STATE_DIR={self._settings.state_dir}",
                f"plan: {facts['plan']}",
                f"logs: {self._folder / 'logs'}",
                *(f"topic: {topic.name}, {topic.partitions} partitions" for topic in self._plan.topics),
                *(f"{name:<{width}}  {url}" for name, url in workers.items()),
                "Ctrl-C ends everything",
            ]
        )

    def facts(self) -> dict[str, object]:
        """The same for programs."""
        return {
            "bootstrap": self._bootstrap,
            "plan": str(self._plan_path),
            "topics": {topic.name: topic.partitions for topic in self._plan.topics},
            "workers": {w.name: f"http://127.0.0.1:{w.port}/metrics" for w in self._supervisor.workers},
        }

    def look(self) -> None:
        """Say what is not ready, and what to call where that is a model, whenever it changes. Raises
        ``WorkersFailed``.
        """
        self._supervisor.check()
        if time.monotonic() - self._looked < LOOK_EVERY_S:
            return
        self._looked = time.monotonic()
        waiting, mend = [], ""
        for worker in self._supervisor.workers:
            worker.look()
            if not worker.ready:
                waiting.append(f"{worker.name}: {'; '.join(worker.waiting_for.values())}")
            if "model" in worker.waiting_for and not has_champion(self._plan, self._settings):
                mend = how_to_serve(self._plan, self._models, self._train, self._plan_path, self._bootstrap)
        said = "not ready: " + " | ".join(waiting) + mend if waiting else "all workers are ready"
        alike = NUMBER.sub("", said)  # a count that goes down is no news
        if alike != self._said:
            self._said = alike
            self._say(said)


def promote_newest(plan: Plan, settings: Settings, say: Callable[[str], None]) -> None:
    """Makes the registry's newest version for the plan's features the champion where nobody serves yet."""
    if plan.model is None or any(found.message.version for found in read_control(settings, plan)):
        return
    newest = ModelRegistry(settings.models_url).latest(plan.model.name, plan.service.hash)
    if newest is None:
        return
    promote(settings, plan, newest, "penstock dev", "the newest version, where nobody served")
    say(f"{plan.model.name} {newest} is champion now, as the newest version in {settings.models_url}")


def has_champion(plan: Plan, settings: Settings) -> bool:
    """Whether somebody serves; while nobody knows, nothing is to be mended and it is True."""
    try:
        return any(found.message.version for found in read_control(settings, plan))
    except ControlUnavailable:
        return True


def train_command(source: str) -> str:
    """What makes a version of the model: the ``train`` beside the pipeline, where it has one."""
    return f"penstock model train {source}" if train_module(source) is not None else "penstock model register FOLDER"


def how_to_serve(plan: Plan, registry: ModelRegistry, train: str, plan_path: Path, bootstrap: str) -> str:
    """The commands that are left until a version of the plan's model serves, a line each."""
    assert plan.model is not None
    name, newest = plan.model.name, registry.latest(plan.model.name, plan.service.hash)
    promote = f"KAFKA_BOOTSTRAP_SERVERS={bootstrap} penstock model promote {plan_path} {newest or 'VERSION'}"
    if newest is not None:
        return f"\n  {registry.url} has {name} {newest}. Let it serve:  {promote}"
    return (
        f"\n  {registry.url} has no version of {name} for these features. Make one:  {train}\n"
        f"  then let it serve:  {promote}"
    )
