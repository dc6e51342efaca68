"""The dashboard and the alert rules against the declared metrics: nothing renamed, nothing forgotten, nothing stale."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import Counter, Gauge, Histogram

from penstock import telemetry
from penstock.dashboards.files import dashboard, files
from penstock.dashboards.panels import ROWS
from penstock.dashboards.queries import series
from penstock.dashboards.rules import RULES

DEPLOY = Path(__file__).parents[2] / "deploy"
DECLARED = {name: metric for name, metric in vars(telemetry).items() if isinstance(metric, Counter | Gauge | Histogram)}
NOT_SHOWN = {"MEMORY_LIMIT", "SNAPSHOT_BYTES", "SNAPSHOT_SECONDS", "STATE_BYTES", "STATE_KEYS"}
"""Of use when a worker's memory is in question, not on the first page."""

SUFFIXES = ("_bucket", "_sum", "_count")


def expressions() -> list[str]:
    return [query.expr for panels in ROWS.values() for panel in panels for query in panel.queries] + [
        rule.expr for rule in RULES
    ]


def names(expr: str) -> set[str]:
    return set(re.findall(r"penstock_\w+", expr))


def exported() -> dict[str, tuple[str, ...]]:
    """Every series name that /metrics can hold, with its labels."""
    found: dict[str, tuple[str, ...]] = {}
    for metric in DECLARED.values():
        name = series(metric)
        if isinstance(metric, Histogram):
            found |= {f"{name}{suffix}": (*metric._labelnames, "le") for suffix in SUFFIXES}
        else:
            found[name] = metric._labelnames
    return found


@pytest.mark.parametrize("path", files(), ids=str)
def test_the_committed_file_is_what_the_code_generates(path: Path) -> None:
    assert (DEPLOY / path).read_text() == files()[path], "run: python -m penstock.dashboards deploy"


def test_every_query_asks_for_a_declared_metric() -> None:
    assert set().union(*map(names, expressions())) <= exported().keys()


def test_every_declared_metric_is_on_the_dashboard() -> None:
    shown = set().union(*map(names, expressions()))
    missing = {
        name
        for name, metric in DECLARED.items()
        if not any(one in shown for one in (series(metric), f"{series(metric)}_bucket", f"{series(metric)}_count"))
    }
    assert missing == NOT_SHOWN


def test_a_query_groups_by_labels_that_its_metrics_have() -> None:
    for expr in expressions():
        by = {label for group in re.findall(r"by \(([^)]*)\)", expr) for label in re.split(r",\s*", group)}
        has = set().union(*(exported()[name] for name in names(expr)), {"instance"})
        assert by <= has, expr


def test_a_legend_shows_labels_that_the_query_keeps() -> None:
    for panels in ROWS.values():
        for panel in panels:
            for query in panel.queries:
                kept = {
                    label for group in re.findall(r"by \(([^)]*)\)", query.expr) for label in re.split(r",\s*", group)
                }
                assert set(re.findall(r"{{(\w+)}}", query.legend)) <= kept, panel.title


def test_panels_have_titles_of_their_own_and_do_not_overlap() -> None:
    panels: list[dict[str, Any]] = json.loads(json.dumps(dashboard()))["panels"]
    assert len({panel["title"] for panel in panels}) == len(panels)
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells


def test_the_rules_are_yaml_that_says_what_to_do() -> None:
    [group] = yaml.safe_load((DEPLOY / "prometheus/alerts.yml").read_text())["groups"]
    assert [rule["alert"] for rule in group["rules"]] == [rule.name for rule in RULES]
    for written, declared in zip(group["rules"], RULES, strict=True):
        assert written["expr"] == declared.expr
        assert written["annotations"] == {"summary": declared.summary, "description": declared.mend}
