"""The window state of one view on one partition: hand it batches in log order, get every row's features.

It holds no clock and does no I/O. What a row gets depends on the rows before it in the log and on the watermark handed
in with it, never on batch cuts, on eviction or on a restart that replayed the log.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from penstock.windows.kernel import add_and_read
from penstock.windows.keys import KeyIndex
from penstock.windows.layout import HEAD, KERNEL_VERSION, NO_TILE
from penstock.windows.ring import arrow, as_column, rings
from penstock.windows.spec import EVERY_ROW, ViewSpec
from penstock.windows.watermark import NO_WATERMARK

Column = tuple[NDArray[np.float64], NDArray[np.bool_]]
SWEEP_FROM = 4096
"""Fewest keys at which dead ones are looked for."""


@dataclass(frozen=True)
class WindowRows:
    """What a batch got: `columns` in the order of the view's aggregations, `late`: bool[n]."""

    columns: list["pa.Array[Any]"]
    late: NDArray[np.bool_]


class WindowState:
    """Tiles of one view on one partition. Not for two threads at once."""

    def __init__(self, spec: ViewSpec) -> None:
        self.spec = spec
        self.watermark = NO_WATERMARK
        """Largest event time applied, or handed in as a watermark, in ms."""
        self._keys = KeyIndex()
        self._rings = rings(spec)
        self._sweep_at = SWEEP_FROM

    @property
    def key_count(self) -> int:
        """Keys that the state holds; those with nothing left in any window leave now and then."""
        return len(self._keys)

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the state has asked for; a page that no key has touched is not resident."""
        return self._keys.nbytes + sum(ring.ints.nbytes for ring in self._rings)

    def update(
        self,
        keys: "pa.Array[Any]",
        times: NDArray[np.int64],
        watermark: NDArray[np.int64],
        offsets: NDArray[np.int64],
        columns: Mapping[str, Column],
    ) -> WindowRows:
        """Apply rows in log order; each sees itself and all earlier rows of its key that have arrived.

        `keys`: string or dictionary of strings, nullable; `times`: int64[n], event time in ms; `watermark`: int64[n],
        the partition's largest event time before each row; `offsets`: int64[n]; `columns[name]`: float64[n] values and
        bool[n] validity of every aggregated column (not for "*" and the key itself, which `count` counts by the row).

        Null in the result: everything of a null key; sum, mean, min, max and last of no values; std of fewer than two.
        A row older than its watermark - lateness is marked late and gets what is left of its window.
        Raises ValueError if the arrays differ in length or the watermark ever falls behind the rows before it.
        """
        times, watermark, offsets = (_int64(array) for array in (times, watermark, offsets))
        self._check(keys, times, watermark, offsets, columns)
        late = times < watermark - self.spec.lateness_ms
        slots = self._keys.rows(keys)
        null_key = slots < 0
        nulls = null_key if null_key.any() else None
        found: list[pa.Array[Any] | None] = [None] * len(self.spec.aggregations)
        for ring in self._rings:
            values, valid = self._values(ring.column, columns, len(times))
            ring.make_room(len(self._keys))
            out_n = np.empty(len(times))
            out = np.empty((max(1, len(ring.layout.outputs())), len(times)))
            add_and_read(
                ring.ints, ring.cells, slots, times, watermark, late, offsets, values, valid, ring.numbers, out_n, out
            )
            for place, aggregation in ring.aggregations:
                found[place] = as_column(aggregation, ring.layout, out_n, out, nulls)
        if len(times):
            self.watermark = max(self.watermark, int(watermark[-1]), int(times.max()))
        if len(self._keys) >= self._sweep_at:
            self._sweep()
        return WindowRows([column for column in found if column is not None], late)

    def snapshot(self) -> "pa.Table":
        """The state as a table, keys in alphabetical order: a function of the log and nothing else."""
        names, rows = self._live()
        fields = [pa.field("key", pa.string(), nullable=False)]
        fields += [pa.field(f"ring_{number}", packed.type) for number, packed in enumerate(rows)]
        header = {
            "kernel_version": str(KERNEL_VERSION),
            "view": self.spec.model_dump_json(),
            "watermark": str(self.watermark),
        }
        return pa.Table.from_arrays([names, *rows], schema=pa.schema(fields, metadata=header))

    @classmethod
    def restore(cls, spec: ViewSpec, snapshot: "pa.Table") -> "WindowState":
        """The state that `snapshot()` wrote. Raises ValueError if it is of another view or kernel version."""
        header = {name.decode(): value.decode() for name, value in (snapshot.schema.metadata or {}).items()}
        if header.get("kernel_version") != str(KERNEL_VERSION):
            raise ValueError(
                f"the snapshot of view {spec.name!r} was written by window kernel {header.get('kernel_version')}, "
                f"this is {KERNEL_VERSION}. Rebuild the state by replay."
            )
        if ViewSpec.model_validate_json(header["view"]) != spec:
            raise ValueError(
                f"the snapshot of view {spec.name!r} was written for another definition of it. "
                "Rebuild the state by replay."
            )
        state = cls(spec)
        state.watermark = int(header["watermark"])
        names, *rows = snapshot.combine_chunks().columns
        state._replace(_whole(names), [_whole(column) for column in rows])
        return state

    def _check(
        self,
        keys: "pa.Array[Any]",
        times: NDArray[np.int64],
        watermark: NDArray[np.int64],
        offsets: NDArray[np.int64],
        columns: Mapping[str, Column],
    ) -> None:
        lengths = {"keys": len(keys), "times": len(times), "watermark": len(watermark), "offsets": len(offsets)}
        for name, (values, valid) in columns.items():
            lengths[f"column {name!r}"] = len(values)
            lengths[f"validity of {name!r}"] = len(valid)
        wrong = [name for name, length in lengths.items() if length != len(times)]
        if wrong:
            raise ValueError(
                f"view {self.spec.name!r} got {lengths[wrong[0]]} {wrong[0]} for {len(times)} rows. Pass one per row."
            )
        if not len(times):
            return
        behind = watermark[0] < self.watermark or bool((watermark[1:] < np.maximum(watermark, times)[:-1]).any())
        if behind:
            raise ValueError(
                f"view {self.spec.name!r} got a watermark behind event times before it, so rows would count twice or "
                "not at all. Pass the partition's running maximum (running_watermark)."
            )

    def _values(self, column: str, columns: Mapping[str, Column], n: int) -> Column:
        if column not in columns and column in (EVERY_ROW, self.spec.key):
            return np.zeros(n), np.ones(n, np.bool_)
        if column not in columns:
            raise ValueError(
                f"view {self.spec.name!r} aggregates {column!r}, which the batch does not have: {sorted(columns)}."
            )
        values, valid = columns[column]
        return np.require(values, np.float64, ["C", "A"]), np.require(valid, np.bool_, ["C", "A"])

    def _live(self) -> tuple["pa.StringArray", list["pa.LargeListArray"]]:
        """Keys with a tile that can still count, in alphabetical order, and their packed rows in every ring."""
        alive = np.zeros(len(self._keys), np.bool_)
        for ring in self._rings:
            alive |= ring.ints[: len(self._keys), HEAD] >= ring.oldest(self.watermark) - NO_TILE
        names = self._keys.keys()
        slots = np.flatnonzero(alive)
        order = pc.sort_indices(names.take(arrow(slots, pa.int64(), None))).to_numpy(zero_copy_only=False)
        slots = slots[order].astype(np.int64)
        rows = [ring.packed(slots, self.watermark) for ring in self._rings]
        return names.take(arrow(slots, pa.int64(), None)), rows

    def _sweep(self) -> None:
        """Forget dead keys once they are a quarter of all: forgotten and empty read the same."""
        alive = np.zeros(len(self._keys), np.bool_)
        for ring in self._rings:
            alive |= ring.ints[: len(self._keys), HEAD] >= ring.oldest(self.watermark) - NO_TILE
        if int(alive.sum()) <= len(self._keys) * 3 // 4:
            self._replace(*self._live())
        self._sweep_at = max(SWEEP_FROM, 2 * len(self._keys))

    def _replace(self, names: "pa.StringArray", rows: list["pa.LargeListArray"]) -> None:
        self._keys = KeyIndex()
        self._keys.rows(names)
        for ring, packed in zip(self._rings, rows, strict=True):
            ring.unpack(packed)
        self._sweep_at = max(SWEEP_FROM, 2 * len(self._keys))


def _int64(array: NDArray[Any]) -> NDArray[np.int64]:
    return np.require(array, np.int64, ["C", "A"])


def _whole(column: "pa.ChunkedArray") -> "pa.Array[Any]":
    if column.num_chunks > 1:
        raise ValueError("the snapshot's names of keys are more than 2 GiB. Rebuild the state by replay.")
    return column.chunk(0) if column.num_chunks else pa.array([], column.type)


def warm_up() -> None:
    """Load the compiled kernels (compile them on the first run of a machine) and push one row through them."""
    functions = ("count", "sum", "mean", "min", "max", "std", "last")
    spec = ViewSpec.model_validate(
        {
            "name": "warm_up",
            "key": "key",
            "aggregations": [{"column": "x", "function": f, "window_ms": 60, "name": f} for f in functions],
            "tile_ms": {60: 1},
            "lateness_ms": 0,
        }
    )
    row = np.zeros(1, np.int64)
    columns = {"x": (np.ones(1), np.ones(1, np.bool_))}
    key = pa.StringArray.from_buffers(1, pa.py_buffer(np.array([0, 1], np.int32)), pa.py_buffer(b"a"))
    WindowState(spec).update(key, row, row + NO_WATERMARK, row, columns)
