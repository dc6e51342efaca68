"""Synthetic card transactions, as columns: most cards do ordinary things, a few are stolen. A thief tries the card with
some small amounts and then takes large ones, mostly abroad and without the card, all within minutes.

The event time advances by a fixed step, so that n events always cover the same span however fast they are made.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from penstock.codec.arrow import arrow_schema

CARDS, MERCHANTS = 50_000, 5_000
STEP_MS = 3
EPOCH_MS = 1_700_000_000_000
REPORTED_AFTER_MS = 3_600_000
"""How long after a transaction its holder has said whether it was theirs."""

HOME, ABROAD = ("US", "DE", "GB", "FR"), ("RO", "BR", "NG", "TH", "MX", "PL")
CURRENCIES, CHANNELS = ("USD", "EUR", "GBP"), ("pos", "web", "atm")
TRAVELLING = 0.03
"""Share of honest transactions made abroad."""

TESTS, THEFTS = 4, 3
BURST = 20_000
"""Events from a thief's first transaction to the last, about: a minute at the usual step."""

Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Transactions:
    """``events``: the columns of ``event.avsc``; ``labels``: those of ``label.avsc``, one per event, in order."""

    events: pa.RecordBatch
    labels: pa.RecordBatch


def generate(
    n: int,
    start: int,
    rng: np.random.Generator,
    fraud_rate: float = 0.01,
    first_ms: int = EPOCH_MS,
    step_ms: float = STEP_MS,
) -> Transactions:
    """Transactions number ``start`` to ``start + n``; about ``fraud_rate`` of them are fraud, in bursts of seven.

    Transaction i has the event time ``first_ms + i * step_ms`` (ms since epoch). Cards follow a power law.
    """
    number = np.arange(start, start + n)
    card = (rng.zipf(1.2, n) - 1) % CARDS + 1
    amount = rng.lognormal(3, 1, n)
    away = rng.random(n) < TRAVELLING
    present = rng.random(n) < 0.5
    channel = rng.integers(0, len(CHANNELS), n)
    fraud = np.zeros(n, np.bool_)

    rows, step = _bursts(n, fraud_rate, rng)
    if rows.size:
        theft = step >= TESTS
        card[rows] = rng.integers(1, CARDS + 1, len(rows))[:, None]
        amount[rows] = np.where(theft, rng.lognormal(6, 0.5, rows.shape), rng.uniform(0.5, 4, rows.shape))
        away[rows] = rng.random(rows.shape) < 0.8
        present[rows] = rng.random(rows.shape) < 0.1
        channel[rows] = CHANNELS.index("web")
        fraud[rows] = True

    country = np.where(away, len(HOME) + rng.integers(0, len(ABROAD), n), rng.integers(0, len(HOME), n))
    ids = _numbered("e", number, 12)
    times = (first_ms + np.floor(number * step_ms)).astype(np.int64)
    events = {
        "event_id": ids,
        "card_id": _numbered("c", card, 6),
        "merchant_id": _numbered("m", rng.integers(0, MERCHANTS, n), 5),
        "ts": pa.array(times, pa.timestamp("ms")),
        "amount": amount.round(2),
        "currency": _named(CURRENCIES, rng.integers(0, len(CURRENCIES), n)),
        "country": _named(HOME + ABROAD, country),
        "mcc": rng.integers(0, 10_000, n).astype(np.int32),
        "channel": _named(CHANNELS, channel),
        "lat": rng.uniform(-90, 90, n),
        "lon": rng.uniform(-180, 180, n),
        "present": present,
    }
    reported = pa.array(times + REPORTED_AFTER_MS, pa.timestamp("ms"))
    return Transactions(
        pa.RecordBatch.from_pydict(events, schema=arrow_schema(schema("event"))),
        pa.RecordBatch.from_pydict(
            {"event_id": ids, "reported_at": reported, "fraud": fraud}, schema=arrow_schema(schema("label"))
        ),
    )


def _bursts(n: int, fraud_rate: float, rng: np.random.Generator) -> tuple[Int64s, Int64s]:
    """int64[bursts, 7] twice: the rows of every burst in order, no row in two, and each row's place in its burst."""
    length = TESTS + THEFTS
    bursts = min(int(rng.poisson(n * fraud_rate / length)), n // (2 * length))
    drawn = np.sort(rng.choice(n, bursts * length, replace=False))
    # the rows of neighbouring bursts are dealt out in turn, so that thieves overlap and none takes longer than BURST
    together = max(1, bursts * BURST // max(n, 1))
    rank = np.arange(len(drawn))
    group = rank // (together * length)
    size = np.minimum(together, bursts - group * together)
    within = rank - group * together * length
    rows = np.empty((bursts, length), np.int64)
    rows[group * together + within % size, within // size] = drawn
    return rows, np.broadcast_to(np.arange(length), rows.shape)


def schema(name: str) -> dict[str, Any]:
    """The pipeline's Avro schema ``event`` or ``label``."""
    found: dict[str, Any] = json.loads(Path(__file__).with_name(f"{name}.avsc").read_text())
    return found


def _numbered(letter: str, numbers: Int64s, width: int) -> pa.Array:
    digits = pc.utf8_lpad(pa.array(numbers).cast(pa.string()), width, "0")
    return pc.binary_join_element_wise(letter, digits, "")


def _named(names: tuple[str, ...], index: Int64s) -> pa.Array:
    return pa.array(names).take(pa.array(index))
