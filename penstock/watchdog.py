"""Ends a worker that hangs in Kafka's client or a store's, where neither a signal nor an exception reaches it, and one
whose client hears nothing of Kafka any more.

Nothing is lost by it: what is not committed is done again. ``send_offsets_to_transaction`` of librdkafka keeps no
time-out, and may wait for a coordinator that is back already (its issues 5456 and 5511). A client asks the brokers
that it knows: where all have other names now, only a new one finds them (``penstock.settings.KEEPS_TRYING``).
"""

import logging
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Mapping

from penstock.health import BROKER, Health

log = logging.getLogger(__name__)

LONGEST_STOP_S = 15.0
"""Supervisors kill after 20 s and more: a worker that ends by itself says so in its log."""
LONGEST_COMMIT = 30
"""Looks: what was stopped for a while, with the machine or by a signal, has not hung. The broker itself gives up a
transaction that is open for ``transaction_timeout_ms``, 10 s."""
LONGEST_SILENCE = 60
"""Looks at which nothing was heard of Kafka for seconds. A new worker waits as long for it before it gives up."""
LOOK_EVERY_S = 1.0


def watch(health: Health, stop: Callable[[], None], longest: Mapping[str, int] | None = None) -> None:
    """From now on SIGTERM and SIGINT call ``stop``, and end the process if it is not gone ``LONGEST_STOP_S`` later. So
    does a commit that is seen in ``LONGEST_COMMIT`` looks, or what ``longest`` has: looks by phase; and silence of the
    broker that ``health`` is told to ask about.
    """
    heard, told = os.pipe()
    os.set_blocking(told, False)
    signal.set_wakeup_fd(told, warn_on_full_buffer=False)  # Python's own handlers wait for the call to end
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop())
    _start([heard], health, longest)


def watch_phases(health: Health, longest: Mapping[str, int]) -> None:
    """The same without signals, for who listens to them itself."""
    _start([], health, longest)


def _start(heard: list[int], health: Health, longest: Mapping[str, int] | None) -> None:
    known = {"commit": LONGEST_COMMIT} if longest is None else longest
    threading.Thread(target=_watch, args=(heard, health, known), name="watchdog", daemon=True).start()


def _watch(heard: list[int], health: Health, longest: Mapping[str, int]) -> None:
    told: float | None = None
    looks = unheard = 0
    while True:
        signals, _, _ = select.select(heard, [], [], LOOK_EVERY_S)
        now, doing = time.monotonic(), health.doing
        if signals:
            os.read(signals[0], 1)
            told = told or now
        elif doing is not None and doing.phase in longest and doing.seconds > looks * LOOK_EVERY_S:
            looks += 1
        else:
            looks = 0
        if told is not None and now - told > LONGEST_STOP_S:
            _end(f"not stopped {LONGEST_STOP_S:.0f} s after it was told to")
        if doing is not None and looks > longest.get(doing.phase, looks):
            _end(f"in one {doing.phase} for {longest[doing.phase] * LOOK_EVERY_S:.0f} s")
        silence = health.asked(BROKER)
        unheard = 0 if silence is None else unheard + 1
        if unheard > LONGEST_SILENCE:
            _end(f"{silence}")


def _end(why: str) -> None:
    log.error("%s: the worker ends, and what is not committed is done again", why)
    os._exit(1)
