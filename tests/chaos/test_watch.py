"""The verifier that reads along: a log in which all is well passes, in whatever order its topics are read, and each
harm is found the moment it is read.
"""

from collections.abc import Callable

import pytest

from tests.chaos.records import Schemas
from tests.chaos.test_verify import LOCK, MemoryLog
from tests.chaos.watch import Watch


def watched(log: MemoryLog, backwards: bool = False) -> Watch:
    watch = Watch("t", Schemas("t", LOCK))
    suffixes = [suffix for suffix in watch.suffixes if f"t.{suffix}" in log.topics]
    for suffix in reversed(suffixes) if backwards else suffixes:
        for record in log.read(f"t.{suffix}"):
            watch.take(suffix, record)
    return watch


@pytest.mark.parametrize("backwards", [False, True])
def test_a_log_in_which_all_is_well_passes_whichever_topic_is_read_first(backwards: bool) -> None:
    log = MemoryLog()
    verdict = watched(log, backwards).settle(log)
    assert verdict.ok, verdict.json()
    assert verdict.counts["predictions"] == 4


HARM: dict[str, tuple[Callable[[MemoryLog], object], str]] = {
    "an event is doubled": (lambda log: log.double("events", 0), "duplicated"),
    "a prediction is doubled": (lambda log: log.double("predictions", 1), "duplicated"),
    "a prediction's outcome is doubled": (lambda log: log.double("outcomes", 0), "duplicated"),
    "a drop is doubled": (lambda log: log.double("dropped", 0), "duplicated"),
    "a dead letter is doubled": (lambda log: log.double("dead", 1), "duplicated"),
    "two events of a key are swapped": (lambda log: log.swap("events", 0, 1), "misordered"),
    "two predictions are swapped": (lambda log: log.swap("predictions", 0, 1), "misordered"),
    "a prediction is cut short": (lambda log: log.replace("predictions", 0, value=b"\0"), "unreadable"),
    "a prediction's features are not there": (lambda log: log.drop("features", 0), "stranger"),
    "an offset comes again": (lambda log: log.replace("events", 1, offset=0), "repeated"),
}


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("harm", HARM)
def test_harm_is_found_and_named(harm: str, backwards: bool) -> None:
    log = MemoryLog()
    do, kind = HARM[harm]
    do(log)
    watch = watched(log, backwards)
    assert kind in watch.settle(log).findings


def test_what_was_seen_must_stay() -> None:
    log = MemoryLog()
    watch = watched(log)
    log.drop("predictions", 1)
    assert watch.settle(log).findings == {"taken back": 1}


def test_what_was_seen_must_stay_as_it_was() -> None:
    log = MemoryLog()
    watch = watched(log)
    log.replace("features", 0, key=b"other")
    assert watch.settle(log).findings == {"unseen": 1}


def test_it_knows_when_it_has_seen_everything() -> None:
    log = MemoryLog()
    watch = watched(log)
    assert watch.complete(log)
    log.double("predictions", 0)
    assert not watch.complete(log)
