"""Every reason for which the product may make a dead letter or a drop, read from its source, is one that a test holds
against a real record. A new reason has to be entered here, with the test that sees it.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.test_layers import modules

TESTS = Path(__file__).parents[1]
AT = {"Reason": 0, "BadRow": 0, "_Wrong": 0, "_reason": 0, "FieldCheck": 1}
"""What makes one, and which of its arguments the reason is."""
PASSED_ON = {"bad.reason", "why.reason", "self.kind", "kind", "plan.when.otherwise"}
"""Made elsewhere, or the pipeline's own."""

SEEN = {
    "integration/test_dead_letters.py": {
        "bad magic",
        "empty",
        "event time in the future",
        "event time out of range",
        "invalid utf-8",
        "malformed json",
        "missing field",
        "model failed",
        "model gave no score",
        "not a finite number",
        "out of range",
        "pattern mismatch",
        "too large",
        "trailing bytes",
        "truncated or malformed avro",
        "unknown schema id",
        "unresolvable schema",
        "wrong type",
    },
    "integration/test_dead_command.py": {"no event time", "unsupported schema"},
    "integration/test_duplicates.py": {"duplicate"},
    "integration/test_doctor.py": {"probe"},
    "integration/test_killers.py": {"killed the worker"},
    "contract/test_transports.py": {"output does not fit its schema", "refused by the broker", "stage failed"},
    "integration/test_broken_deploy.py": {"feature function failed"},
}
"""Test file → the reasons that it holds against records."""


def reasons() -> Iterator[tuple[str, str]]:
    """Where, and the reason; what is neither a text nor a constant of a text is given as it is written."""
    trees = {name: ast.parse(file.read_text("utf-8")) for name, file in modules().items()}
    for name, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                if called in AT and len(node.args) > AT[called]:
                    yield f"{name}:{node.lineno}", _text(trees, name, node.args[AT[called]])


def _text(trees: dict[str, ast.Module], module: str, given: ast.expr) -> str:
    if isinstance(given, ast.Constant):
        return str(given.value)
    for node in trees[module].body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == ast.unparse(given):
            return _text(trees, module, node.value)
        if isinstance(node, ast.ImportFrom) and node.module in trees:
            for alias in node.names:
                if (alias.asname or alias.name) == ast.unparse(given):
                    return _text(trees, node.module, ast.Name(alias.name))
    return ast.unparse(given)


def test_every_reason_is_seen_by_a_test() -> None:
    found = {reason: where for where, reason in reasons() if reason not in PASSED_ON | {""}}
    listed = set().union(*SEEN.values())
    assert {reason: where for reason, where in found.items() if reason not in listed} == {}
    assert listed - found.keys() == set()


@pytest.mark.parametrize("file", sorted(SEEN))
def test_the_test_that_is_named_knows_the_reason(file: str) -> None:
    text = (TESTS / file).read_text("utf-8")
    assert {reason for reason in SEEN[file] if not re.search(f"(['\"]){re.escape(reason)}\\1", text)} == set()
