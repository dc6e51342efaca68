"""The tile kernel: one sequential pass over a batch that adds each row to its tile and reads the row's window.

Tiles are always folded from the oldest to the newest, the row's own last, whether the older ones come from the key's
cache or are folded afresh: results have the same bits however batches were cut and after any replay.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from penstock.jit import BOOLS, FLOATS, INTS, compiled, inlined
from penstock.windows.layout import BITS, CACHED, HEAD, NO_TILE

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

INT_ROWS = types.int64[:, ::1]
FLOAT_ROWS = types.float64[:, ::1]
AHEAD = 12
"""Rows between asking for a key's memory and using it: rare keys are in no cache, and a miss outlasts several rows."""


@intrinsic  # type: ignore[untyped-decorator]
def _lowest_bit(typingctx: Any, word: Any) -> Any:
    """Index of the lowest set bit of a uint64 that is not zero: one machine instruction that numba does not offer."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.cttz(args[0], context.get_constant(types.boolean, 1))

    return types.uint64(types.uint64), emit


@intrinsic  # type: ignore[untyped-decorator]
def _prefetch(typingctx: Any, array: Any, row: Any, column: Any) -> Any:
    """Ask for the cache line of array[row, column] before it is needed."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        struct = context.make_array(signature.args[0])(context, builder, args[0])
        indices = [args[1], args[2]]
        at = cgutils.get_item_pointer(context, builder, signature.args[0], struct, indices, wraparound=False)
        number = ir.IntType(32)
        signature_of = ir.FunctionType(ir.VoidType(), [at.type, number, number, number])
        function = builder.module.declare_intrinsic("llvm.prefetch", [at.type], signature_of)
        builder.call(function, [at, number(1), number(3), number(1)])  # to write, keep in all caches, data
        return context.get_dummy_value()

    return types.none(array, types.intp, types.intp), emit


@inlined
def _fold(ints: Ints, cells: Floats, slot: int, first: int, count: int, layout: Ints) -> None:
    """Fold the tiles first … first+count-1 that hold values, oldest first, into the row's closed cell."""
    ring, p_sum, p_min, p_max, p_moments, p_last = layout[2], layout[4], layout[5], layout[6], layout[7], layout[8]
    size, closed, base = layout[9], layout[10], layout[11]
    n = 0.0
    total = 0.0
    low_value = 0.0
    high_value = 0.0
    mean = 0.0
    m2 = 0.0
    newest = np.int64(-1)
    start = first % ring if count > 0 else 0
    for part in range(2):  # the ring's end, then its beginning
        low = start if part == 0 else 0
        high = min(start + count, ring) if part == 0 else start + count - ring
        if high <= low:
            continue
        for w in range(low >> 6, ((high - 1) >> 6) + 1):
            word = np.uint64(ints[slot, BITS + w])
            if w == low >> 6:
                word &= np.uint64(0xFFFFFFFFFFFFFFFF) << np.uint64(low & 63)
            if w == (high - 1) >> 6:
                word &= np.uint64(0xFFFFFFFFFFFFFFFF) >> np.uint64(63 - ((high - 1) & 63))
            while word != np.uint64(0):
                cell = base + (w * 64 + np.int64(_lowest_bit(word))) * size
                word &= word - np.uint64(1)
                count_b = cells[slot, cell]
                first_one = n == 0.0
                if p_sum >= 0:
                    total = cells[slot, cell + p_sum] if first_one else total + cells[slot, cell + p_sum]
                if p_min >= 0:
                    value = cells[slot, cell + p_min]
                    if first_one or value < low_value:
                        low_value = value
                if p_max >= 0:
                    value = cells[slot, cell + p_max]
                    if first_one or value > high_value:
                        high_value = value
                if p_moments >= 0:
                    mean, m2 = _merge_moments(
                        n, mean, m2, count_b, cells[slot, cell + p_moments], cells[slot, cell + p_moments + 1]
                    )
                n += count_b
                newest = cell
    cells[slot, closed] = n
    if p_sum >= 0:
        cells[slot, closed + p_sum] = total
    if p_min >= 0:
        cells[slot, closed + p_min] = low_value
    if p_max >= 0:
        cells[slot, closed + p_max] = high_value
    if p_moments >= 0:
        cells[slot, closed + p_moments] = mean
        cells[slot, closed + p_moments + 1] = m2
    if p_last >= 0 and newest >= 0:
        for k in range(3):
            cells[slot, closed + p_last + k] = cells[slot, newest + p_last + k]


