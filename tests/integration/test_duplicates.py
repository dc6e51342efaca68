"""A producer that sends everything twice, each time to another raw partition, and a features worker that is killed in
between: every event has one fate of its own, and each copy is dropped with the one that came first.
"""

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from confluent_kafka import Producer

from penstock.dead.letters import Filter
from penstock.dead.replay import BEFORE, SENT, Options, replay
from penstock.dead_letter import RawRow, dead_letter
from penstock.local.resolve import BrokerHandle
from penstock.plan import Plan
from penstock.records import Partition, Reason
from pipelines.flights.replay import RAW
from pipelines.flights.replay import Message as Event
from tests.integration.conftest import VERSION, Feed
from tests.integration.pipeline_world import ROOT, World, until
from tests.integration.test_kill import kill_in_the_middle
from tests.integration.test_recovery import settle

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]

HORIZON_MS = 7 * 86_400_000
STAGES = ("ingest", "features.aircraft", "features.airport", "inference")
FIRST = "features.aircraft"


class Repeating(World):
    """Sends every event a second time, half of them at once and half behind all others, to the next raw partition."""

    snapshots = False

    def send(self, events: Iterable[Event]) -> list[Event]:
        sent = list(events)
        producer = Producer({"bootstrap.servers": self.bootstrap, "partitioner": "murmur2_random"})
        raw, later, count = self.topic(RAW), [], self.plan.partitions
        for n, event in enumerate(sent):
            if event.topic != RAW:
                producer.produce(self.topic(event.topic), event.value, event.key)
                continue
            producer.produce(raw, event.value, event.key, n % count)
            if n % 2:
                later.append((event, (n + 1) % count))
            else:
                producer.produce(raw, event.value, event.key, (n + 1) % count)
        for event, partition in later:
            producer.produce(raw, event.value, event.key, partition)
        assert producer.flush(30) == 0
        self.events += [*sent, *(event for event in sent if event.topic == RAW)]
        return sent


@pytest.fixture(scope="module", params=["snapshots", "replay alone"])
def repeating(
    request: pytest.FixtureRequest,
    broker: BrokerHandle,
    flights_plan: Plan,
    flights_models: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Repeating]:
    event = flights_plan.event.model_copy(update={"deduplicate_ms": HORIZON_MS})
    plan = flights_plan.model_copy(update={"event": event})
    folder, name = tmp_path_factory.mktemp("repeating"), f"repeating_{uuid4().hex[:8]}"
    interval_s = 0.2 if request.param == "snapshots" else 3600.0
    here = Path.cwd()
    os.chdir(ROOT)  # workers import pipelines.flights from where they run
    try:
        with Repeating(
            plan,
            name,
            broker.bootstrap,
            folder,
            flights_models,
            VERSION,
            stages=STAGES,
            max_batch_rows=64,
            snapshot_interval_s=interval_s,
        ) as running:
            running.snapshots = request.param == "snapshots"
            yield running
    finally:
        os.chdir(here)


def test_copies_in_other_partitions_are_dropped_with_their_first_over_kills(repeating: Repeating, feed: Feed) -> None:
    for _ in range(2):
        kill_in_the_middle(repeating, feed, FIRST, 40)
        repeating.finish()
        if repeating.snapshots:
            settle(repeating, FIRST)  # else the next kill may come before there is one
    repeating.check()
    starts = [re.search(r"from (\d+), live from (\d+)", line["message"]) for line in repeating.said(FIRST)]
    back = [(int(found[1]), int(found[2])) for found in starts if found and found[2] != "0"]
    assert back, "it was not assigned what it had before"
    assert any(start > 0 for start, _ in back) == repeating.snapshots, back

    ids = [repeating.row(event)["flight_id"] for event in repeating.events if event.topic == RAW]
    assert set(Counter(ids).values()) == {2}
    dropped = repeating.rows("dropped")
    copies = [row for row in dropped if row["reason"] == "duplicate"]
    assert Counter(row["event_id"] for row in copies) == dict.fromkeys(ids, 1)
    assert {row["stage"] for row in copies} == {FIRST}
    raw = {
        (message.partition(), message.offset()): repeating.schemas.decode(message.value())["flight_id"]
        for message in repeating.records(RAW)
        if (message.value() or b"").startswith(b"\0")
    }
    for row in copies:
        place, offset = row["message"].rpartition("/")[2].split("@")
        first = int(place), int(offset)
        assert first != (row["origin_partition"], row["origin_offset"])
        assert first[0] != row["origin_partition"], "it lies in another partition"
        assert raw.get(first, row["event_id"]) == row["event_id"]

    served = Counter(row["prediction_id"] for row in repeating.rows("predictions"))
    others = Counter(row["event_id"] for row in dropped if row["reason"] != "duplicate")
    assert served + others == dict.fromkeys(ids, 1)
    assert len(served) > len(others)
    for view in ("aircraft_delays", "airport_delays"):
        rows = Counter(row["_event_id"] for row in repeating.rows(f"view.{view}"))
        assert set(rows.values()) == {1}, "no window counted a copy"


def test_the_replay_of_an_event_that_died_behind_is_predicted_and_a_later_copy_of_it_is_not(
    repeating: Repeating, feed: Feed
) -> None:
    """Twice: the second letter is of the first replay. The letters are put there by hand."""
    repeating.play(feed.take(40))
    served = repeating.rows("predictions")[-1]
    flight, origin = served["prediction_id"], placed(served)
    (copied,) = [m for m in repeating.records(RAW) if (m.partition(), m.offset()) == origin]
    producer, met = Producer({"bootstrap.servers": repeating.bootstrap}), {origin}
    for times in (1, 2):
        (died,) = [m for m in repeating.records("features") if of(repeating.schemas.decode(m.value())) == origin]
        row = RawRow(
            Partition(died.topic(), died.partition()),
            died.offset(),
            0,
            died.key(),
            died.value(),
            [],
            (repeating.topic(RAW), *origin),
        )
        letter = dead_letter(row, Reason("by hand", ""), "inference", {})
        producer.produce(repeating.topic("dead"), letter.value, letter.key, headers=letter.headers)
        assert producer.flush(30) == 0
        report = replay(repeating.settings, repeating.topic("dead"), Filter(reason="by hand"), Options())
        assert report.counts == {SENT: 1, **({BEFORE: 1} if times == 2 else {})}

        def anew() -> set[tuple[int, int]]:
            return {placed(row) for row in repeating.rows("predictions") if row["prediction_id"] == flight} - met

        (origin,) = until("its prediction", anew)
        met.add(origin)

    first = f"{repeating.topic(RAW)}/{copied.partition()}@{copied.offset()}"

    def told() -> list[str]:
        return [row["message"] for row in repeating.rows("dropped") if row["event_id"] == flight]

    before = len(told())
    producer.produce(repeating.topic(RAW), copied.value(), copied.key(), copied.partition())
    assert producer.flush(30) == 0
    until("the copy's note", lambda: len(told()) > before)
    assert all(message.endswith(first) for message in told())
    assert not anew()


def placed(row: dict[str, Any]) -> tuple[int, int]:
    return row["origin_partition"], row["origin_offset"]


def of(event: dict[str, Any]) -> tuple[int, int]:
    return event["_origin_partition"], event["_origin_offset"]
