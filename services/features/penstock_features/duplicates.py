"""Which events of a partition came before, by their id: a producer sends again what was not acknowledged, and the copy
may lie in another raw partition.

One rule decides, and batches, restarts and the moment at which memory is given back have no part in it: a row is a
copy if a row before it in the log has the same id and an event time of at least the watermark behind the row less the
horizon. Hashes only choose the chain: ids are compared byte by byte. A row that is sent again says for which raw record
it is, the first of as many as there were: if that one was the id's first, the row is no copy. Who was first is a matter
of the log as far as it is read (docs/adr/0011).
"""

import re
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numba import from_dtype, types
from numpy.typing import NDArray

from penstock.jit import INTS, compiled, inlined
from penstock.records import NO_TIME, string_buffers
from penstock.snapshots.entries import as_table, from_table

DUPLICATES_VERSION = 3
"""Rises with any change of what is remembered, or of the form it is kept in."""
_FIRST_ROOM = 1024

ENTRY = np.dtype(
    [
        ("hash", np.uint64),
        ("next", np.int64),
        ("start", np.int64),
        ("stop", np.int64),
        ("newest", np.int64),
        ("partition", np.int64),
        ("offset", np.int64),
    ]
)
"""``newest``: the largest event time among the id's rows, ms since epoch; ``partition``, ``offset``: of the first one's
raw record, and of a replay, of the record that it is sent again for."""
CLOCK = np.dtype([("used", np.int64), ("bytes", np.int64), ("watermark", np.int64)])
"""``used`` entries and ``bytes`` of ids; the largest event time seen."""

_ENTRIES = from_dtype(ENTRY)[::1]
_CLOCK = from_dtype(CLOCK)[::1]
_BYTES = types.Array(types.uint8, 1, "C", readonly=True)
_BOUNDS = types.Array(types.int32, 1, "C", readonly=True)
Ints = NDArray[np.int64]
Origins = tuple[Ints, Ints]
"""Partitions and offsets of raw records, int64[n] each."""


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


@compiled(
    types.int64(
        _BYTES,
        _BOUNDS,
        INTS,
        INTS,
        INTS,
        INTS,
        INTS,
        INTS,
        types.int64,
        _ENTRIES,
        types.int64[::1],
        types.uint8[::1],
        _CLOCK,
        types.int64[:, ::1],
    )
)
def _look(
    data: Any,
    bounds: Any,
    times: Any,
    watermark: Any,
    partitions: Any,
    offsets: Any,
    for_partitions: Any,
    for_offsets: Any,
    horizon: int,
    entries: Any,
    heads: Any,
    arena: Any,
    clock: Any,
    firsts: Any,
) -> int:
    """Remember every row's id and fill ``firsts``: int64[n, 2], partition and offset of the first where a row is a
    copy, else -1; returns how many are. There must be room for n entries and their ids.
    """
    found = 0
    mask = np.uint64(heads.shape[0] - 1)
    for i in range(times.shape[0]):
        start, stop = bounds[i], bounds[i + 1]
        # what this row itself moves the watermark to: its own time counts for it as for those behind it
        oldest = max(watermark[i], times[i]) - horizon
        h = _hash(data, start, stop)
        place = h & mask
        e = heads[place]
        while e >= 0:
            same = entries[e].hash == h and entries[e].stop - entries[e].start == stop - start
            if same:
                begin = entries[e].start
                for k in range(stop - start):
                    if arena[begin + k] != data[start + k]:
                        same = False
                        break
            if same:
                break
            e = entries[e].next
        firsts[i, 0] = -1
        firsts[i, 1] = -1
        if e >= 0 and entries[e].newest >= oldest:
            entries[e].newest = max(entries[e].newest, times[i])
            if entries[e].partition != for_partitions[i] or entries[e].offset != for_offsets[i]:
                firsts[i, 0] = entries[e].partition
                firsts[i, 1] = entries[e].offset
                found += 1
        elif times[i] >= oldest:
            if e < 0:
                e = clock[0].used
                begin = clock[0].bytes
                for k in range(stop - start):
                    arena[begin + k] = data[start + k]
                entries[e].hash = h
                entries[e].next = heads[place]
                entries[e].start = begin
                entries[e].stop = begin + stop - start
                heads[place] = e
                clock[0].used += 1
                clock[0].bytes += stop - start
            entries[e].newest = times[i]
            again = for_partitions[i] >= 0
            entries[e].partition = for_partitions[i] if again else partitions[i]
            entries[e].offset = for_offsets[i] if again else offsets[i]
        clock[0].watermark = max(clock[0].watermark, oldest + horizon)
    return found


@compiled(
    types.void(_ENTRIES, types.uint8[::1], _CLOCK, types.int64, _ENTRIES, types.int64[::1], types.uint8[::1], _CLOCK)
)
def _move(
    entries: Any, arena: Any, clock: Any, horizon: int, new: Any, heads: Any, new_arena: Any, new_clock: Any
) -> None:
    """Move what can still have a copy to ``new``, with its ids, chained by ``heads``."""
    heads[:] = -1
    mask = np.uint64(heads.shape[0] - 1)
    oldest = clock[0].watermark - horizon
    count = 0
    size = 0
    for e in range(clock[0].used):
        if entries[e].newest < oldest:
            continue
        new[count] = entries[e]
        new[count].start = size
        for k in range(entries[e].start, entries[e].stop):
            new_arena[size] = arena[k]
            size += 1
        new[count].stop = size
        place = entries[e].hash & mask
        new[count].next = heads[place]
        heads[place] = count
        count += 1
    new_clock[0].used = count
    new_clock[0].bytes = size
    new_clock[0].watermark = clock[0].watermark


