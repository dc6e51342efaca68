"""The scenarios: every module here is one. ``run(lab, rounds, result)`` does it as often as ``rounds`` says: 1 is the
short form, 10 the stated counts."""

from importlib import import_module
from pkgutil import iter_modules
from typing import Any, Protocol

from tests.chaos.harness import Lab, Result


class Scenario(Protocol):
    NAME: str
    HOLDS: str

    def run(self, lab: Lab, rounds: int, result: Result) -> None: ...


def scenarios() -> dict[str, Scenario]:
    """By name, in alphabetical order."""
    found: list[Any] = [import_module(f"{__name__}.{module.name}") for module in iter_modules(__path__)]
    return {module.NAME: module for module in found}
