"""The compiled part of the label join: one pass over a partition's rows in log order, over a hash table with real
keys.

Chains, not open addressing, because several entries may have one key and entries leave all the time. A row sees
exactly the entries of the rows before it in the log, so the result does not depend on where batches were cut. Hashes
only choose the chain: keys are compared byte by byte.
"""

from typing import Any

import numpy as np
from numba import from_dtype, types

from penstock.jit import BOOLS, FLOATS, INTS, compiled, inlined

NEVER = np.iinfo(np.int64).min

GONE, PREDICTION, LABEL = 0, 1, 2

ENTRY = np.dtype(
    [
        ("hash", np.uint64),
        ("next", np.int64),
        ("start", np.int64),
        ("stop", np.int64),
        ("time", np.int64),
        ("served", np.int64),
        ("predicted", np.int64),
        ("score", np.float64),
        ("baseline", np.float64),
        ("value", np.float64),
        ("kind", np.int64),
    ]
)
"""``time``: event time, ms since epoch. ``served``: which model and version. ``value``: the truth of a label."""

CLOCK = np.dtype([("used", np.int64), ("bytes", np.int64), ("predictions", np.int64), ("labels", np.int64)])
"""``used`` entries and ``bytes`` of keys; the largest event time seen among predictions and among labels."""

_ENTRIES = from_dtype(ENTRY)[::1]
_BYTES = types.Array(types.uint8, 1, "C", readonly=True)


@inlined
def _hash(data: Any, start: int, stop: int) -> np.uint64:
    """MurmurHash64A with the eight bytes put together by hand (as in penstock.windows.keys: numba caches by module)."""
    factor = np.uint64(0xC6A4A7935BD1E995)
    h = np.uint64(0x9E3779B97F4A7C15) ^ (np.uint64(stop - start) * factor)
    i = start
    while i < stop:
        word = np.uint64(0)
        for k in range(min(8, stop - i)):
            word |= np.uint64(data[i + k]) << np.uint64(8 * k)
        word *= factor
        word ^= word >> np.uint64(47)
        h = (h ^ (word * factor)) * factor
        i += 8
    h ^= h >> np.uint64(47)
    h *= factor
    return h ^ (h >> np.uint64(47))


@inlined
def _over(own: int, other: int, time: int, horizon: int) -> bool:
    """Whether nothing can meet an entry of ``time`` any more: the other side is a horizon past it, or its own side
    two (the other side is silent, and memory must end somewhere).
    """
    return (other != NEVER and other - horizon > time) or (own != NEVER and own - 2 * horizon > time)


@inlined
def _sweep(entries: Any, heads: Any, clock: Any, horizon: int, expired: Any, count: int) -> int:
    """Take out what is over, chain the rest anew; returns the new number of ``expired`` (served, time, kind)."""
    heads[:] = -1
    mask = np.uint64(heads.shape[0] - 1)
    for e in range(clock[0].used):
        entry = entries[e]
        kind = entry.kind
        if kind == GONE:
            continue
        if kind == PREDICTION:
            over = _over(clock[0].predictions, clock[0].labels, entry.time, horizon)
        else:
            over = _over(clock[0].labels, clock[0].predictions, entry.time, horizon)
        if over:
            entries[e].kind = GONE
            expired[count, 0] = entry.served
            expired[count, 1] = entry.time
            expired[count, 2] = kind
            count += 1
            continue
        place = entry.hash & mask
        entries[e].next = heads[place]
        heads[place] = e
    return count


