"""Bad messages among good ones: none, one in a hundred and one in two, of every kind that the replay knows; and good
ones of which bytes were changed, lost or put in at random."""

import random
from collections import Counter
from collections.abc import Iterator
from itertools import islice

from pipelines.flights.broken import HEADER, KINDS, RARE, Breaker
from pipelines.flights.replay import Message, schema
from tests.chaos.harness import OUTPUT, Lab, Result, Trial
from tests.integration.test_dead_letters import REASONS

NAME = "poison"
HOLDS = "all good ones through, all bad ones dead-lettered for the right reason"
MUTATED = "mutated"
MUTATIONS = 1000
BURST = 1500
SHARES = (0.0, 0.01, 0.5)


def run(lab: Lab, rounds: int, result: Result) -> None:
    draw = lab.random(NAME)
    with lab.trial(result, rate=0, stages=list(OUTPUT)) as trial:
        breaker = Breaker(schema("event"), lab.plan.event.id)
        good = lab.feed()
        bad = broken(trial, breaker, lab.feed(), draw)
        trial.burst(list(islice(good, 300)))  # warm
        speed: dict[float, float] = {}
        for _ in range(rounds):
            for share in SHARES:
                result.tell(f"{share:.0%} bad")
                events = mixed(good, bad, share, draw)
                speed[share] = len(events) / trial.burst(events)
                result.trials += 1
        result.notes["messages a second without bad ones"] = round(speed[0.0])
        for share in SHARES[1:]:
            result.notes[f"with {share:.0%} bad ones"] = f"{speed[share] / speed[0.0] - 1:+.0%}"
        result.tell("mutations")
        victims = [event for event in islice(good, 4 * MUTATIONS) if event.topic == "raw" and event.value]
        trial.burst([mutated(draw.choice(victims), draw) for _ in range(MUTATIONS * rounds)])
        result.trials += 1
        judge_letters(trial)


def broken(trial: Trial, breaker: Breaker, feed: Iterator[Message], draw: random.Random) -> Iterator[Message]:
    """Every kind in turn, each of another event."""
    rows = (plain(trial, event) for event in feed if event.topic == "raw" and (event.value or b"")[:1] == b"\0")
    number = 0
    while True:
        for kind in draw.sample(sorted(KINDS), len(KINDS)):
            if kind in RARE and number:
                continue  # once, as in the replay: it is a megabyte
            number += 1
            yield Message("raw", f"broken-{number}".encode(), breaker.value(kind, next(rows)), 0, kind)


def plain(trial: Trial, event: Message) -> dict[str, object]:
    """An event as the breaker takes it: times are ms since epoch."""
    row = trial.world.schemas.decode(event.value)
    return {k: round(v.timestamp() * 1000) if hasattr(v, "timestamp") else v for k, v in row.items()}


def mixed(good: Iterator[Message], bad: Iterator[Message], share: float, draw: random.Random) -> list[Message]:
    return [next(bad) if draw.random() < share else next(good) for _ in range(BURST)]


def mutated(event: Message, draw: random.Random) -> Message:
    """One to four bytes are changed, taken out or put in."""
    value = bytearray(event.value or b"")
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(max(1, len(value)))
        match draw.randrange(3):
            case 0 if value:
                value[at] = draw.randrange(256)
            case 1 if value:
                del value[at]
            case _:
                value.insert(at, draw.randrange(256))
    return Message("raw", event.key, bytes(value), event.time, MUTATED)


def judge_letters(trial: Trial) -> None:
    """What was broken on purpose is dead for its reason. A mutation may still be a good event, but one that fastavro
    cannot read is dead too."""
    world, result = trial.world, trial.result
    letters: Counter[str] = Counter()
    dead: Counter[bytes | None] = Counter()
    for message in world.records("dead"):
        headers = {name: (value or b"").decode(errors="replace") for name, value in message.headers() or []}
        kind, reason = headers.get(HEADER, "good"), headers["penstock.reason"]
        letters[kind] += 1
        dead[message.value()] += kind == MUTATED
        if kind in REASONS and reason == REASONS[kind][0]:
            result.dead_as_expected += 1
        elif kind != MUTATED:
            trial.problem(f"a dead letter of a {kind} event has the reason {reason!r}")
    sent = Counter(event.broken for event in world.events if event.broken)
    for kind, n in sent.items():
        if kind != MUTATED and letters[kind] != n:
            trial.problem(f"{letters[kind]} dead letters of {n} events that were broken as {kind!r}")
    unreadable = Counter(
        event.value for event in world.events if event.broken == MUTATED and not readable(trial, event.value)
    )
    if missing := unreadable - dead:
        trial.problem(f"{missing.total()} mutations that fastavro cannot read are no dead letters: {list(missing)[:3]}")
    result.dead_as_expected += unreadable.total() - missing.total()
    result.notes["mutations that were still good events"] = sent[MUTATED] - letters[MUTATED]
    trial.expected_dead = letters.total()


def readable(trial: Trial, value: bytes | None) -> bool:
    if (value or b"")[:1] == b"{":
        return True  # JSON is not fastavro's to judge
    try:
        trial.world.schemas.decode(value)
    except (ValueError, OverflowError, MemoryError):
        return False
    return True
