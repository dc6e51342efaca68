"""The broker's clock against ours. Append times are the broker's, and ingest judges by them which event times lie in
the future: a clock that is off by more than that allowance makes every event a dead letter, or lets any pass.
"""

from collections.abc import Iterator

from penstock.doctor.finding import Finding, fail, ok, unseen, warn
from penstock.doctor.rights import AbortedWrite

CHECK = "clock"
NOTICED_MS = 1_000


def check_clock(write: AbortedWrite, future_ms: int) -> Iterator[Finding]:
    """Judges by the append time that the broker's answer to the aborted write named; nobody can read that row."""
    if write.sent is None or write.appended is None or write.heard is None:
        yield unseen(CHECK, "no write was answered with an append time")
        return
    yield judge(skew_ms(write.sent, write.appended, write.heard), future_ms)


def skew_ms(sent: float, appended: float, heard: float) -> float:
    """How far the broker's clock is ahead of ours at the least, ms; negative: behind. Zero where the append time lies
    between sending and hearing of it: nothing more can be told."""
    return max(0.0, appended - heard) + min(0.0, appended - sent)


def judge(skew: float, future_ms: int) -> Finding:
    """``future_ms``: how far an event time may lie ahead of its arrival."""
    seen = f"the broker's clock is {abs(skew) / 1000:.3f} s {'ahead of' if skew >= 0 else 'behind'} this machine's"
    mend = "let both keep time by NTP (chronyc tracking)"
    if abs(skew) > future_ms:
        return fail(CHECK, f"{seen}, more than the {future_ms / 1000:g} s that an event may lie in the future", mend)
    if abs(skew) > NOTICED_MS:
        return warn(CHECK, seen, mend)
    return ok(CHECK, "the broker's clock is this machine's, as exact as one write can tell" if skew == 0 else seen)
