"""One packed row per entity: numbers in fixed places, anything else as the bytes of Feast's own value, nothing pickled.

A row names its layout, so that rows written before a view gained a feature stay readable. Packing and unpacking work on
columns: Feast's value-by-value protobuf costs some forty times as much.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from feast.protos.feast.types.Value_pb2 import Value
from feast.value_type import ValueType
from numpy.typing import NDArray

_FLOATS = {ValueType.DOUBLE: "double_val", ValueType.FLOAT: "float_val"}
_INTEGERS = {
    ValueType.INT64: "int64_val",
    ValueType.INT32: "int32_val",
    ValueType.BOOL: "bool_val",
    ValueType.UNIX_TIMESTAMP: "unix_timestamp_val",
}
_ATTRIBUTES = _FLOATS | _INTEGERS
LAYOUT_BYTES = 8


@dataclass(frozen=True)
class Layout:
    """The features of a view, in order, with Feast's value types."""

    fields: tuple[tuple[str, ValueType], ...]

    @property
    def id(self) -> bytes:
        """8 bytes that every row of this layout begins with."""
        return hashlib.sha256(self.dump().encode()).digest()[:LAYOUT_BYTES]

    def dump(self) -> str:
        return json.dumps([[name, kind.name] for name, kind in self.fields])

    @staticmethod
    def load(text: str) -> "Layout":
        return Layout(tuple((name, ValueType[kind]) for name, kind in json.loads(text)))

    @property
    def _dtype(self) -> np.dtype[Any]:
        places: list[Any] = [("layout", f"V{LAYOUT_BYTES}"), ("present", "u1", (len(self.fields),))]
        for number, (_, kind) in enumerate(self.fields):
            if kind in _ATTRIBUTES:
                places.append((f"f{number}", "<f8" if kind in _FLOATS else "<i8"))
        return np.dtype(places)

    def pack(self, columns: Mapping[str, "pa.Array[Any] | Sequence[Value | None]"], n: int) -> list[bytes]:
        """A row for each of n entities. ``columns``: Arrow arrays or Feast's values; a feature without one is null.

        Raises ``pa.ArrowInvalid`` where an Arrow column cannot be what the view declares.
        """
        dtype = self._dtype
        fixed = np.zeros(n, dtype)
        fixed["layout"] = np.frombuffer(self.id, dtype["layout"])[0]
        blobs: list[list[bytes]] = []
        for number, (name, kind) in enumerate(self.fields):
            column = columns.get(name)
            if kind not in _ATTRIBUTES:
                values = [None] * n if column is None else _as_values(column, kind)
                fixed["present"][:, number] = [value is not None for value in values]
                blobs.append([b"" if value is None else value.SerializeToString() for value in values])
            elif column is not None:
                numbers, valid = _as_numbers(column, kind)
                fixed["present"][:, number] = valid
                fixed[f"f{number}"] = numbers
        data, size = fixed.tobytes(), dtype.itemsize
        rows = [data[start : start + size] for start in range(0, n * size, size)]
        for blob in blobs:
            rows = [row + len(more).to_bytes(4, "little") + more for row, more in zip(rows, blob, strict=True)]
        return rows

    def unpack(self, rows: Sequence[bytes], wanted: Sequence[str] | None = None) -> dict[str, list[Value]]:
        """Feast's values by feature, a value for each row; nulls are empty values. ``wanted``: None takes all."""
        dtype = self._dtype
        size = dtype.itemsize
        fixed = np.frombuffer(b"".join([row[:size] for row in rows]), dtype)
        at = [size] * len(rows)
        found: dict[str, list[Value]] = {}
        for number, (name, kind) in enumerate(self.fields):
            take = wanted is None or name in wanted
            if kind in _ATTRIBUTES:
                if take:
                    found[name] = _from_numbers(fixed[f"f{number}"], fixed["present"][:, number], kind)
                continue
            values = []
            for i, row in enumerate(rows):
                length = int.from_bytes(row[at[i] : at[i] + 4], "little")
                begin = at[i] + 4
                at[i] = begin + length
                values.append(Value.FromString(row[begin : at[i]]) if take else Value())
            if take:
                found[name] = values
        return found


def _as_values(column: Any, kind: ValueType) -> Sequence[Value | None]:
    """Feast's values of an Arrow column of text or bytes; other types come as Feast's values already."""
    if not isinstance(column, pa.Array):
        return [None if value is None or value.WhichOneof("val") is None else value for value in column]
    if kind == ValueType.STRING:
        texts = column.cast(pa.string()).to_pylist()
        return [None if text is None else Value(string_val=text) for text in texts]
    if kind == ValueType.BYTES:
        return [None if data is None else Value(bytes_val=data) for data in column.cast(pa.binary()).to_pylist()]
    raise ValueError(
        f"a feature of type {kind.name} cannot be written from a column of {column.type}. Use a number or text"
    )


def _as_numbers(column: Any, kind: ValueType) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    if isinstance(column, pa.Array):
        valid = column.is_valid().to_numpy(zero_copy_only=False)
        if kind == ValueType.UNIX_TIMESTAMP and pa.types.is_timestamp(column.type):
            column = column.cast(pa.timestamp("s"), safe=False)
        numbers = column.cast(pa.float64() if kind in _FLOATS else pa.int64())
        return numbers.fill_null(0).to_numpy(zero_copy_only=False), valid
    names = [None if value is None else value.WhichOneof("val") for value in column]
    values = [0 if name is None else getattr(value, name) for name, value in zip(names, column, strict=True)]
    return np.array(values, np.float64 if kind in _FLOATS else np.int64), np.array([n is not None for n in names])


def _from_numbers(numbers: NDArray[Any], present: NDArray[Any], kind: ValueType) -> list[Value]:
    name = _ATTRIBUTES[kind]
    values = (numbers.astype(np.bool_) if kind == ValueType.BOOL else numbers).tolist()
    if bool(present.all()):
        return [Value(**{name: value}) for value in values]
    return [Value(**{name: value}) if there else Value() for value, there in zip(values, present.tolist(), strict=True)]