@inlined
def _merge_moments(
    n_a: float, mean_a: float, m2_a: float, n_b: float, mean_b: float, m2_b: float
) -> tuple[float, float]:
    """Mean and M2 of two groups (Chan, Golub and LeVeque 1979)."""
    if n_a == 0.0:
        return mean_b, m2_b
    n = n_a + n_b
    delta = mean_b - mean_a
    return mean_a + delta * n_b / n, m2_a + m2_b + delta * delta * n_a * n_b / n


@inlined
def _clear_bits(ints: Ints, slot: int, first: int, count: int, ring: int) -> None:
    """Mark the tiles first … first+count-1 as empty."""
    start = first % ring
    for part in range(2):
        low = start if part == 0 else 0
        high = min(start + count, ring) if part == 0 else start + count - ring
        if high <= low:
            continue
        for w in range(low >> 6, ((high - 1) >> 6) + 1):
            mask = np.uint64(0xFFFFFFFFFFFFFFFF)
            if w == low >> 6:
                mask &= np.uint64(0xFFFFFFFFFFFFFFFF) << np.uint64(low & 63)
            if w == (high - 1) >> 6:
                mask &= np.uint64(0xFFFFFFFFFFFFFFFF) >> np.uint64(63 - ((high - 1) & 63))
            ints[slot, BITS + w] = np.int64(np.uint64(ints[slot, BITS + w]) & ~mask)


