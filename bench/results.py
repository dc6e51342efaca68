"""The figures of a run: what each case reached against its baseline and its target, as JSON, as a table on the terminal
and as the table of the README.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table

LATEST = Path("bench/results/latest.json")
README = Path("README.md")
BEGIN, END = "<!-- bench -->", "<!-- /bench -->"
WORKER_MB = 500
"""Resident memory that a worker may have beside its state."""
TELLING = 100_000
"""Events below which a figure tells nothing."""


class Target(NamedTuple):
    """``figure`` of a case is to be at least, or at most, ``value``."""

    figure: str
    value: float
    at_most: bool = False

    def reached(self, case: dict[str, Any]) -> bool:
        got = float(case[self.figure])
        return got <= self.value if self.at_most else got >= self.value

    def __str__(self) -> str:
        words = {"ratio": "ratio", "events_per_second": "events/s"}
        return f"{words[self.figure]} {'≤' if self.at_most else '≥'} {self.value:,g}"


TARGETS = {
    "ingest": Target("ratio", 0.6),
    "features": Target("ratio", 0.4),
    "inference": Target("ratio", 0.5),
    "monitor": Target("ratio", 0.7),
    "card_windows": Target("ratio", 0.6),
    "together": Target("events_per_second", 100_000),
    "latency_20k": Target("ratio", 2.0, at_most=True),
}


def verdict(results: dict[str, Any], name: str) -> str:
    """``reached`` or ``not reached``, with the target; empty where there is none, or too few events to tell."""
    case, target = results["cases"][name], TARGETS.get(name)
    return (
        ""
        if target is None or results["events"] < TELLING
        else f"{target}: {'reached' if target.reached(case) else 'not reached'}"
    )


def rows(results: dict[str, Any]) -> list[list[str]]:
    """Cells of the table, header first."""
    found = [["case", "events/s", "bare copy", "ratio", "events per CPU-s", "MB of a worker", "target"]]
    for name, case in results["cases"].items():
        if "p99_ms" in case:
            continue
        bare = case["baseline"]
        found.append(
            [
                case["title"],
                f"{case['events_per_second']:,}",
                f"{bare['events_per_second']:,}",
                f"{case['ratio']:.2f}",
                f"{case['events_per_cpu_second']:,}",
                f"{case['rss_mb']:,}",
                verdict(results, name),
            ]
        )
    return found


def latency_rows(results: dict[str, Any]) -> list[list[str]]:
    """Cells of the latency table, header first."""
    found = [["end to end", "p50", "p99", "bare hops p50", "bare hops p99", "ratio of p99", "target"]]
    for name, case in results["cases"].items():
        if "p99_ms" in case:
            bare = case["baseline"]
            figures = [f"{x:.0f} ms" for x in (case["p50_ms"], case["p99_ms"], bare["p50_ms"], bare["p99_ms"])]
            found.append([case["title"], *figures, f"{case['ratio']:.2f}", verdict(results, name)])
    return found


def memory(results: dict[str, Any]) -> str:
    """The worker that took most memory beside its state, against what it may."""
    cases = [case for case in results["cases"].values() if "rss_mb" in case]
    if not cases:
        return ""
    most = max(cases, key=lambda case: case["rss_mb"] - case["state_mb"])
    beside = most["rss_mb"] - most["state_mb"]
    word = "reached" if beside < WORKER_MB else "not reached"
    return (
        f"Memory beside the state: at most {beside:,} MB ({most['title']}: {most['rss_mb']:,} MB, state "
        f"{most['state_mb']:,} MB); under {WORKER_MB} MB: {word}."
    )


def tables(results: dict[str, Any]) -> list[Table]:
    """For a terminal."""
    made = []
    for cells in (rows(results), latency_rows(results)):
        if len(cells) > 1:
            table = Table(*cells[0])
            for line in cells[1:]:
                table.add_row(*line)
            made.append(table)
    return made


def markdown(results: dict[str, Any]) -> str:
    """The README's part, between its markers."""
    machine = results["machine"]
    parts = [
        f"{machine['cores']} cores ({machine['cpu']}), broker on the same cores, {results['events']:,} events, "
        f"{machine['date'][:10]}, commit `{machine['commit']}`; "
        f"load before: {machine['load_before'][0]}. Written by `make bench`, in {results['minutes']} minutes."
    ]
    for cells in (rows(results), latency_rows(results)):
        if len(cells) > 1:
            lines = ["| " + " | ".join(line) + " |" for line in cells]
            lines.insert(1, "|" + "---|" * len(cells[0]))
            parts.append("\n".join(lines))
    parts.append(memory(results))
    return "\n\n".join(filter(None, parts))


def save(results: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")


def write_readme(results: dict[str, Any], path: Path = README) -> bool:
    """Puts the table between the markers; False when the file has none."""
    text = path.read_text()
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        return False
    path.write_text(f"{head}{BEGIN}\n{markdown(results)}\n{END}{tail}")
    return True
