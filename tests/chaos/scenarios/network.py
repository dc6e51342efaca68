"""A bad network between the broker and everybody else: slow answers, resets, a cable that is pulled and put back, and a
line that carries little."""

import random
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from tests.chaos.harness import OUTPUT, Lab, Result, Trial
from tests.chaos.proxy import BrokerBehind, Proxy

NAME = "network"
HOLDS = "nothing lost, nothing doubled, and the stream goes on when the network does"
DELAY_S = 0.3
PULLED_S = 8.0
"""Longer than a session."""
SLOW_BYTES_PER_S = 100_000
RESETS = 5
BACK_S = 60.0


def run(lab: Lab, rounds: int, result: Result) -> None:
    draw = lab.random(NAME)
    with Proxy() as proxy, BrokerBehind(lab.folder / "broker-behind", proxy):
        address = f"127.0.0.1:{proxy.port}"
        for name, harm in HARM.items():
            # each in a pipeline of its own, so that one that does not come back hides no other
            try:
                with lab.trial(result, rate=100, stages=list(OUTPUT), bootstrap=address) as trial:
                    trial.flowing()
                    for number in range(1, rounds + 1):
                        result.tell(f"{name}, {number} of {rounds}")
                        with harm(proxy, draw):
                            time.sleep(draw.uniform(0.5, 2.0))
                        result.trials += 1
                        back(trial, name)
            except AssertionError as error:
                result.problems.append(f"after {name}: {error}")


def back(trial: Trial, name: str) -> None:
    began = time.time()
    trial.flowing(BACK_S)
    trial.result.notes.setdefault(f"after {name}: new predictions, s", []).append(round(time.time() - began, 1))


@contextmanager
def delayed(proxy: Proxy, draw: random.Random) -> Iterator[None]:
    proxy.delay_s = DELAY_S * draw.uniform(0.3, 1.0)
    yield
    time.sleep(4.0)
    proxy.delay_s = 0.0


@contextmanager
def reset(proxy: Proxy, draw: random.Random) -> Iterator[None]:
    for _ in range(RESETS):
        proxy.reset()
        time.sleep(draw.uniform(0.05, 1.0))
    yield


@contextmanager
def pulled(proxy: Proxy, draw: random.Random) -> Iterator[None]:
    proxy.open = False
    yield
    time.sleep(PULLED_S * draw.uniform(0.5, 1.2))
    proxy.open = True


@contextmanager
def slow(proxy: Proxy, draw: random.Random) -> Iterator[None]:
    proxy.bytes_per_s = SLOW_BYTES_PER_S
    yield
    time.sleep(4.0)
    proxy.bytes_per_s = 0


HARM: dict[str, Callable[[Proxy, random.Random], AbstractContextManager[None]]] = {
    "slow answers": delayed,
    "resets": reset,
    "a pulled cable": pulled,
    "a slow line": slow,
}
