"""What the watchdog ends: a process of its own, whose loop is in a call that never returns."""

import subprocess
import sys
import time

import pytest

HANGING = """
import ctypes, itertools, os, signal, sys
from penstock import watchdog
from penstock.health import BROKER, Health

watchdog.LONGEST_STOP_S, watchdog.LONGEST_COMMIT, watchdog.LONGEST_SILENCE, watchdog.LOOK_EVERY_S = 0.3, 5, 5, 0.1
health = Health()
if "write" in sys.argv:
    watchdog.watch(health, lambda: None, {"write": 5})
elif "turn" in sys.argv:
    watchdog.watch_phases(health, {"turn": 5})
else:
    watchdog.watch(health, lambda: None)
if "deaf" in sys.argv:
    health.ask(BROKER, lambda: "nothing was heard")
if "now and then" in sys.argv:
    health.ask(BROKER, itertools.cycle(["nothing was heard"] * 5 + [None]).__next__)
if "told" in sys.argv:
    os.kill(os.getpid(), signal.SIGTERM)
else:
    health.began(sys.argv[1])
print("hangs", flush=True)
for _ in range(2):
    ctypes.CDLL(None).sleep(2)  # goes on after a signal, as librdkafka's calls do
"""


@pytest.mark.parametrize(
    ("doing", "code", "why"),
    [
        ("told", 1, "not stopped 0 s after it was told to"),
        ("commit", 1, "in one commit for 0 s"),
        ("write", 1, "in one write for 0 s"),
        ("turn", 1, "in one turn for 0 s"),
        ("deaf", 1, "nothing was heard"),
        ("now and then", 0, ""),
        ("process", 0, ""),
    ],
)
def test_a_worker_ends_that_does_not_stop_is_in_one_commit_for_too_long_or_hears_nothing_of_kafka(
    doing: str, code: int, why: str
) -> None:
    began = time.monotonic()
    run = subprocess.run(
        [sys.executable, "-c", HANGING, doing], capture_output=True, text=True, timeout=60, check=False
    )
    assert run.stdout == "hangs\n"
    assert run.returncode == code
    assert why in run.stderr
    assert (time.monotonic() - began > 4) == (code == 0)
