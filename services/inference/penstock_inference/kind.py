"""What the entry point ``inference`` of ``penstock.stages`` loads."""

from penstock.plan import Plan
from penstock.stage import StageKind
from penstock_inference.control import champion_watch
from penstock_inference.stage import InferenceStage


def build(plan: Plan, name: str) -> InferenceStage:
    """The stage ``name`` of the plan. Raises ``PlanError`` when there is no such stage or no model."""
    plan.stage(name)
    return InferenceStage(plan)


kind = StageKind(build=build, companion=champion_watch)
