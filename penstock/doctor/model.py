"""Who serves by the control topic, and whether the version is there as it was registered, fits the plan's features and
has a profile that drift can be measured against.
"""

from collections.abc import Iterator

from penstock.doctor.deployment import Deployment
from penstock.doctor.finding import Finding, fail, ok, unseen, warn
from penstock.models.control import CHAMPION, ControlMessage
from penstock.models.control_topic import ControlUnavailable, read_control
from penstock.models.manifest import PROFILE_FILE, ModelError
from penstock.models.matrix import matrix_for
from penstock.models.registry import ModelRegistry
from penstock.models.verification import VerifiedModel
from penstock.plan import Plan
from penstock.profiles.reference import ProfileError, ReferenceProfile
from penstock.worker import schema_lookup

CHAMPION_CHECK, MODEL, PROFILE = "champion", "model", "profile"
CHECKS = (CHAMPION_CHECK, MODEL, PROFILE)


def check_model(deployment: Deployment) -> Iterator[Finding]:
    """All ``CHECKS``; every version that serves in some role is verified."""
    plan = deployment.plan
    if plan.model is None:
        yield from (ok(check, "the pipeline declares no model") for check in CHECKS)
        return
    name = plan.model.name
    try:
        said = read_control(deployment.settings, plan, deployment.left, schema_lookup(plan, deployment.settings))
    except ControlUnavailable as error:
        yield fail(CHAMPION_CHECK, str(error), f"penstock topics {deployment.plan_file} --create")
        yield from (unseen(check, "who serves is not known") for check in CHECKS[1:])
        return
    serving = [found.message for found in said if found.message.version is not None and found.message.model == name]
    champion = next((message for message in serving if message.role == CHAMPION), None)
    if champion is None:
        newest = _newest(deployment.settings.models_url, name)
        register = "" if newest else "penstock model register FOLDER, then "
        yield fail(
            CHAMPION_CHECK,
            f"nobody serves {name}: {plan.topic('control').name} names no champion",
            f"{register}penstock model promote {deployment.plan_file} {newest or 'VERSION'}",
        )
    else:
        yield ok(CHAMPION_CHECK, f"{name} {champion.version}, by {champion.author or 'unknown'}")
    if not serving:
        yield from (unseen(check, "nobody serves") for check in CHECKS[1:])
    for message in serving:
        yield from _check_version(plan, deployment.settings.models_url, message)


def _check_version(plan: Plan, url: str, message: ControlMessage) -> Iterator[Finding]:
    label = f"{message.role} {message.model} {message.version}"
    assert message.version is not None
    try:
        verified = ModelRegistry(url).load(message.model, message.version)
        matrix_for(plan, verified.manifest)
    except (ModelError, OSError) as error:
        mend = "" if isinstance(error, ModelError) else ". Set PENSTOCK_MODELS_URL to a registry that can be reached"
        yield fail(MODEL, f"{label}: {error}{mend}", f"penstock model verify {message.model} {message.version}")
        yield unseen(PROFILE, f"{label} is not as it was registered")
        return
    if message.digest is not None and message.digest != verified.digest:
        yield fail(
            MODEL,
            f"{label} in {url} has the manifest {verified.digest[:12]}, and {message.digest[:12]} was promoted",
            "set PENSTOCK_MODELS_URL to the registry that it was promoted from, or promote this one",
        )
    else:
        total = sum(len(content) for content in verified.files.values())
        yield ok(MODEL, f"{label}: {len(verified.files)} files, {total:,} bytes, sha256 and columns as registered")
    yield judge_profile(label, verified)


def judge_profile(label: str, verified: VerifiedModel) -> Finding:
    """A model serves without a profile; its drift cannot be told."""
    if verified.profile is None:
        return warn(
            PROFILE, f"{label} has no {PROFILE_FILE}: drift cannot be told", "register a version with a profile"
        )
    try:
        profile = ReferenceProfile.load(verified.profile)
    except ProfileError as error:
        return fail(PROFILE, f"{label}: {error}", "build the profile again and register a new version")
    return ok(PROFILE, f"{label}: {len(profile.columns)} columns of {profile.rows:,} rows")


def _newest(url: str, name: str) -> str | None:
    try:
        return ModelRegistry(url).latest(name)
    except (ModelError, OSError):
        return None
