"""The numbers of a batch reduced to bin counts and moments, all columns in one compiled pass: numpy's searchsorted
and bincount alone would cost more than everything else a monitor does.
"""

from typing import Any

import numpy as np
from numba import types

from penstock.jit import INTS, compiled

_FLOATS_2D = types.Array(types.float64, 2, "C", readonly=True)
HUGE = 1e140
BLOCK = 512


@compiled(
    types.void(
        _FLOATS_2D,
        INTS,
        _FLOATS_2D,
        INTS,
        types.int64[:, :, ::1],
        types.int64[:, ::1],
        types.int64[:, ::1],
        types.float64[:, ::1],
        types.float64[:, ::1],
        types.float64[:, ::1],
        types.float64[:, ::1],
    )
)
def add_numbers(
    values: Any,
    slots: Any,
    edges: Any,
    widths: Any,
    bins: Any,
    nulls: Any,
    n: Any,
    mean: Any,
    m2: Any,
    low: Any,
    high: Any,
) -> None:
    """Add ``values``: float64[k, rows] to the accumulators of the row's slot: int64[rows].

    ``edges``: float64[k, e], ascending; ``widths``: int64[k], edges in use, 0 for columns
    that are not binned. ``bins``: int64[s, k, b]; the others [s, k], with the moments merged by Chan, Golub and
    LeVeque 1979 (mean and M2 of the batch first, in two passes).
    """
    columns, rows = values.shape
    place = np.empty(BLOCK, np.int64)
    start = 0
    while start < rows:
        # rows of one pane mostly lie together: one run has its accumulators in registers
        s = slots[start]
        stop = start + 1
        while stop < rows and slots[stop] == s:
            stop += 1
        for c in range(columns):
            last = widths[c]
            if last > 0:
                # counting the edges at or below x, edge by edge, is twice as fast as a search: no branches
                for begin in range(start, stop, BLOCK):
                    end = min(begin + BLOCK, stop)
                    place[: end - begin] = 0
                    for j in range(last):
                        edge = edges[c, j]
                        for i in range(begin, end):
                            place[i - begin] += values[c, i] >= edge
                    for i in range(end - begin):
                        bins[s, c, place[i]] += 1
            missing = 0
            count = 0
            total = 0.0
            least = np.inf
            most = -np.inf
            for i in range(start, stop):
                x = values[c, i]
                usual = abs(x) <= HUGE
                missing += np.isnan(x)
                count += usual
                total += x if usual else 0.0
                least = x if usual and x < least else least
                most = x if usual and x > most else most
            nulls[s, c] += missing
            if last > 0:
                bins[s, c, 0] -= missing
            if count == 0:
                continue
            center = total / count
            squares = 0.0
            for i in range(start, stop):
                x = values[c, i]
                distance = x - center if abs(x) <= HUGE else 0.0
                squares += distance * distance
            low[s, c] = min(low[s, c], least)
            high[s, c] = max(high[s, c], most)
            before = n[s, c]
            share = count / (before + count)
            delta = center - mean[s, c]
            mean[s, c] += delta * share
            m2[s, c] += squares + delta * delta * (before * share)
            n[s, c] = before + count
        start = stop