class Seen:
    """The ids of one partition's events, no longer than ``horizon_ms`` of event time. Not for two threads at once."""

    def __init__(self, horizon_ms: int) -> None:
        self._horizon = horizon_ms
        self._entries = np.zeros(_FIRST_ROOM, ENTRY)
        self._heads = np.full(_FIRST_ROOM, -1, np.int64)
        self._arena = np.empty(16 * _FIRST_ROOM, np.uint8)
        self._clock = np.array([(0, 0, NO_TIME)], CLOCK)

    def __len__(self) -> int:
        """Ids in memory, those that are over and not given back yet among them."""
        return int(self._clock["used"][0])

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the ids have asked for."""
        return self._entries.nbytes + self._heads.nbytes + self._arena.nbytes

    def firsts(
        self, ids: "pa.StringArray", times: Ints, watermark: Ints, origins: Origins, replayed: Origins
    ) -> Ints | None:
        """Take in rows in log order. Returns int64[n, 2], the first one's partition and offset where a row is a copy
        and -1 elsewhere; None where none is.

        ``ids``: string[n] without nulls; ``times``, ``watermark``: int64[n] as a batch has them; ``origins``: where the
        rows' raw records are; ``replayed``: where those are that they are sent again for, -1 for none.
        """
        bounds, data = string_buffers(ids)
        self._make_room(len(ids), int(bounds[-1]) - int(bounds[0]))
        found = np.empty((len(ids), 2), np.int64)
        copies = _look(
            data,
            bounds,
            times,
            watermark,
            *origins,
            *replayed,
            self._horizon,
            self._entries,
            self._heads,
            self._arena,
            self._clock,
            found,
        )
        return found if copies else None

    def snapshot(self) -> "pa.Table":
        """What is remembered, an id in each row."""
        alive, size = self._alive()
        entries, _, ids, clock = self._moved(alive, size, 1)
        return as_table(entries, ids).replace_schema_metadata({"watermark": str(clock["watermark"][0])})

    @classmethod
    def restore(cls, horizon_ms: int, snapshot: "pa.Table") -> "Seen":
        """What ``snapshot`` wrote, for the same horizon."""
        seen = cls(horizon_ms)
        seen._entries, seen._arena = from_table(snapshot, ENTRY)
        watermark = int((snapshot.schema.metadata or {})[b"watermark"])
        seen._clock = np.array([(len(seen._entries), len(seen._arena), watermark)], CLOCK)
        seen._grow(0, 0)
        return seen

    def _make_room(self, more: int, more_bytes: int) -> None:
        used, size = len(self), int(self._clock["bytes"][0])
        if used + more > len(self._entries) or size + more_bytes > len(self._arena):
            self._grow(more, more_bytes)

    def _grow(self, more: int, more_bytes: int) -> None:
        """Without what is over, there is room for twice as much and ``more``."""
        alive, size = self._alive()
        room = _power(2 * (alive + more))
        moved = self._moved(room, _power(2 * (size + more_bytes)), room)
        self._entries, self._heads, self._arena, self._clock = moved

    def _alive(self) -> tuple[int, int]:
        """Entries that can still have a copy, and bytes of their ids."""
        entries = self._entries[: len(self)]
        alive = entries["newest"] >= int(self._clock["watermark"][0]) - self._horizon
        return int(alive.sum()), int((entries["stop"] - entries["start"])[alive].sum())

    def _moved(
        self, room: int, room_bytes: int, chains: int
    ) -> tuple["NDArray[np.void]", Ints, NDArray[np.uint8], "NDArray[np.void]"]:
        """Entries, chains, ids and clock without what is over, in arrays of these lengths."""
        entries, heads = np.zeros(room, ENTRY), np.empty(chains, np.int64)
        arena, clock = np.empty(room_bytes, np.uint8), np.zeros(1, CLOCK)
        _move(self._entries, self._arena, self._clock, self._horizon, entries, heads, arena, clock)
        return entries, heads, arena, clock


def replayed_places(column: "pa.StringArray", raw: str) -> Origins:
    """What ``_replays`` says, TOPIC/PARTITION@OFFSET, as partitions and offsets; -1 where it names no record of
    ``raw``. Anybody may have written it: what is no such place is none."""
    places = np.full((2, len(column)), -1, np.int64)
    if column.null_count < len(column):
        found = pc.extract_regex(column, f"^{re.escape(raw)}/(?P<partition>[0-9]{{1,9}})@(?P<offset>[0-9]{{1,18}})$")
        rows = np.flatnonzero(found.is_valid())
        for part, name in enumerate(("partition", "offset")):
            places[part, rows] = pc.struct_field(found.drop_null(), name).cast(pa.int64())
    return places[0], places[1]


def _power(n: int) -> int:
    return 1 << max(n - 1, _FIRST_ROOM - 1).bit_length()
