"""A bad network between the broker and everybody else: slow answers, resets, a cable that is pulled and put back, peers
that are gone without a word, a line that carries little, and the end of a transaction that arrives when a later one is
open.
"""

import math
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from tests.chaos.harness import OUTPUT, PATIENCE_S, Lab, Result, Trial
from tests.chaos.proxy import BrokerBehind
from tests.integration.late_endtxn import ENDINGS, HoldingProxy, attempts
from tests.integration.pipeline_world import until

NAME = "network"
HOLDS = (
    "nothing lost, nothing doubled, and the stream goes on when the network does; a late EndTxn decides nothing, and"
    " would without its guard"
)
DELAY_S = 0.3
PULLED_S = 7.0
"""Longer than a session."""
BAD_S = 2.0
SLOW_BYTES_PER_S = 10_000
RESETS = 5
BACK_S = 60.0
NOTICED_S = 150.0
"""A request on a connection whose peer is gone is given up after half a minute."""
LATE = ("ingest", "features.aircraft", "inference")
"""Whose EndTxn is kept back: a stage without windows, one with them, the last."""
CONTROLS = 3
"""Trials without the guard of each ending, a round."""
TOOK_OVER = "a new producer takes over: an end was asked for twice"


def run(lab: Lab, rounds: int, result: Result) -> None:
    draw = lab.random(NAME)
    folder = lab.folder / "broker-behind"
    shutil.rmtree(folder, ignore_errors=True)
    with HoldingProxy() as proxy, BrokerBehind(folder, proxy) as broker:
        for harms, every in PIPELINES.items():
            # so that one that does not come back hides not all others
            try:
                with lab.trial(result, rate=100, stages=list(OUTPUT), bootstrap=broker.bootstrap) as trial:
                    trial.flowing()
                    times = math.ceil(rounds / every)
                    for number in range(1, times + 1):
                        for name in harms:
                            result.tell(f"{name}, {number} of {times}")
                            HARM[name](trial, proxy, draw)
            except AssertionError as error:
                result.problems.append(f"in a pipeline with {', '.join(harms)}: {error}")
        result.tell("late EndTxns without the guard")
        control(result, proxy, broker.bootstrap, CONTROLS * rounds)


Bad = Callable[[HoldingProxy, random.Random], AbstractContextManager[None]]


def while_bad(name: str, bad: Bad, back_s: float = BACK_S) -> Callable[[Trial, HoldingProxy, random.Random], None]:
    def harm(trial: Trial, proxy: HoldingProxy, draw: random.Random) -> None:
        with bad(proxy, draw):
            time.sleep(draw.uniform(0.2, 0.5))
        trial.result.trials += 1
        began = time.time()
        trial.flowing(back_s)
        took = round(time.time() - began, 1)
        trial.result.notes.setdefault(f"after {name}: new predictions, s", []).append(took)

    return harm


@contextmanager
def delayed(proxy: HoldingProxy, draw: random.Random) -> Iterator[None]:
    proxy.delay_s = DELAY_S * draw.uniform(0.3, 1.0)
    yield
    time.sleep(BAD_S)
    proxy.delay_s = 0.0


@contextmanager
def reset(proxy: HoldingProxy, draw: random.Random) -> Iterator[None]:
    for _ in range(RESETS):
        proxy.reset()
        time.sleep(draw.uniform(0.05, 0.6))
    yield


@contextmanager
def pulled(proxy: HoldingProxy, draw: random.Random) -> Iterator[None]:
    proxy.open = False
    yield
    time.sleep(PULLED_S)
    proxy.open = True


@contextmanager
def lost(proxy: HoldingProxy, draw: random.Random) -> Iterator[None]:
    proxy.lose()
    yield


@contextmanager
def slow(proxy: HoldingProxy, draw: random.Random) -> Iterator[None]:
    proxy.bytes_per_s = SLOW_BYTES_PER_S
    yield
    time.sleep(BAD_S)
    proxy.bytes_per_s = 0


def half_open(trial: Trial, proxy: HoldingProxy, draw: random.Random) -> None:
    while_bad("half-open connections", lost, NOTICED_S)(trial, proxy, draw)
    proxy.reset()  # connections on which nobody asked since, which are ours: they would be noticed when somebody does
    trial.flowing(BACK_S)


def late(trial: Trial, proxy: HoldingProxy, draw: random.Random) -> None:
    """The EndTxn of one worker is lost with its connection, asked for again, and arrives in a later transaction."""
    for stage in draw.sample(LATE, len(LATE)):
        late_of(trial, proxy, stage)


def late_of(trial: Trial, proxy: HoldingProxy, stage: str) -> None:
    world, seen = trial.world, acted(trial, stage)
    proxy.whose, proxy.hold = world.plan.group(stage), "reset"
    until(f"an EndTxn of {stage} to keep back", lambda: proxy.held, PATIENCE_S, 0.02)

    def gone_on() -> bool:
        world.supervisor.check()
        return acted(trial, stage) != seen

    try:
        until(f"{stage} to begin a transaction after it", gone_on, PATIENCE_S / 4, 0.02)
    except AssertionError:
        trial.problem(f"an EndTxn of {stage} was lost and asked for again, and nothing was done about it")
    trial.new_output(OUTPUT[stage], time.time())
    code = proxy.release()
    trial.result.trials += 1
    counts = trial.result.notes.setdefault(
        "late EndTxns with the guard", {"kept back": 0, "refused by the broker": 0, "new producers": 0, "ends": 0}
    )
    found = acted(trial, stage) - seen
    counts["kept back"] += 1
    counts["refused by the broker"] += code != 0
    counts["new producers"] += found["new producers"]
    counts["ends"] += found["ends"]
    if code == 0:
        trial.problem(f"the broker took a late EndTxn of {stage} into a later transaction")
    trial.flowing(BACK_S)


def acted(trial: Trial, stage: str) -> Counter[str]:
    """How often a worker kept out what may come late: by a new producer, or by ending."""
    said = [line["message"] for line in trial.world.said(stage)]
    return Counter({"new producers": said.count(TOOK_OVER), "ends": trial.world.restarts(stage)})


def control(result: Result, proxy: HoldingProxy, bootstrap: str, trials: int) -> None:
    """Without the guard the late one decides: else all of this would show nothing."""
    proxy.whose = ""
    found: Counter[str] = Counter()
    for held in ENDINGS:
        found += attempts(proxy, bootstrap, trials, "reset", held, guarded=False)
    result.notes["late EndTxns without the guard"] = dict(found)
    if found["decided by the late one"] != len(ENDINGS) * trials:
        result.problems.append(f"without the guard late EndTxns were to decide {len(ENDINGS) * trials} times: {found}")


HARM: dict[str, Callable[[Trial, HoldingProxy, random.Random], None]] = {
    "slow answers": while_bad("slow answers", delayed),
    "a slow line": while_bad("a slow line", slow),
    "late EndTxns": late,
    "resets": while_bad("resets", reset),
    "a pulled cable": while_bad("a pulled cable", pulled),
    "half-open connections": half_open,
}
PIPELINES = {
    ("slow answers", "a slow line", "late EndTxns"): 1,
    ("resets", "a pulled cable"): 1,
    ("half-open connections",): 5,
}
"""Which harms share one, and one in how many rounds has them: what is half-open is noticed after half a minute."""
