"""Synthetic transactions: valid, reproducible, and with the fraud that was asked for."""

import collections

import fastavro
import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.codec.avro import AvroDecoder, AvroEncoder
from penstock.codec.json import JsonDecoder
from pipelines.fraud.data import CARDS, EPOCH_MS, HOME, TESTS, THEFTS, generate, schema
from pipelines.fraud.load import as_json


def test_transactions_have_unique_ids_and_a_steady_event_time() -> None:
    events = pa.Table.from_batches(
        [generate(1_000, start, np.random.default_rng(start)).events for start in (0, 1_000, 2_000)]
    )
    assert pc.count_distinct(events["event_id"]).as_py() == 3_000
    np.testing.assert_array_equal(events["ts"].cast(pa.int64()).to_numpy(), EPOCH_MS + 3 * np.arange(3_000))


def test_the_same_seed_gives_the_same_transactions() -> None:
    first, again, other = (generate(500, 0, np.random.default_rng(seed)).events for seed in (1, 1, 2))
    assert first.equals(again)
    assert not first.equals(other)


def test_every_field_is_within_what_its_schema_declares() -> None:
    events = generate(20_000, 0, np.random.default_rng(3), fraud_rate=0.05).events
    for field in schema("event")["fields"]:
        column = events[field["name"]]
        assert column.null_count == 0
        if "pattern" in field:
            assert pc.all(pc.match_substring_regex(column, field["pattern"])).as_py()
        if "minimum" in field:
            assert pc.min(column).as_py() >= field["minimum"]
            assert pc.max(column).as_py() <= field["maximum"]
    fastavro.parse_schema(schema("event"))


@pytest.mark.parametrize("rate", [0.0, 0.01, 0.1])
def test_about_the_asked_share_is_fraud(rate: float) -> None:
    labels = generate(100_000, 0, np.random.default_rng(4), fraud_rate=rate).labels
    share = pc.mean(labels["fraud"].cast(pa.float64())).as_py()
    assert share == pytest.approx(rate, rel=0.2)


@given(n=st.integers(0, 400), rate=st.floats(0, 1), seed=st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=60)
def test_a_burst_is_one_cards_small_amounts_and_then_large_ones(n: int, rate: float, seed: int) -> None:
    made = generate(n, 0, np.random.default_rng(seed), rate)
    frauds = made.events.filter(made.labels["fraud"])
    per_card = collections.Counter(frauds["card_id"].to_pylist())
    assert all(count % (TESTS + THEFTS) == 0 for count in per_card.values())
    assert made.events.num_rows == made.labels.num_rows == n
    assert frauds.num_rows % (TESTS + THEFTS) == 0
    small = pc.sum(pc.less(frauds["amount"], 5)).as_py() or 0
    assert small >= frauds.num_rows * TESTS // (TESTS + THEFTS)
    assert set(frauds["channel"].to_pylist()) <= {"web"}


def test_some_cards_are_used_much_more_than_others() -> None:
    cards = generate(50_000, 0, np.random.default_rng(5)).events["card_id"]
    counts = np.sort([c["counts"] for c in pc.value_counts(cards).to_pylist()])
    assert len(counts) < CARDS
    assert counts[-1] > 100 * np.median(counts)


def test_fraud_is_mostly_abroad_and_the_rest_is_not() -> None:
    made = generate(50_000, 0, np.random.default_rng(6), fraud_rate=0.05)
    abroad = np.array([country not in HOME for country in made.events["country"].to_pylist()])
    fraud = made.labels["fraud"].to_numpy(zero_copy_only=False)
    assert abroad[fraud].mean() > 0.7
    assert abroad[~fraud].mean() < 0.05


def test_avro_and_json_carry_the_same_transactions() -> None:
    events = generate(300, 0, np.random.default_rng(7), fraud_rate=0.1).events
    avro = AvroEncoder(schema("event"), 1).encode(events)
    texts = as_json(events)
    assert orjson.loads(texts[0])["ts"] == EPOCH_MS
    assert AvroDecoder(schema("event"), lambda _: schema("event")).decode(avro).rows.equals(events)
    assert JsonDecoder(schema("event")).decode(texts).rows.equals(events)