@compiled(
    types.void(INT_ROWS, FLOAT_ROWS, INTS, INTS, INTS, BOOLS, INTS, FLOATS, BOOLS, INTS, types.float64[::1], FLOAT_ROWS)
)
def add_and_read(
    ints: Ints,
    cells: Floats,
    slots: Ints,
    times: Ints,
    watermark: Ints,
    late: Bools,
    offsets: Ints,
    values: Floats,
    valid: Bools,
    layout: Ints,
    out_n: Floats,
    out: Floats,
) -> None:
    """Add each row to its tile, then read the window that ends with that tile; rows in the order given.

    `ints`, `cells`: [keys, width], two views of the same memory; `slots`: row of the key, -1 for a null key; `late`:
    older than watermark - lateness; `values` where not `valid` are not added. Writes the number of values in the window
    to `out_n` and `Layout.outputs()` to `out`; where that number is 0, `out` is 0.
    """
    tile_ms, window, ring, horizon = layout[0], layout[1], layout[2], layout[3]
    p_sum, p_min, p_max, p_moments, p_last = layout[4], layout[5], layout[6], layout[7], layout[8]
    size, closed, base = layout[9], layout[10], layout[11]
    o_min = 1 if p_sum >= 0 else 0
    o_max = o_min + (1 if p_min >= 0 else 0)
    o_moments = o_max + (1 if p_max >= 0 else 0)
    o_last = o_moments + (1 if p_moments >= 0 else 0)

    tile_start, tile_end, tile, place = np.int64(0), np.int64(0), np.int64(0), np.int64(0)
    for i in range(len(slots)):
        slot = slots[i]
        if i + AHEAD < len(slots):
            soon = max(slots[i + AHEAD], 0)
            _prefetch(ints, soon, 0)
            _prefetch(ints, soon, base + place * size)
        n = 0.0
        total = 0.0
        low_value = 0.0
        high_value = 0.0
        m2 = 0.0
        last = 0.0
        if slot >= 0:
            time = times[i]
            if time < tile_start or time >= tile_end:  # divisions are dear and neighbours mostly share a tile
                tile = time // tile_ms
                tile_start = tile * tile_ms
                tile_end = tile_start + tile_ms
                place = tile % ring
            first = tile - window + 1
            head = ints[slot, HEAD] + NO_TILE
            expired = tile <= head - ring
            whole = True
            if late[i]:  # only a late row can reach beyond the horizon
                oldest = (watermark[i] - horizon) // tile_ms
                expired = expired or tile < oldest
                if first < oldest:
                    first = oldest
                    whole = False
            value = values[i]
            if expired:  # its tile counts as empty and is gone: the row sees itself alone
                if valid[i]:
                    n, total, low_value, high_value, last = 1.0, value, value, value, value
            else:
                cell = base + place * size
                word = BITS + (place >> 6)
                bit = np.int64(np.uint64(1) << np.uint64(place & 63))
                if valid[i]:
                    if tile > head:
                        _clear_bits(ints, slot, head + 1, min(tile - head, ring), ring)
                        head = tile
                        ints[slot, HEAD] = tile - NO_TILE
                    if ints[slot, word] & bit:
                        count = cells[slot, cell] + 1.0
                        cells[slot, cell] = count
                        if p_sum >= 0:
                            cells[slot, cell + p_sum] += value
                        if p_min >= 0 and value < cells[slot, cell + p_min]:
                            cells[slot, cell + p_min] = value
                        if p_max >= 0 and value > cells[slot, cell + p_max]:
                            cells[slot, cell + p_max] = value
                        if p_moments >= 0:  # Welford 1962
                            delta = value - cells[slot, cell + p_moments]
                            cells[slot, cell + p_moments] += delta / count
                            cells[slot, cell + p_moments + 1] += delta * (value - cells[slot, cell + p_moments])
                        if p_last >= 0 and (
                            time > cells[slot, cell + p_last]
                            or (time == cells[slot, cell + p_last] and offsets[i] > cells[slot, cell + p_last + 1])
                        ):
                            cells[slot, cell + p_last] = time
                            cells[slot, cell + p_last + 1] = offsets[i]
                            cells[slot, cell + p_last + 2] = value
                    else:
                        ints[slot, word] |= bit
                        cells[slot, cell] = 1.0
                        if p_sum >= 0:
                            cells[slot, cell + p_sum] = value
                        if p_min >= 0:
                            cells[slot, cell + p_min] = value
                        if p_max >= 0:
                            cells[slot, cell + p_max] = value
                        if p_moments >= 0:
                            cells[slot, cell + p_moments] = value
                            cells[slot, cell + p_moments + 1] = 0.0
                        if p_last >= 0:
                            cells[slot, cell + p_last] = time
                            cells[slot, cell + p_last + 1] = offsets[i]
                            cells[slot, cell + p_last + 2] = value

                # The cache belongs to the tile that was touched last, so no write can have made it stale.
                if not whole or ints[slot, CACHED] != tile - NO_TILE:
                    begin = max(first, head - ring + 1)
                    _fold(ints, cells, slot, begin, min(tile - 1, head) - begin + 1, layout)
                    ints[slot, CACHED] = tile - NO_TILE if whole else 0

                n = cells[slot, closed]
                if tile <= head and ints[slot, word] & bit:
                    count = cells[slot, cell]
                    if n == 0.0:
                        if p_sum >= 0:
                            total = cells[slot, cell + p_sum]
                        if p_min >= 0:
                            low_value = cells[slot, cell + p_min]
                        if p_max >= 0:
                            high_value = cells[slot, cell + p_max]
                        if p_moments >= 0:
                            m2 = cells[slot, cell + p_moments + 1]
                    else:
                        if p_sum >= 0:
                            total = cells[slot, closed + p_sum] + cells[slot, cell + p_sum]
                        if p_min >= 0:
                            low_value = min(cells[slot, closed + p_min], cells[slot, cell + p_min])
                        if p_max >= 0:
                            high_value = max(cells[slot, closed + p_max], cells[slot, cell + p_max])
                        if p_moments >= 0:
                            _, m2 = _merge_moments(
                                n,
                                cells[slot, closed + p_moments],
                                cells[slot, closed + p_moments + 1],
                                count,
                                cells[slot, cell + p_moments],
                                cells[slot, cell + p_moments + 1],
                            )
                    n += count
                    if p_last >= 0:
                        last = cells[slot, cell + p_last + 2]
                elif n > 0.0:
                    if p_sum >= 0:
                        total = cells[slot, closed + p_sum]
                    if p_min >= 0:
                        low_value = cells[slot, closed + p_min]
                    if p_max >= 0:
                        high_value = cells[slot, closed + p_max]
                    if p_moments >= 0:
                        m2 = cells[slot, closed + p_moments + 1]
                    if p_last >= 0:
                        last = cells[slot, closed + p_last + 2]
        out_n[i] = n
        if p_sum >= 0:
            out[0, i] = total
        if p_min >= 0:
            out[o_min, i] = low_value
        if p_max >= 0:
            out[o_max, i] = high_value
        if p_moments >= 0:
            out[o_moments, i] = m2
        if p_last >= 0:
            out[o_last, i] = last


