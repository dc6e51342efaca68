"""What this run leaves out because the machine lacks it. Said where the run begins and at its end, never as a silent
skip; ``make test`` repeats it in its last lines, from the file that PENSTOCK_NOT_RUN names.
"""

import os
from pathlib import Path

import pytest


def leave_out(config: pytest.Config, items: list[pytest.Item], where: Path) -> bool:
    """Deselects the tests at or below ``where``; True when there were any."""
    left_out = [item for item in items if item.path == where or where in item.path.parents]
    items[:] = [item for item in items if item not in left_out]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
    return bool(left_out)


def tell(reporter: pytest.TerminalReporter, what: str) -> None:
    """The closing line."""
    reporter.write_line(f"not run: {what}")
    note(what)


def note(what: str) -> None:
    """For the last lines of ``make test``."""
    if "PENSTOCK_NOT_RUN" in os.environ:
        with Path(os.environ["PENSTOCK_NOT_RUN"]).open("a") as file:
            file.write(f"{what}\n")
