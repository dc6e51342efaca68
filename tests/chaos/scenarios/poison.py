"""Bad messages among good ones: none, one in a hundred and one in two, of every kind that the replay knows and of more,
a few very large ones and rows that a broker refuses among them; and good ones of which bytes were changed, lost or put
in at random.
"""

import base64
import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import groupby, islice
from typing import Any

import orjson
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ResourceType,
)

from pipelines.flights.broken import FAR_FUTURE, HEADER, KINDS, NESTING, RARE, Breaker
from pipelines.flights.replay import Message, schema
from tests.chaos.harness import OUTPUT, Lab, Result, Trial
from tests.chaos.oracle import Oracle
from tests.integration.test_dead_letters import REASONS

NAME = "poison"
HOLDS = "all good ones through, all bad ones dead-lettered for the right reason"
MUTATED, REFUSED, INDENTED = "mutated", "more than the broker takes", "on many lines, and good"
MUTATIONS = 1000
BURST = 1500
SHARES = (0.0, 0.01, 0.5)
LARGE = 10_000_000
EVENTS_TAKE, TRACE = 200_000, 400_000
"""Bytes that the events' topic takes in this pipeline, and of a trace context that makes an event more than that."""
NOISE = base64.b64encode(random.Random(NAME).randbytes(TRACE))
Row = dict[str, Any]


def _json(row: Row, **changes: Any) -> bytes:
    return orjson.dumps({**row, **changes})


def _within(row: Row, text: bytes) -> bytes:
    """``text`` as one more field of a whole object."""
    return _json(row)[:-1] + b',"note":' + text + b"}"


MORE: Mapping[str, tuple[Callable[[Breaker, Row], bytes], str]] = {
    "json null behind a blank": (lambda b, row: b" null", "malformed json"),
    "brackets behind a blank": (lambda b, row: b" " + b"[" * NESTING, "malformed json"),
    "objects that never end": (lambda b, row: b'{"a":' * NESTING, "malformed json"),
    "a bomb within": (lambda b, row: _within(row, b"[" * NESTING + b"]" * NESTING), "malformed json"),
    "NaN in json": (lambda b, row: _within(row, b"NaN"), "malformed json"),
    "a number beyond all": (lambda b, row: _within(row, b"1e999"), "malformed json"),
    "json of the far future": (lambda b, row: _json(row, timestamp=FAR_FUTURE), "event time in the future"),
    "a newline in json": (lambda b, row: _json(row, dest="J\nF"), "pattern mismatch"),
    "a newline at an end": (lambda b, row: b.avro(row, dest="JFK\n"), "pattern mismatch"),
    "an event and another": (lambda b, row: b.avro(row) + b"\n" + b.avro(row), "trailing bytes"),
}  # fmt: skip
"""Kinds that the replay does not know, and their reasons."""
VERY_LARGE: Mapping[str, tuple[Callable[[Breaker, Row], bytes | None], str]] = {
    "10 MB of avro": (lambda b, row: b.avro(row, carrier="x" * LARGE), "too large"),
    "10 MB of json": (lambda b, row: _json(row, note="x" * LARGE), "too large"),
    "10 MB of brackets": (lambda b, row: b'{"note":' + b"[" * LARGE, "too large"),
    "oversized": (KINDS["oversized"], "too large"),
}
COMMON: Mapping[str, tuple[Callable[[Breaker, Row], bytes | None], str]] = {
    **{kind: (KINDS[kind], REASONS[kind][0]) for kind in KINDS if kind not in RARE},
    **MORE,
}
OF_10_MB = [kind for kind in VERY_LARGE if kind != "oversized"]
EXPECTED = {kind: reason for kind, (_, reason) in (COMMON | VERY_LARGE).items()} | {REFUSED: "refused by the broker"}


def run(lab: Lab, rounds: int, result: Result) -> None:
    draw = lab.random(NAME)
    with lab.trial(result, rate=0, stages=list(OUTPUT)) as trial:
        takes(trial, "raw", LARGE + 1_000_000)  # so that it is ingest who has to look at them
        takes(trial, "events", EVENTS_TAKE)
        breaker = Breaker(schema("event"), lab.plan.event.id)
        good = lab.feed()
        rows = (plain(trial, event) for event in lab.feed() if is_avro(event))
        bad = broken(breaker, rows, draw)
        trial.burst(list(islice(good, 300)))  # warm
        bursts(trial, good, bad, heavy(breaker, rows, draw), draw, rounds)
        result.tell("mutations")
        victims = [event for event in islice(good, 4 * MUTATIONS) if event.topic == "raw" and event.value]
        # among as many good ones, for where nearly all is bad the worker stops and says so
        pairs = ((mutated(draw.choice(victims), draw), next(good)) for _ in range(MUTATIONS * rounds))
        trial.burst([event for pair in pairs for event in pair])
        result.trials += 1
        judge_letters(trial)


def bursts(
    trial: Trial,
    good: Iterator[Message],
    bad: Iterator[Message],
    heavies: Iterator[list[Message]],
    draw: random.Random,
    rounds: int,
) -> None:
    """Notes messages a second at each share of bad ones, all rounds together; and how long the same mixes take with a
    few heavy ones, of which each that is refused costs some aborts."""
    took: dict[float, float] = defaultdict(float)

    def mix(share: float) -> list[Message]:
        return [next(bad) if draw.random() < share else next(good) for _ in range(BURST)]

    for _ in range(rounds):
        for share in SHARES:
            trial.result.tell(f"{share:.0%} bad")
            took[share] += trial.burst(mix(share))
            trial.result.trials += share > 0
        for share in SHARES[1:]:
            trial.result.tell(f"{share:.0%} bad, some of them large or refused")
            mixed = mix(share)
            for event in next(heavies):
                mixed.insert(draw.randrange(len(mixed)), event)
            seconds = burst(trial, mixed)
            what = f"every fate of {BURST} with {share:.0%} bad ones, a few of them of 10 MB or refused, after, s"
            trial.result.notes.setdefault(what, []).append(round(seconds, 1))
            trial.result.trials += 1
    trial.result.notes["messages a second without bad ones"] = round(BURST * rounds / took[0.0])
    for share in SHARES[1:]:
        trial.result.notes[f"with {share:.0%} bad ones, none of them heavy"] = f"{took[0.0] / took[share] - 1:+.0%}"