@inlined
def _live(ints: Ints, slot: int, oldest: int, layout: Ints, row: Ints) -> int:
    """Write the newest tile of `slot` and the bitmap of its tiles from `oldest` on to `row`; returns how many tiles."""
    ring, closed = layout[2], layout[10]
    row[0, HEAD] = ints[slot, HEAD]
    row[0, BITS:closed] = ints[slot, BITS:closed]
    first = ints[slot, HEAD] + NO_TILE - ring + 1
    if oldest > first:
        _clear_bits(row, 0, first, min(oldest - first, ring), ring)
    found = 0
    for w in range(BITS, closed):
        word = np.uint64(row[0, w])
        while word != np.uint64(0):
            word &= word - np.uint64(1)
            found += 1
    return found


@compiled(types.void(INT_ROWS, INTS, types.int64, INTS, types.int64[::1]))
def measure(ints: Ints, slots: Ints, oldest: int, layout: Ints, starts: Ints) -> None:
    """Where `pack` is to put each row of `slots`, and behind the last how many words it takes: `starts`, int64[n+1]."""
    size, closed = layout[9], layout[10]
    row = np.empty((1, closed), np.int64)
    starts[0] = 0
    for i in range(len(slots)):
        found = _live(ints, slots[i], oldest, layout, row)
        starts[i + 1] = starts[i] + (1 + closed - BITS + found * size if found > 0 else 0)


@compiled(types.void(INT_ROWS, INTS, types.int64, INTS, types.int64[::1], types.int64[::1]))
def pack(ints: Ints, slots: Ints, oldest: int, layout: Ints, starts: Ints, packed: Ints) -> None:
    """Each row as [newest tile, bitmap, cells that hold values], without tiles before `oldest` and without the cache.

    What is written is a function of the log alone: it does not tell where batches were cut or what expired in between.
    """
    size, closed, base = layout[9], layout[10], layout[11]
    row = np.empty((1, closed), np.int64)
    for i in range(len(slots)):
        at = starts[i]
        if at == starts[i + 1]:
            continue
        slot = slots[i]
        _live(ints, slot, oldest, layout, row)
        packed[at] = row[0, HEAD]
        at += 1
        for w in range(BITS, closed):
            packed[at] = row[0, w]
            at += 1
        for w in range(BITS, closed):
            word = np.uint64(row[0, w])
            while word != np.uint64(0):
                cell = base + ((w - BITS) * 64 + np.int64(_lowest_bit(word))) * size
                word &= word - np.uint64(1)
                for k in range(size):
                    packed[at + k] = ints[slot, cell + k]
                at += size


@compiled(types.boolean(INTS, INTS, INTS, INT_ROWS))
def unpack(packed: Ints, starts: Ints, layout: Ints, to: Ints) -> bool:
    """The rows that `pack` wrote, into zeroed memory. False where one of them is not as long as its bitmap says."""
    ring, size, closed, base = layout[2], layout[9], layout[10], layout[11]
    for i in range(len(to)):
        at, stop = starts[i], starts[i + 1]
        if at < 0 or stop < at or stop > len(packed):
            return False
        if at == stop:
            continue
        if stop - at < 1 + closed - BITS:
            return False
        to[i, HEAD] = packed[at]
        at += 1
        for w in range(BITS, closed):
            to[i, w] = packed[at]
            at += 1
        for w in range(BITS, closed):
            word = np.uint64(to[i, w])
            while word != np.uint64(0):
                place = (w - BITS) * 64 + np.int64(_lowest_bit(word))
                word &= word - np.uint64(1)
                if at + size > stop or place >= ring:
                    return False
                for k in range(size):
                    to[i, base + place * size + k] = packed[at + k]
                at += size
        if at != stop:
            return False
    return True
