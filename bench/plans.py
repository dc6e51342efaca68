"""The plans that the cases run: compiled by the command that users run, then put together so that one case can read
what another wrote.
"""

import subprocess
import sys
from pathlib import Path
from typing import Any

from bench.cluster import BenchError
from penstock.plan import Plan

FRAUD = "pipelines.fraud.pipeline:pipeline"
WINDOWS = "pipelines.fraud.pipeline:windows"
CARDS = "bench.cards.pipeline:pipeline"


def compiled(source: str, folder: Path) -> Plan:
    """The plan of ``source``, made anew in a process of its own, for that imports feast. Raises ``BenchError``."""
    path = folder / f"{source.rpartition('.')[2].replace(':', '.')}.{source.partition('.')[2].partition('.')[0]}.json"
    command = [sys.executable, "-m", "penstock", "plan", source, "--out", str(path)]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode:
        raise BenchError(f"{' '.join(command[2:])} failed:\n{made.stderr}")
    return Plan.load(path)


def renamed(plan: Plan, name: str) -> Plan:
    """The same plan with topics and groups of another name."""
    old = f"{plan.pipeline}."

    def walk(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: walk(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [walk(inner) for inner in value]
        return f"{name}.{value.removeprefix(old)}" if isinstance(value, str) and value.startswith(old) else value

    return Plan.model_validate({**walk(plan.model_dump(mode="json")), "pipeline": name})


def without_view_topics(plan: Plan) -> Plan:
    """The plan as it is compiled where views are written neither online nor offline."""
    gone = {view.topic for view in plan.views}
    return plan.model_copy(
        update={
            "views": tuple(v.model_copy(update={"topic": None, "online": False, "offline": False}) for v in plan.views),
            "stages": tuple(
                s.model_copy(update={"outputs": tuple(topic for topic in s.outputs if topic not in gone)})
                for s in plan.stages
                if not any(source.topic in gone for source in s.inputs)
            ),
        }
    )


def reading(plan: Plan, stage: str, topic: str) -> Plan:
    """The plan with the only input of ``stage`` taken from another pipeline's topic of the same schema."""
    stages = tuple(
        s.model_copy(update={"inputs": (s.inputs[0].model_copy(update={"topic": topic}),)}) if s.name == stage else s
        for s in plan.stages
    )
    return plan.model_copy(update={"stages": stages})
