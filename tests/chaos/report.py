"""What a run came to: ``summary.json`` for machines, and the table of ``docs/reliability.md`` for people."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from tests.chaos.harness import Result, percentile

ABORTS = "aborts"
"""The scenario of many small faults in the client, which would drown the others'."""
CONTROL = "control"
"""The scenario without the guarantee: doubles have to be seen there, and windows are not judged."""
PROBLEM = 240
"""Characters of a problem on the page; the summary has it whole."""
BEGIN, END = "<!-- chaos: begin -->", "<!-- chaos: end -->"


def summary(
    results: Sequence[Result], seed: int, rounds: int, load: float, commit: str, before: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """``load``: of the machine before the run; ``commit``: that is run; ``before``: the summary of a former run, whose
    other scenarios are kept where it had the same seed and rounds."""
    run = {"commit": commit, "load_before": round(load, 1)}
    found = {result.scenario: {**facts(result), **run} for result in results}
    if before is not None and (before["seed"], before["rounds"]) == (seed, rounds):
        found = dict(sorted({**before["scenarios"], **found}.items()))
    return {
        "seed": seed,
        "rounds": rounds,
        "cores": os.cpu_count(),
        "passed": all(facts["passed"] for facts in found.values()),
        "scenarios": found,
    }


def facts(result: Result) -> dict[str, Any]:
    return {
        "trials": result.trials,
        "judged": result.judged,
        "inputs": result.inputs,
        "lost": result.lost,
        "duplicated": result.duplicated,
        "wrong_windows": result.wrong_windows,
        "dead_as_expected": result.dead_as_expected,
        "recovery_p95_s": rounded(percentile(result.recoveries, 0.95)),
        "passed": result.passed,
        "seconds": rounded(result.seconds),
        "recovery_p50_s": rounded(percentile(result.recoveries, 0.5)),
        "recovery_parts_p50_s": {part: rounded(median(took)) for part, took in result.parts.items()},
        "notes": result.notes,
        "problems": result.problems,
        "examples": result.examples,
    }


def rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)


def read_summary(path: Path) -> dict[str, Any] | None:
    """None where there is none, or one that another version wrote."""
    try:
        said = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    whole = isinstance(said, dict) and all("commit" in found for found in said.get("scenarios", {"": {}}).values())
    return said if whole else None


def write_summary(path: Path, said: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(said, indent=1, default=str) + "\n", "utf-8")


def bound(bad: int, n: int) -> str:
    """0 in n bounds the rate below 3/n at 95 % (the rule of three; Hanley and Lippman-Hand 1983)."""
    if not n:
        return "nothing was tried"
    return f"{bad} in {n:,}" if bad else f"0 in {n:,}: below {3 / n:.1e}"


def table(said: dict[str, Any]) -> str:
    """The run as Markdown."""
    lines = [
        f"`make chaos SEED={said['seed']} ROUNDS={said['rounds']}`, {said['cores']} cores with broker, workers "
        f"and verifiers on them; {_runs(said['scenarios'])}:",
        "",
        "| scenario | faults (verified) | inputs | lost | doubled | wrong windows | dead as expected | "
        "back after, p50 / p95 | |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, found in said["scenarios"].items():
        back = "" if found["recovery_p95_s"] is None else f"{found['recovery_p50_s']} / {found['recovery_p95_s']} s"
        lines.append(
            f"| {name} | {found['trials']} ({found['judged']}) | {found['inputs']:,} | {found['lost']} | "
            f"{found['duplicated']} | {'' if name == CONTROL else found['wrong_windows']} | "
            f"{found['dead_as_expected']} | {back} | "
            f"{'passed' if found['passed'] else '**failed**'} |"
        )
    guaranteed = [found for name, found in said["scenarios"].items() if name != CONTROL]
    inputs = sum(found["inputs"] for found in guaranteed)
    judged = sum(found["judged"] for found in guaranteed)
    lost, doubled = (sum(found[what] for found in guaranteed) for what in ("lost", "duplicated"))
    aborts = sum(found["judged"] for name, found in said["scenarios"].items() if name == ABORTS)
    harmed = sum(bool(found["lost"] or found["duplicated"]) for found in guaranteed)
    lines += [
        "",
        f"Over all scenarios but the control, per input lost: {bound(lost, inputs)}; doubled: {bound(doubled, inputs)}."
        f" A pipeline is verified after many faults at once; scenarios that lost or doubled anything: {harmed}. "
        f"Per fault whose pipeline was verified to its end, transactions that were made to abort apart: "
        f"{bound(0, judged - aborts) if not harmed else 'no bound'}. (0 in n bounds the rate below 3/n at 95 %.)",
    ]
    for name, found in said["scenarios"].items():
        if found["recovery_parts_p50_s"]:
            parts = ", ".join(f"{part} {took} s" for part, took in found["recovery_parts_p50_s"].items())
            lines += ["", f"Parts of a recovery in *{name}*, medians: {parts}."]
        if notes := {key: value for key, value in found["notes"].items() if key != "examples"}:
            lines += ["", f"*{name}*: " + "; ".join(f"{key} {_short(value)}" for key, value in notes.items()) + "."]
        for problem in found["problems"]:
            lines += ["", f"*{name}* failed: {problem.splitlines()[0][:PROBLEM]}"]
    return "\n".join(lines)


def _runs(scenarios: Mapping[str, Mapping[str, Any]]) -> str:
    """Which commit was run, with what load before it; and which scenarios were run apart from the others."""
    runs: dict[tuple[str, float], list[str]] = {}
    for name, found in scenarios.items():
        runs.setdefault((found["commit"], found["load_before"]), []).append(name)
    first, *others = sorted(runs.items(), key=lambda run: -len(run[1]))
    texts = [f"commit {first[0][0]}, load before: {first[0][1]}"]
    texts += [f"{', '.join(names)} of commit {commit}, load before: {load}" for (commit, load), names in others]
    return "; ".join(texts)


def _short(value: Any) -> str:
    return f"{min(value)}–{max(value)}" if isinstance(value, list) and value else str(value)


def write_table(page: Path, text: str) -> None:
    """Puts the table between the page's two marks. Raises ValueError where it has none."""
    whole = page.read_text("utf-8")
    before, begin, rest = whole.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{page} has no marks {BEGIN} and {END} between which the table belongs. Put them back")
    page.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", "utf-8")
