"""A model version that is ready to serve one pipeline: verified, opened, warmed up and checked against the plan."""

from dataclasses import dataclass

from penstock.models.manifest import Manifest, ModelError
from penstock.models.matrix import FeatureMatrix, matrix_for
from penstock.models.verification import VerifiedModel
from penstock.plan import Plan
from penstock_inference.providers import choose
from penstock_inference.session import ScoreSession


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """``digest``: sha256 of the manifest. ``threshold``: from which score on a binary model says 1."""

    manifest: Manifest
    digest: str
    threshold: float
    matrix: FeatureMatrix
    session: ScoreSession


def load_model(
    plan: Plan, verified: VerifiedModel, *, providers: str = "auto", threads: int = 1, max_rows: int = 16_384
) -> LoadedModel:
    """Opens and warms up a verified version. Raises ``ModelError`` when it does not fit the plan or does not run."""
    manifest = verified.manifest
    if plan.model is None:
        raise ModelError(f"pipeline {plan.pipeline!r} declares no model. Add model=Model(name=…) to its pipeline.py")
    if (manifest.name, manifest.task) != (plan.model.name, plan.model.task):
        raise ModelError(
            f"model {manifest.label} is a {manifest.task} model, pipeline {plan.pipeline!r} declares the "
            f"{plan.model.task} model {plan.model.name!r}. Promote a version of that"
        )
    matrix = matrix_for(plan, manifest)
    session = ScoreSession(verified, choose(providers), threads=threads, max_rows=max_rows)
    threshold = plan.model.threshold if manifest.threshold is None else manifest.threshold
    return LoadedModel(manifest, verified.digest, threshold, matrix, session)
