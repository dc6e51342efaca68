"""Runs until Ctrl-C or SIGTERM, and makes both of them an orderly end: what was started is ended by its ``with``."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType


@contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM and SIGHUP raise ``KeyboardInterrupt`` here, as Ctrl-C does."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    former = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def until_interrupted(say: Callable[[], None], check: Callable[[], None], every_s: float = 0.5) -> None:
    """Says that it runs until Ctrl-C, then calls ``check`` again and again until it comes; a Ctrl-C that comes the
    moment it was said is one."""
    with suppress(KeyboardInterrupt):
        say()
        while True:
            check()
            time.sleep(every_s)
