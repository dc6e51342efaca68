"""What one check found."""

from typing import NamedTuple


class CheckResult(NamedTuple):
    """``subject`` is the stage, function or object looked at; ``message`` says what is wrong and the mend, or what to
    know."""

    check: str
    subject: str
    passed: bool
    message: str = ""
