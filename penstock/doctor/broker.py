"""Whether Kafka answers, what it says of itself, and whether one lost machine would be the end of it."""

from collections.abc import Iterator

from penstock.doctor.deployment import UNANSWERED, Deployment, told
from penstock.doctor.finding import Finding, fail, ok, warn
from penstock.doctor.versions import BrokerVersion, ask_version

CHECK = "broker"


def check_broker(deployment: Deployment) -> Iterator[Finding]:
    """A failed finding means that nothing else can be asked."""
    servers = deployment.settings.bootstrap_servers
    try:
        cluster = deployment.answer(deployment.admin.describe_cluster(request_timeout=deployment.left))
    except UNANSWERED as error:
        yield fail(
            CHECK,
            f"no answer from {servers}: {told(error)}",
            "start it (`penstock broker start`), or set KAFKA_BOOTSTRAP_SERVERS and what its listener asks for (TLS, "
            "SASL)",
        )
        return
    version = ask_version(deployment.settings, deployment.left)
    yield judge(servers, cluster.cluster_id, len(cluster.nodes), version)


def judge(servers: str, cluster: str, brokers: int, version: BrokerVersion | None) -> Finding:
    """One broker is what a machine of one's own has, and nothing to rely on elsewhere."""
    several = "1 broker" if brokers == 1 else f"{brokers} brokers"
    told = str(version) if version is not None else "its version is not told to this client"
    seen = f"{servers} answers: {several} of cluster {cluster}, {told}"
    if version is not None and not version.transactional:
        return fail(CHECK, seen, "it offers no transactions; Penstock needs Kafka 2.5 or newer")
    if brokers == 1 and not is_local(servers):
        return warn(
            CHECK, seen, "run three brokers or more, so that one lost machine loses no records and stops nobody"
        )
    return ok(CHECK, seen)


def is_local(servers: str) -> bool:
    """Every address is this machine's own."""
    hosts = [address.strip().rpartition(":")[0].strip("[]") for address in servers.split(",")]
    return all(host in ("localhost", "::1") or host.startswith("127.") for host in hosts)
