"""The oracle of the poison scenario and ingest find the same good and the same bad among events whose bytes were
changed at random; neither knows the other.
"""

import random
import time
from itertools import islice

import numpy as np
import pyarrow as pa
import pytest
from penstock_ingest.stage import IngestStage

from penstock.plan import Plan
from penstock.records import Batch
from penstock.settings import Settings
from penstock.worker import largest_message, reader, schema_lookup
from pipelines.flights import data
from pipelines.flights.broken import KINDS, RARE, Breaker
from pipelines.flights.replay import Message, Replay, schema
from tests.chaos.harness import quick_plan
from tests.chaos.oracle import Oracle
from tests.chaos.scenarios.poison import MORE, mutated
from tests.integration.pipeline_world import ROOT
from tests.integration.test_dead_letters import REASONS

MUTATIONS = 3000
FROM_THE_END = (
    "00000000012a323031332d30342d32312e56582e3431332e4a464b808ee6e6c54f00020c4e3633305641045658ba06064a46"
    "4b064c4158000000000056a340c0f286e6c54f02808ee6e6c54f020000000000002a40200e0802f6285c8fc275484002f628"
    "5c8fc2f53a40025cc2c2f5280e454002ab0000000000694002b229577897eb2d400002000000000000000003023333333333"
    "2b9040020000000000002440"
)
"""What one of ten thousand mutations made of a good event."""


@pytest.fixture(scope="module")
def plan() -> Plan:
    return quick_plan()


@pytest.fixture(scope="module")
def good(plan: Plan) -> list[Message]:
    """Departures of a day, Avro and JSON."""
    assert plan.label is not None
    flights = data.load(ROOT / "var/data").between("2013-04-01", "2013-04-03")
    replay = Replay(flights, (plan.event.id, plan.label.id), broken=0, seed=1)
    return [message for chunk in replay.chunks(64) for message in chunk if message.topic == "raw"]


def oracle_of(plan: Plan) -> Oracle:
    latest = round(time.time() * 1000) + plan.event.future_ms
    return Oracle(schema("event"), plan.event.id, set(plan.schemas), "timestamp", latest)


def ingested(plan: Plan, values: list[bytes | None]) -> dict[int, str]:
    """Which values ingest refuses, and for what."""
    (source, *_) = [source for source in plan.stage("ingest").inputs if source.topic.endswith(".raw")]
    decoded = reader(source, schema_lookup(plan, Settings()), largest_message(plan)).decode(
        pa.array(values, pa.binary())
    )
    n = len(decoded.index)
    none = np.zeros(n, np.int64)
    times = decoded.rows.column("timestamp").cast(pa.int64()).to_numpy(zero_copy_only=False)
    now = np.full(n, round(time.time() * 1000))
    batch = Batch(source.topic, decoded.rows, pa.nulls(n, pa.binary()), none.astype(np.int32), none, now, times, none)
    rejects = IngestStage(plan).process(batch).rejects
    found = {row: bad.reason for row, bad in decoded.bad.items()}
    return found | {int(decoded.index[row]): reason.kind for row, reason in rejects.items()}


def test_they_agree_on_what_random_changes_made_of_good_events(plan: Plan, good: list[Message]) -> None:
    draw, oracle = random.Random(1), oracle_of(plan)
    values = [mutated(draw.choice(good), draw).value for _ in range(MUTATIONS)]
    refused = ingested(plan, values)
    assert 0 < len(refused) < MUTATIONS, "some are still good"
    for row, value in enumerate(values):
        allowed, must = oracle.faults(value)
        got = refused.get(row)
        assert got in allowed if got is not None else not must, (value, got, allowed)


def test_a_branch_that_is_counted_from_the_end_is_none(plan: Plan) -> None:
    """fastavro takes the third branch for null, and what is left for bytes behind the record."""
    value = bytes.fromhex(FROM_THE_END)
    assert "truncated or malformed avro" in oracle_of(plan).faults(value)[0]
    assert ingested(plan, [value]) == {0: "truncated or malformed avro"}


def test_it_finds_nothing_wrong_with_good_events(plan: Plan, good: list[Message]) -> None:
    oracle = oracle_of(plan)
    assert {oracle.faults(message.value) for message in good} == {(frozenset(), False)}


@pytest.mark.parametrize("kind", sorted((KINDS.keys() - RARE) | MORE.keys()))
def test_it_knows_what_is_wrong_with_every_kind_of_bad_ones(kind: str, plan: Plan, good: list[Message]) -> None:
    breaker, oracle = Breaker(schema("event"), plan.event.id), oracle_of(plan)
    rows = ingested_rows(plan, good)
    make, reason = MORE[kind] if kind in MORE else (KINDS[kind], REASONS[kind][0])
    for row in rows:
        value = make(breaker, row)
        allowed, must = oracle.faults(value)
        assert must
        assert reason in allowed, value
        assert ingested(plan, [value]) == {0: reason}


def ingested_rows(plan: Plan, good: list[Message]) -> list[dict[str, object]]:
    """A few as the breaker takes them: times are ms since epoch."""
    (source, *_) = [source for source in plan.stage("ingest").inputs if source.topic.endswith(".raw")]
    values = [message.value for message in islice(good, 3)]
    rows = reader(source, schema_lookup(plan, Settings()), largest_message(plan)).decode(pa.array(values)).rows
    columns = [c.cast(pa.int64()) if pa.types.is_timestamp(c.type) else c for c in rows.columns]
    return pa.RecordBatch.from_arrays(columns, names=rows.schema.names).to_pylist()
