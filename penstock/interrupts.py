"""What Ctrl-C means while the command is being imported: the process just goes. Nothing has been started then that
would have to be ended in order, and a library that is interrupted in its import says or swallows what it likes.
"""

import os
import signal

INTERRUPTED = 130
"""As shells have it: 128 and SIGINT."""


def leave_at_once() -> None:
    """From now on. Who started us may have us ignore it, as shells do with jobs in the background: then we do."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)


def raise_again() -> None:
    """From now on Ctrl-C is a ``KeyboardInterrupt``, if it was to leave at once."""
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _leave(*_: object) -> None:
    os._exit(INTERRUPTED)
