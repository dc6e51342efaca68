"""The workers' own numbers, read from their ``/metrics``: for the live view only, never for a count that must hold."""

import re
from collections.abc import Iterable
from typing import NamedTuple

from penstock.local.supervisor import Worker

_SAMPLE = re.compile(r"^(penstock_\w+?)(?:_total)?(?:\{(.*)\})? (\S+)$")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_SKIPPED = ("_bucket{", "_created")


class Sample(NamedTuple):
    """One time series of one worker. ``name`` is as declared, without ``_total``."""

    name: str
    labels: dict[str, str]
    value: float


def parse(text: str) -> list[Sample]:
    """Samples of Penstock's own metrics, histograms' buckets left out."""
    found = []
    for line in text.splitlines():
        if not line.startswith("penstock_") or any(part in line for part in _SKIPPED):
            continue
        match = _SAMPLE.match(line)
        if match is not None:
            labels = {name: re.sub(r"\\(.)", r"\1", value) for name, value in _LABEL.findall(match[2] or "")}
            found.append(Sample(match[1], labels, float(match[3])))
    return found


def scrape(workers: Iterable[Worker]) -> list[Sample]:
    """Samples of all workers that answer."""
    found = []
    for worker in workers:
        answer = worker.ask("/metrics")
        if answer is not None and answer[0] == 200:
            found += parse(answer[1].decode())
    return found


def by_label(samples: Iterable[Sample], name: str, label: str) -> dict[str, float]:
    """Sums of the metric ``name`` by one of its labels, largest first."""
    sums: dict[str, float] = {}
    for sample in samples:
        if sample.name == name and label in sample.labels:
            sums[sample.labels[label]] = sums.get(sample.labels[label], 0.0) + sample.value
    return dict(sorted(sums.items(), key=lambda pair: -pair[1]))