@compiled(
    types.UniTuple(types.int64, 2)(
        INTS,
        BOOLS,
        _BYTES,
        types.Array(types.int32, 1, "C", readonly=True),
        INTS,
        INTS,
        INTS,
        FLOATS,
        FLOATS,
        FLOATS,
        types.int64,
        types.int64,
        _ENTRIES,
        types.int64[::1],
        types.uint8[::1],
        from_dtype(CLOCK)[::1],
        _ENTRIES,
        types.int64[:, ::1],
    )
)
def meet(
    rows: Any,
    is_label: Any,
    data: Any,
    bounds: Any,
    times: Any,
    served: Any,
    predicted: Any,
    score: Any,
    baseline: Any,
    value: Any,
    horizon: int,
    grid: int,
    entries: Any,
    heads: Any,
    arena: Any,
    clock: Any,
    pairs: Any,
    expired: Any,
) -> tuple[int, int]:
    """Let ``rows``: int64[m] of a batch meet each other and the pending ones; returns how many ``pairs`` (a
    prediction with the ``value`` of its label) and ``expired`` there are.

    There must be room for m entries and their keys, and in the outputs for everything pending and m more. What is
    over is swept out whenever the largest event time passes a multiple of ``grid``: a fact of the log, so that a
    replay sweeps at the same rows.
    """
    met = 0
    over = 0
    mask = np.uint64(heads.shape[0] - 1)
    for n in range(rows.shape[0]):
        i = rows[n]
        start, stop = bounds[i], bounds[i + 1]
        h = _hash(data, start, stop)
        place = h & mask
        own = clock[0].labels if is_label[i] else clock[0].predictions
        other = clock[0].predictions if is_label[i] else clock[0].labels
        kind = LABEL if is_label[i] else PREDICTION
        before = -1
        e = heads[place]
        while e >= 0:
            after = entries[e].next
            same = entries[e].hash == h and entries[e].stop - entries[e].start == stop - start
            same = same and (entries[e].kind == PREDICTION) == is_label[i]
            if same:
                begin = entries[e].start
                for k in range(stop - start):
                    if arena[begin + k] != data[start + k]:
                        same = False
                        break
            # an entry that is over but not swept yet meets nobody; its own side is this row's other side
            if not same or _over(other, own, entries[e].time, horizon):
                before = e
                e = after
                continue
            pairs[met] = entries[e]
            if is_label[i]:
                pairs[met].value = value[i]
            else:
                pairs[met].time = times[i]
                pairs[met].served = served[i]
                pairs[met].predicted = predicted[i]
                pairs[met].score = score[i]
                pairs[met].baseline = baseline[i]
            met += 1
            kind = GONE
            entries[e].kind = GONE
            if before < 0:
                heads[place] = after
            else:
                entries[before].next = after
            e = after if is_label[i] else -1
        if kind != GONE:
            e = clock[0].used
            begin = clock[0].bytes
            for k in range(stop - start):
                arena[begin + k] = data[start + k]
            entries[e].hash = h
            entries[e].next = heads[place]
            entries[e].start = begin
            entries[e].stop = begin + stop - start
            entries[e].time = times[i]
            entries[e].served = served[i]
            entries[e].predicted = predicted[i]
            entries[e].score = score[i]
            entries[e].baseline = baseline[i]
            entries[e].value = value[i]
            entries[e].kind = kind
            heads[place] = e
            clock[0].used += 1
            clock[0].bytes += stop - start
        newest = max(clock[0].predictions, clock[0].labels)
        if is_label[i]:
            clock[0].labels = max(clock[0].labels, times[i])
        else:
            clock[0].predictions = max(clock[0].predictions, times[i])
        if newest != NEVER and times[i] > newest and times[i] // grid > newest // grid:
            over = _sweep(entries, heads, clock, horizon, expired, over)
    return met, over


@compiled(
    types.UniTuple(types.int64, 2)(
        _ENTRIES, types.int64, types.uint8[::1], _ENTRIES, types.int64[::1], types.uint8[::1]
    )
)
def move(entries: Any, used: int, arena: Any, new: Any, heads: Any, new_arena: Any) -> tuple[int, int]:
    """Move what is not gone to ``new`` with its keys, and chain it by ``heads``; returns entries and bytes in use."""
    heads[:] = -1
    mask = np.uint64(heads.shape[0] - 1)
    count = 0
    size = 0
    for e in range(used):
        if entries[e].kind == GONE:
            continue
        new[count] = entries[e]
        begin, stop = entries[e].start, entries[e].stop
        new[count].start = size
        for k in range(begin, stop):
            new_arena[size] = arena[k]
            size += 1
        new[count].stop = size
        place = entries[e].hash & mask
        new[count].next = heads[place]
        heads[place] = count
        count += 1
    return count, size
