"""The events that the other systems were measured with, envelope added, and what the windows over them must be.

Everything comes from one seed, so the reference needs no look at what was produced. Event time advances 3 ms per event.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa

EPOCH_MS, STEP_MS = 1_700_000_000_000, 3
CHUNK = 50_000
CARDS, TILE_MS, TILES = 50_000, 60_000, 60

Int64s = npt.NDArray[np.int64]
Doubles = npt.NDArray[np.float64]


def events(n: int) -> Iterator[pa.RecordBatch]:
    """The first ``n`` events as rows of ``cards.events``, in chunks."""
    rng = np.random.default_rng(7)
    milliseconds = pa.timestamp("ms")
    for start in range(0, n, CHUNK):
        size = min(CHUNK, n - start)
        number = np.arange(start, start + size)
        card, merchant, amount = _drawn(rng, size)
        times = pa.array(EPOCH_MS + number * STEP_MS).cast(milliseconds)
        ids = pa.array([f"e{i:012d}" for i in number.tolist()])
        yield pa.RecordBatch.from_pydict(
            {
                "_event_id": ids,
                "_origin_partition": pa.array(np.zeros(size, np.int32)),
                "_origin_offset": pa.array(number),
                "_event_time": times,
                "_ingest_time": times,
                "_traceparent": pa.nulls(size, pa.string()),
                "_replays": pa.nulls(size, pa.string()),
                "event_id": ids,
                "card_id": pa.array([f"c{i:06d}" for i in card.tolist()]),
                "merchant_id": pa.array([f"m{i:05d}" for i in merchant.tolist()]),
                "ts": times,
                "amount": pa.array(amount),
                "currency": _picked(rng, ("USD", "EUR", "GBP"), size),
                "country": _picked(rng, ("US", "DE", "GB", "FR"), size),
                "mcc": pa.array(rng.integers(0, 10000, size).astype(np.int32)),
                "channel": _picked(rng, ("pos", "web", "atm"), size),
                "lat": pa.array(rng.uniform(-90, 90, size)),
                "lon": pa.array(rng.uniform(-180, 180, size)),
                "present": pa.array(rng.random(size) < 0.5),
            }
        )


def _drawn(rng: np.random.Generator, size: int) -> tuple[Int64s, Int64s, Doubles]:
    """Card, merchant, amount: the order of the draws is what makes the events those of the other systems."""
    card = np.minimum(rng.zipf(1.2, size), CARDS)
    merchant = rng.integers(0, 5000, size)
    return card, merchant, rng.lognormal(3, 1, size).round(2)


def _picked(rng: np.random.Generator, names: tuple[str, ...], size: int) -> "pa.StringArray":
    return pa.array(names).take(pa.array(rng.integers(0, len(names), size)))


def reference(n: int) -> dict[str, npt.NDArray[np.generic]]:
    """What event i of ``n`` must get, by the names of the job: a window is the card's 60 newest minutes, its own
    included.
    """
    chunks = list(events(n))
    amount = np.concatenate([chunk["amount"].to_numpy() for chunk in chunks])
    names = pa.concat_arrays([chunk["card_id"] for chunk in chunks])
    card = np.char.lstrip(names.to_numpy(zero_copy_only=False).astype("S7"), b"c").astype(np.int64)
    times = EPOCH_MS + np.arange(n) * STEP_MS
    order = np.lexsort((times, card))
    place = card[order] * (1 << 36) + times[order] // TILE_MS
    first = np.searchsorted(place, place - (TILES - 1), "left")
    row = np.arange(n)
    total = np.concatenate([[0.0], np.cumsum(amount[order])])
    by_row = {
        "count_1h": row - first + 1,
        "sum_1h": total[row + 1] - total[first],
        "max_1h": range_max(amount[order], first),
    }
    found: dict[str, npt.NDArray[np.generic]] = {"card_id": card, "ts": times, "amount": amount}
    for name, values in by_row.items():
        found[name] = np.empty(n, values.dtype)
        found[name][order] = values
    return found


def range_max(values: Doubles, first: Int64s) -> Doubles:
    """The largest of ``values[first[i] : i + 1]`` for every i, by blocks of powers of two."""
    row = np.arange(len(values))
    level = np.floor(np.log2(row - first + 1)).astype(np.int64)
    out = np.empty(len(values))
    blocks = values
    for power in range(int(level.max()) + 1 if len(values) else 0):
        at = np.flatnonzero(level == power)
        width = 1 << power
        out[at] = np.maximum(blocks[first[at]], blocks[row[at] - width + 1])
        blocks = np.maximum(blocks[:-width], blocks[width:])
    return out
