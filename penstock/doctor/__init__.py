"""``penstock doctor PIPELINE``: looks at a deployment from outside, with the service's own credentials, and says of
each thing whether it is well and what mends it. Nothing that it does is seen by users, windows, models or monitors.
"""

from collections.abc import Callable, Iterator

from penstock.doctor import broker, clock, lag, model, probe, rights, schemas, topics, transactions
from penstock.doctor.deployment import UNANSWERED, Deployment, told
from penstock.doctor.finding import Finding, fail, unseen

__all__ = ["Deployment", "Finding", "examine"]

_NEED_BROKER = (
    *topics.CHECKS,
    rights.WRITE,
    rights.READ,
    rights.GROUPS,
    *model.CHECKS,
    clock.CHECK,
    transactions.CHECK,
    lag.CHECK,
    probe.CHECK,
)
_OTHER_IDS = "the plan's schema ids are not those of the registry: see schemas"


def examine(
    deployment: Deployment, registry: schemas.Registered | None = None, *, with_probe: bool = True
) -> Iterator[Finding]:
    """Every check, one finding or more each. Raises nothing: what cannot be asked is a finding too."""
    reached = list(broker.check_broker(deployment))
    yield from reached
    yield from schemas.check_schemas(deployment.folder, registry)
    if any(finding.verdict == "fail" for finding in reached):
        yield from (unseen(check, "Kafka is away") for check in _NEED_BROKER)
        return
    yield from topics.check_all_topics(deployment)
    try:
        there = deployment.partitions()
    except UNANSWERED as error:
        yield _unanswered(topics.TOPICS, error)
        yield from (unseen(check, "Kafka went away") for check in _NEED_BROKER if check not in topics.CHECKS)
        return
    absent = [topic.name for topic in deployment.plan.topics if topic.name not in there]
    write = rights.AbortedWrite()
    present = [topic.name for topic in deployment.plan.topics if topic.name in there]
    yield from _asked(rights.WRITE, lambda: rights.check_rights(deployment, absent, write))
    models: list[Finding] = []
    if deployment.ids_known:
        models += _asked(model.CHAMPION_CHECK, lambda: model.check_model(deployment))
        yield from models
    else:
        yield from (unseen(check, _OTHER_IDS) for check in model.CHECKS)
    yield from clock.check_clock(write, deployment.plan.event.future_ms)
    yield from _asked(transactions.CHECK, lambda: transactions.check_transactions(deployment, present))
    lags: list[lag.Lag] = []
    yield from _asked(lag.CHECK, lambda: _lag(deployment, absent, lags, _no_model(models)))
    why = _no_probe(deployment, absent, lags, with_probe=with_probe)
    if why is not None:
        yield unseen(probe.CHECK, why)
    else:
        yield from _asked(probe.CHECK, lambda: probe.check_probe(deployment))


def _lag(
    deployment: Deployment, absent: list[str], found: list[lag.Lag], no_model: Finding | None
) -> Iterator[Finding]:
    found += lag.measure(deployment, absent)
    for each in found:
        waits = no_model if each.stage == "inference" else None
        yield lag.judge(each, deployment.lag_s, deployment.plan_file, waits)


def _no_model(found: list[Finding]) -> Finding | None:
    """Why no worker can serve, if none can: there is no champion, or it is not as it was registered."""
    failed = [finding for finding in found if finding.verdict == "fail"]
    return next((f for f in failed if f.check == model.CHAMPION_CHECK or f.seen.startswith("champion ")), None)


def _no_probe(deployment: Deployment, absent: list[str], lags: list[lag.Lag], *, with_probe: bool) -> str | None:
    if not with_probe:
        return "--no-probe"
    gone = [name for name in absent if name.rpartition(".")[2] in ("raw", "dropped", "dead")]
    if gone:
        return f"{', '.join(gone)} {'is' if len(gone) == 1 else 'are'} missing"
    if not deployment.ids_known:
        return _OTHER_IDS
    if not any(each.stage == "ingest" and each.members for each in lags):
        return "no ingest worker would read it"
    return None


def _asked(check: str, look: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    try:
        yield from look()
    except UNANSWERED as error:
        yield _unanswered(check, error)


def _unanswered(check: str, error: Exception) -> Finding:
    return fail(check, f"Kafka could not be asked: {told(error)}", "look at the broker's log, or raise --timeout")