def heavy(breaker: Breaker, rows: Iterator[Row], draw: random.Random) -> Iterator[list[Message]]:
    """What each mix of a round has besides, by turns: one of 10 MB and one refused; the other large ones and two
    refused. And one that is good on many lines. Each is another event, of names that no departure has."""
    number = 0
    while True:
        first, *others = draw.sample(OF_10_MB, len(OF_10_MB))
        for kinds in ([first, REFUSED], [*others, "oversized", REFUSED, REFUSED]):
            events = []
            for kind in [*kinds, INDENTED]:
                number += 1
                row = {**next(rows), "flight_id": f"2013-04-01.ZZ.{number}.JFK"}
                events.append(Message("raw", f"heavy-{number}".encode(), heavy_value(breaker, kind, row), 0, kind))
            yield events


def heavy_value(breaker: Breaker, kind: str, row: Row) -> bytes | None:
    """What the broker refuses is good until its trace context makes it too large for the next topic."""
    if kind == REFUSED:
        return breaker.avro(row)
    if kind == INDENTED:
        return orjson.dumps(row, option=orjson.OPT_INDENT_2)
    return VERY_LARGE[kind][0](breaker, row)


def burst(trial: Trial, events: list[Message]) -> float:
    """As the trial's, with a trace context for those that it makes too large."""
    began = time.monotonic()
    for refused, part in groupby(events, lambda event: event.broken == REFUSED):
        trial.world.send(part, [("traceparent", NOISE)] if refused else ())
    return time.monotonic() - began + trial.burst([])


def takes(trial: Trial, suffix: str, most: int) -> None:
    """A topic's largest message is made ``most`` bytes."""
    admin = AdminClient({"bootstrap.servers": trial.world.bootstrap})
    entry = ConfigEntry("max.message.bytes", str(most), incremental_operation=AlterConfigOpType.SET)
    topic = ConfigResource(ResourceType.TOPIC, trial.world.topic(suffix), incremental_configs=[entry])
    admin.incremental_alter_configs([topic])[topic].result(30)


def broken(breaker: Breaker, rows: Iterator[Row], draw: random.Random) -> Iterator[Message]:
    """Every kind in turn, each of another event."""
    number = 0
    while True:
        for kind in draw.sample(sorted(COMMON), len(COMMON)):
            number += 1
            yield Message("raw", f"broken-{number}".encode(), COMMON[kind][0](breaker, next(rows)), 0, kind)


def is_avro(event: Message) -> bool:
    return event.topic == "raw" and (event.value or b"")[:1] == b"\0"


def plain(trial: Trial, event: Message) -> Row:
    """An event as the breaker takes it: times are ms since epoch."""
    row = trial.world.schemas.decode(event.value)
    return {k: round(v.timestamp() * 1000) if hasattr(v, "timestamp") else v for k, v in row.items()}


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
    return replace(event, value=bytes(value), broken=MUTATED)


def judge_letters(trial: Trial) -> None:
    """What was broken on purpose is dead for its reason. A mutation may still be a good event: an oracle says which,
    and of the others for what they may be dead."""
    world, result = trial.world, trial.result
    letters: Counter[str] = Counter()
    wrong: Counter[tuple[str, str]] = Counter()
    dead: defaultdict[bytes | None, list[str]] = defaultdict(list)
    for message in world.records("dead"):
        headers = {name: (value or b"").decode(errors="replace") for name, value in message.headers() or []}
        kind, reason = headers.get(HEADER, "good"), headers["penstock.reason"]
        letters[kind] += 1
        if kind == MUTATED:
            dead[message.value()].append(reason)
        elif reason == EXPECTED.get(kind):
            result.dead_as_expected += 1
        else:
            wrong[kind, reason] += 1
    for (kind, reason), n in wrong.items():
        trial.problem(f"{n} dead letters of events that were broken as {kind!r} have the reason {reason!r}")
    sent = Counter(event.broken for event in world.events if event.broken)
    for kind, n in sent.items():
        if kind != MUTATED and letters[kind] != (n if kind in EXPECTED else 0):
            trial.problem(f"{letters[kind]} dead letters of {n} events that were broken as {kind!r}")
    if unsent := EXPECTED.keys() - sent.keys():
        trial.problem(f"no event was broken as {', '.join(sorted(unsent))}")
    event, known = world.plan.event, set(range(1, 1 + len(world.lock.read_text().splitlines())))
    oracle = Oracle(schema("event"), event.id, known, "timestamp", round(time.time() * 1000) + event.future_ms)
    for value in (event.value for event in world.events if event.broken == MUTATED):
        allowed, must = oracle.faults(value)
        got = dead[value].pop() if dead[value] else None
        if got is None and must:
            trial.problem(f"no dead letter of {value!r}, which is dead for {sorted(allowed)}")
        elif got is not None and got not in allowed:
            trial.problem(f"dead for {got!r}, where {sorted(allowed) or 'nothing'} is wrong with it: {value!r}")
        else:
            result.dead_as_expected += got is not None
    result.notes["mutations that were still good events"] = sent[MUTATED] - letters[MUTATED]
    trial.expected_dead = letters.total()
