"""compose.yaml, the Dockerfile and what they mount belong together: names, targets, stages, settings, files. Where
Compose itself is on the machine it checks the file too; the checks here need nothing.
"""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from penstock.compiling import compile_pipeline
from penstock.env_example import variables
from penstock.settings import Settings
from tests.contract.test_wheels import find_uv
from tests.not_run import compose_command

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "deploy/Dockerfile").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
WORKERS = {name: service for name, service in SERVICES.items() if service.get("command", [""])[-1] == "/plan/plan.json"}

KEYS = {
    "build", "cap_drop", "command", "depends_on", "env_file", "environment", "healthcheck", "image", "init", "ports",
    "read_only", "restart", "security_opt", "stop_grace_period", "tmpfs", "volumes",
}  # fmt: skip
"""Keys of a service that Compose knows and this file uses: a mistyped one is not among them."""
HEALTH_KEYS = {"test", "interval", "timeout", "start_period", "retries"}
CONDITIONS = {"service_healthy", "service_completed_successfully"}
OTHER_VARIABLES = {"PIPELINE"}
"""What the setup service takes beside the settings."""

EXPORTS = re.findall(r"uv export (.*?)\s+--output-file", DOCKERFILE.replace("\\\n", " "))


def stages() -> dict[str, str]:
    """Target → the stage of the Dockerfile that it begins with."""
    return {target: base for base, target in re.findall(r"^FROM (\S+) AS (\S+)$", DOCKERFILE, re.MULTILINE)}


def section(target: str) -> str:
    return DOCKERFILE.split(f" AS {target}\n", 1)[1].split("\nFROM ", 1)[0]


def mounts(service: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for mount in service.get("volumes", []):
        source, target = mount.split(":")[:2]
        yield source, target


def test_compose_accepts_the_file_where_it_is_installed() -> None:
    command = compose_command()
    assert command is not None, "left out where there is none"
    done = subprocess.run(
        [*command, "-f", "compose.yaml", "config", "-q"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_no_key_is_mistyped() -> None:
    assert {key for key in COMPOSE if not key.startswith("x-")} == {"name", "services", "volumes"}
    for name, service in SERVICES.items():
        assert service.keys() <= KEYS, name
        assert service.get("build", {}).keys() <= {"context", "dockerfile", "target"}, name
        assert service.get("healthcheck", {}).keys() <= HEALTH_KEYS, name


def test_services_wait_for_services_that_can_be_waited_for() -> None:
    for name, service in SERVICES.items():
        for other, how in service.get("depends_on", {}).items():
            assert how["condition"] in CONDITIONS, name
            if how["condition"] == "service_healthy":
                assert "healthcheck" in SERVICES[other], f"{name} waits for {other}"
            else:
                assert "restart" not in SERVICES[other], f"{other} would never be done"


def test_every_volume_is_declared_and_every_mounted_file_exists() -> None:
    used = set()
    for name, service in SERVICES.items():
        for source, target in mounts(service):
            assert target.startswith("/"), name
            if source.startswith("."):
                assert (ROOT / source).exists(), f"{name} mounts {source}"
            else:
                used.add(source)
    assert used == COMPOSE["volumes"].keys()


def test_every_built_service_has_its_target() -> None:
    for name, service in SERVICES.items():
        if "build" in service:
            target = service["build"]["target"]
            assert target in stages(), name
            assert service["image"] == f"penstock-{target}", name
            assert (ROOT / service["build"]["dockerfile"]).exists()


def test_an_image_from_elsewhere_has_a_version() -> None:
    for name, service in SERVICES.items():
        if "build" not in service:
            assert re.fullmatch(r"[\w./-]+:v?\d+(\.\d+)+", service["image"]), name


def test_every_target_that_runs_is_not_root_and_says_how_healthy_it_is() -> None:
    assert "USER penstock" in section("worker")
    assert "/health/ready" in section("worker")
    for target in ("ingest", "features", "inference", "monitor", "tools"):
        assert stages()[target] == "worker"
        assert "USER" not in section(target), target
    assert "HEALTHCHECK NONE" in section("tools")
    assert all("healthcheck" in service for service in SERVICES.values() if "build" not in service)


def test_every_stage_of_the_pipeline_has_one_service_of_the_right_target() -> None:
    plan = compile_pipeline("pipelines.flights.pipeline:pipeline")
    runs = {service["command"][0]: name for name, service in WORKERS.items()}
    assert sorted(runs) == sorted(stage.name for stage in plan.stages)
    for stage, name in runs.items():
        assert name == stage.replace(".", "-")
        assert SERVICES[name]["build"]["target"] == stage.split(".")[0]


def test_prometheus_scrapes_every_worker() -> None:
    config = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    [job] = config["scrape_configs"]
    [lookup] = job["dns_sd_configs"]
    assert sorted(lookup["names"]) == sorted(WORKERS)
    assert {str(lookup["port"])} == {worker["environment"]["PENSTOCK_METRICS_PORT"] for worker in WORKERS.values()}
    assert all((ROOT / "deploy/prometheus" / name).exists() for name in config["rule_files"])


def test_an_environment_holds_settings_only() -> None:
    known = {variable for name, field in Settings.model_fields.items() for variable in variables(name, field)}
    for name in (*WORKERS, "setup"):
        assert SERVICES[name]["environment"].keys() <= known | OTHER_VARIABLES, name


def test_a_worker_writes_only_where_something_is_mounted() -> None:
    for name, service in WORKERS.items():
        assert service["read_only"] is True, name
        writable = {target for _, target in mounts(service)} | {path.split(":")[0] for path in service["tmpfs"]}
        assert {"/tmp", "/var/lib/penstock/slots", "/var/lib/penstock/numba"} <= writable, name
        if (name.startswith("features-") and name != "features-feast") or name == "monitor":
            assert "/var/lib/penstock/snapshots" in writable, name


@pytest.mark.parametrize("arguments", EXPORTS)
def test_the_lock_gives_what_a_target_installs(arguments: str) -> None:
    done = subprocess.run(
        [find_uv(), "export", *arguments.split()], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "--hash=sha256:" in done.stdout
    assert "pytest" not in done.stdout


def test_the_image_s_context_holds_what_is_copied() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for source in re.findall(r"^COPY (?!--from)(?:--chown=\S+ )?(.+) \S+$", DOCKERFILE, re.MULTILINE):
        for path in source.split():
            if path != ".":
                assert any(path == one or path.startswith(f"{one}/") for one in allowed), path
                assert (ROOT / path).exists(), path
