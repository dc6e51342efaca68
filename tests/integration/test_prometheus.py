"""The dashboard and the alert rules on a real Prometheus that scraped a run of the real workers: no query may fail, and
none may come back empty.
"""

import json
import math
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import Counter, Gauge, Histogram

from penstock import telemetry
from penstock.dashboards.panels import ROWS
from penstock.dashboards.queries import Query, series
from penstock.dashboards.rules import RULES
from penstock.plan import Plan
from tests.prometheus import Server, find_prometheus, running

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy/prometheus"
PORT = re.compile(r'"port": ?(\d+)')
DEPARTURES, SPEED = 20_000, 0.3
"""About a month, in about a quarter of a minute: several windows close, and counters are seen to move."""
DONE = "Ctrl-C ends everything"
PATIENCE_S = 240

QUERIES = {
    f"{panel.title}, {place}": query
    for panels in ROWS.values()
    for panel in panels
    for place, query in enumerate(panel.queries)
}


def configure(folder: Path) -> tuple[Path, Path]:
    """The committed configuration, scraping every second what a file lists, since there is no DNS; and that file."""
    config = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(DEPLOY / name) for name in config["rule_files"]]
    [job] = config["scrape_configs"]
    del job["dns_sd_configs"]
    targets = folder / "targets.json"
    targets.write_text("[]")
    job["file_sd_configs"] = [{"files": [str(targets)], "refresh_interval": "1s"}]
    path = folder / "prometheus.yml"
    path.write_text(yaml.safe_dump(config))
    return path, targets


def list_workers(logs: Path, targets: Path, stopped: threading.Event) -> None:
    """Keeps the file of targets at what the workers' logs say of their ports."""
    known: set[str] = set()
    while not stopped.wait(0.2):
        ports = {port for log in logs.glob("*.log") for port in PORT.findall(log.read_text(errors="replace"))}
        if ports != known:
            known = ports
            aside = targets.with_suffix(".new")
            aside.write_text(json.dumps([{"targets": [f"127.0.0.1:{port}" for port in sorted(ports)]}]))
            aside.replace(targets)


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, float]]:
    """A Prometheus that has scraped a run of the flights pipeline from its first second, and when the run began."""
    binary = find_prometheus()
    assert binary is not None, "left out at collection where there is none"
    folder = tmp_path_factory.mktemp("prometheus")
    config, targets = configure(folder)
    stopped = threading.Event()
    lister = threading.Thread(target=list_workers, args=(folder / "demo/logs", targets, stopped))
    command = [sys.executable, "-m", "penstock", "demo", "--keep", f"--limit={DEPARTURES}", f"--speed={SPEED}"]
    output = folder / "demo.log"
    began = time.time()
    with (
        running(binary, config, folder / "data") as server,
        output.open("wb") as out,
        subprocess.Popen(
            [*command, f"--folder={folder / 'demo'}"], cwd=ROOT, stdout=out, stderr=subprocess.STDOUT
        ) as demo,
    ):
        lister.start()
        try:
            while DONE not in output.read_text():
                running_yet = demo.poll() is None and time.time() < began + PATIENCE_S
                assert running_yet, output.read_text()[-4000:]
                time.sleep(0.2)
            time.sleep(2.5)  # two more scrapes, with all windows closed
            yield server, began
        finally:
            stopped.set()
            lister.join()
            demo.send_signal(signal.SIGINT)
            demo.wait(60)


def over_the_run(scraped: tuple[Server, float], expr: str) -> list[dict[str, Any]]:
    server, began = scraped
    found = server.get("query_range", query=expr, start=str(began), end=str(time.time()), step="1")
    return list(found["result"])


def values(found: list[dict[str, Any]]) -> list[float]:
    return [float(value) for one in found for _, value in one["values"]]


@pytest.mark.kafka
@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", QUERIES)
def test_a_query_of_the_dashboard_has_something_to_show(scraped: tuple[Server, float], name: str) -> None:
    query: Query = QUERIES[name]
    found = over_the_run(scraped, query.expr.replace("$__rate_interval", "5s"))
    assert any(math.isfinite(value) for value in values(found)), query.expr


@pytest.mark.kafka
@pytest.mark.timeout(400)
def test_every_declared_metric_is_exported_under_its_name(scraped: tuple[Server, float]) -> None:
    known = scraped[0].get("metadata")
    declared = {
        series(metric) for metric in vars(telemetry).values() if isinstance(metric, Counter | Gauge | Histogram)
    }
    assert declared <= known.keys()


@pytest.mark.kafka
@pytest.mark.timeout(400)
@pytest.mark.parametrize("metric", [telemetry.LAG_RECORDS, telemetry.LAG_SECONDS, telemetry.READY], ids=series)
def test_every_stage_tells_it(scraped: tuple[Server, float], flights_plan: Plan, metric: Gauge) -> None:
    found = scraped[0].get("query", query=f"count by (stage) ({series(metric)})")["result"]
    assert {one["metric"]["stage"] for one in found} == {stage.name for stage in flights_plan.stages}


@pytest.mark.kafka
@pytest.mark.timeout(400)
def test_what_the_dashboard_shows_is_what_was_replayed(scraped: tuple[Server, float]) -> None:
    [found] = scraped[0].get("query", query=f'sum({series(telemetry.RECORDS_IN)}{{stage="ingest"}})')["result"]
    sent = float(found["value"][1])
    assert sent > DEPARTURES  # and their labels, and what was broken on purpose
    assert sum(values(over_the_run(scraped, f"sum(rate({series(telemetry.DEAD_LETTERS)}[5s]))"))) > 0


@pytest.mark.kafka
@pytest.mark.timeout(400)
def test_the_alert_rules_are_loaded_and_can_be_evaluated(scraped: tuple[Server, float]) -> None:
    [group] = scraped[0].get("rules")["groups"]
    assert [(rule["name"], rule["health"]) for rule in group["rules"]] == [(rule.name, "ok") for rule in RULES]
