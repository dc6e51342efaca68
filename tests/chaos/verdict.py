"""What the verifier found."""

import json
from dataclasses import dataclass, field

SHOWN = 10
"""Findings of a kind that are spelled out; all are counted."""


@dataclass(slots=True)
class Verdict:
    """``counts``: rows by what they are; ``findings``: by kind, what is wrong. Nothing found means exactly once."""

    pipeline: str
    counts: dict[str, int] = field(default_factory=dict)
    findings: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return not self.findings

    def find(self, kind: str, what: str, n: int = 1) -> None:
        if n > 0:
            self.findings[kind] = self.findings.get(kind, 0) + n
            shown = self.examples.setdefault(kind, [])
            if len(shown) < SHOWN:
                shown.append(what)

    def json(self) -> str:
        said = {"pipeline": self.pipeline, "ok": self.ok, **self.counts}
        return json.dumps(said | {"findings": self.findings, "examples": self.examples}, indent=1)
