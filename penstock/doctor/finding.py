"""What one look at a deployment found: a verdict, what was seen, and the mend where there is something to mend."""

from typing import Literal, NamedTuple

Verdict = Literal["ok", "warn", "fail", "not looked at"]


class Finding(NamedTuple):
    """``check`` names what was looked at; ``seen`` says what was found there, or why it was not looked at."""

    check: str
    verdict: Verdict
    seen: str
    mend: str = ""


def ok(check: str, seen: str) -> Finding:
    return Finding(check, "ok", seen)


def warn(check: str, seen: str, mend: str) -> Finding:
    return Finding(check, "warn", seen, mend)


def fail(check: str, seen: str, mend: str) -> Finding:
    return Finding(check, "fail", seen, mend)


def unseen(check: str, why: str) -> Finding:
    return Finding(check, "not looked at", why)
