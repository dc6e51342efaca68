"""How many events per second the window kernel takes on one core, beside the kernel that one would write first.

usage: python bench/kernel.py [EVENTS] [BATCH]

Two cases over card transactions with Zipf keys (50,000 cards, event time advancing 3 ms per event): "card windows", an
hour in 60 tiles of count, sum and max; and two views' worth of work, 4 windows and 6 output columns. Both sides get
Arrow string keys and map them to rows themselves; the naive side uses a dict and scans all tiles of every row. The
values of both are compared before anything is printed.
"""

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from penstock.windows.spec import AggregationSpec, ViewSpec, tile_ms
from penstock.windows.state import WindowState, warm_up
from penstock.windows.watermark import running_watermark

HOUR = 3_600_000
CARDS = 50_000
REPEATS = 3

Batch = tuple["pa.Array[Any]", NDArray[np.int64], NDArray[np.float64], int]
Columns = list[NDArray[np.float64]]


def transactions(events: int, batch: int) -> list[Batch]:
    """(card, event time, amount, first offset) per batch: the keys, times and amounts that the load generator makes."""
    rng = np.random.default_rng(7)
    card = np.minimum(rng.zipf(1.2, events), CARDS)
    names = pa.array([f"c{number:06d}" for number in range(CARDS + 1)])
    times = 1_700_000_000_000 + np.arange(events) * 3
    amounts = rng.lognormal(3, 1, events).round(2)
    return [
        (
            names.take(pa.array(card[start : start + batch])),
            times[start : start + batch],
            amounts[start : start + batch],
            start,
        )
        for start in range(0, events, batch)
    ]


def view(*aggregations: tuple[str, int]) -> ViewSpec:
    """Aggregations of the amount: (function, window in ms)."""
    return ViewSpec(
        name="card",
        key="card_id",
        aggregations=tuple(
            AggregationSpec(column="amount", function=function, window_ms=window, name=f"{function}_{window}")
            for function, window in aggregations
        ),
        tile_ms={window: tile_ms(window, None, None) for _, window in aggregations},
        lateness_ms=0,
    )


@numba.njit(nogil=True)
def scan_all_tiles(slots, times, values, tile_ms, ids, n, total, most, out):  # type: ignore[no-untyped-def]  # numba infers
    """What one writes first: every row walks its key's whole ring."""
    tiles = ids.shape[1]
    for i in range(slots.shape[0]):
        s = slots[i]
        t = times[i] // tile_ms
        p = t % tiles
        if ids[s, p] != t:
            ids[s, p], n[s, p], total[s, p], most[s, p] = t, 0, 0.0, -np.inf
        n[s, p] += 1
        total[s, p] += values[i]
        most[s, p] = max(most[s, p], values[i])
        a, b, c = 0, 0.0, -np.inf
        for j in range(tiles):
            if t - tiles < ids[s, j] <= t:
                a += n[s, j]
                b += total[s, j]
                c = max(c, most[s, j])
        out[0, i], out[1, i], out[2, i] = a, b, c


class Naive:
    """Keys in a dict, one ring of count, sum and max per window."""

    def __init__(self, windows: list[int], tiles: int = 60) -> None:
        self.slots: dict[str, int] = {}
        self.tiles = [window // tiles for window in windows]
        shape = (CARDS, tiles)
        self.rings = [
            (np.full(shape, -1, np.int64), np.zeros(shape, np.int64), np.zeros(shape), np.full(shape, -np.inf))
            for _ in windows
        ]

    def update(self, batch: Batch) -> list[NDArray[np.float64]]:
        """(count, sum, max) of every window: float64[3, n] each."""
        keys, times, amounts, _ = batch
        coded = keys.dictionary_encode()
        mapped = [self.slots.setdefault(key, len(self.slots)) for key in coded.dictionary.to_pylist()]
        slots = np.array(mapped, np.int64)[coded.indices.to_numpy()]
        outs = []
        for tile, ring in zip(self.tiles, self.rings, strict=True):
            out = np.empty((3, len(times)))
            scan_all_tiles(slots, times, amounts, tile, *ring, out)
            outs.append(out)
        return outs


class Tiled:
    """Penstock's state, fed as the features stage feeds it."""

    def __init__(self, spec: ViewSpec) -> None:
        self.state = WindowState(spec)

    def update(self, batch: Batch) -> Columns:
        """One column per aggregation."""
        keys, times, amounts, offset = batch
        offsets = np.arange(offset, offset + len(times))
        valid = np.ones(len(times), np.bool_)
        watermark = running_watermark(times, self.state.watermark)
        return [
            column.to_numpy()
            for column in self.state.update(keys, times, watermark, offsets, {"amount": (amounts, valid)}).columns
        ]


def best_rate(make: Callable[[], Naive | Tiled], batches: list[Batch]) -> float:
    """Events per second of the best of some runs over all batches, from an empty state each time."""
    events = sum(len(batch[1]) for batch in batches)
    seconds = []
    for _ in range(REPEATS):
        side = make()
        start = time.perf_counter()
        for batch in batches:
            side.update(batch)
        seconds.append(time.perf_counter() - start)
    return events / min(seconds)


def check(spec: ViewSpec, windows: list[int], batches: list[Batch]) -> None:
    """Both sides must say the same; sums to rounding, because the naive one adds tiles in the order of its ring."""
    naive, tiled = Naive(windows), Tiled(spec)
    row = {"count": 0, "sum": 1, "max": 2}
    for batch in batches:
        expected = naive.update(batch)
        for aggregation, got in zip(spec.aggregations, tiled.update(batch), strict=True):
            if aggregation.function == "mean":
                count, total, _ = expected[windows.index(aggregation.window_ms)]
                np.testing.assert_allclose(got, total / count, rtol=1e-9)
            else:
                values = expected[windows.index(aggregation.window_ms)][row[aggregation.function]]
                np.testing.assert_allclose(got, values, rtol=1e-9)


def main(events: int = 1_000_000, batch: int = 16_384) -> None:
    warm_up()
    batches = transactions(events, batch)
    Naive([HOUR]).update(batches[0])  # compiles
    minute = HOUR // 60
    cases = {
        "card windows: 1 window, 3 outputs": view(("count", HOUR), ("sum", HOUR), ("max", HOUR)),
        "4 windows, 6 outputs": view(
            ("count", 5 * minute),
            ("sum", 5 * minute),
            ("count", HOUR),
            ("mean", HOUR),
            ("max", 6 * HOUR),
            ("sum", 24 * HOUR),
        ),
    }
    for name, spec in cases.items():
        windows = list(spec.tile_ms)
        check(spec, windows, batches)
        ours = best_rate(lambda spec=spec: Tiled(spec), batches)  # type: ignore[misc]  # bound
        naive = best_rate(lambda windows=windows: Naive(windows), batches)  # type: ignore[misc]  # bound
        figures = {"events_per_second": round(ours), "naive": round(naive), "ratio": round(ours / naive, 2)}
        print(f"{name}: {json.dumps(figures)}")


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:]))
