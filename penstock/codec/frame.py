"""The Confluent frame before every Avro value: a zero byte and the schema id, 4 bytes, big-endian.

The frames of a batch are read all at once where they lie. pyruhvro takes the frame for two leading Avro fields, an
``int`` and a ``float``, which costs it nothing.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

MAGIC = 0
SIZE = 5
FIELDS = ({"name": "__magic", "type": "int"}, {"name": "__schema_id", "type": "float"})
"""The frame as leading fields of a record: five bytes on the wire, whatever they hold."""


def prefix(schema_id: int) -> bytes:
    """The five bytes before a value of ``schema_id``."""
    return bytes([MAGIC]) + schema_id.to_bytes(4, "big")


def framed_by(value: bytes | None) -> int | None:
    """The schema id of a framed value; None where there is no frame."""
    return int.from_bytes(value[1:5], "big") if value is not None and len(value) >= 5 and value[0] == MAGIC else None


def columns(schema_id: int, n: int) -> list[pa.Array]:
    """``FIELDS`` as columns of n rows: what the encoder writes to get the frame for nothing."""
    bits = np.full(n, int.from_bytes(schema_id.to_bytes(4, "big"), "little"), np.uint32)
    return [pa.array(np.zeros(n, np.int32)), pa.Array.from_buffers(pa.float32(), n, [None, pa.py_buffer(bits)])]


@dataclass(frozen=True, slots=True)
class Payloads:
    """The values of a batch end to end: ``data``: uint8[total]; ``offsets``: int64[n + 1] into it; a None has no
    bytes.
    """

    data: npt.NDArray[np.uint8]
    offsets: npt.NDArray[np.int64]

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """int64[n], bytes per value."""
        return np.diff(self.offsets)

    def first(self) -> npt.NDArray[np.uint8]:
        """uint8[n]: the first byte of each value; 255 where there is none."""
        out = np.full(len(self.offsets) - 1, 255, np.uint8)
        some = np.flatnonzero(self.lengths)
        out[some] = self.data[self.offsets[some]]
        return out


def lay_out(values: pa.BinaryArray) -> Payloads:
    """The values where they lie; no byte is copied."""
    _, offsets, data = values.buffers()
    n = len(values)
    if n == 0:
        return Payloads(np.empty(0, np.uint8), np.zeros(1, np.int64))
    at = np.frombuffer(offsets, np.int32, n + 1, values.offset * 4).astype(np.int64)
    return Payloads(np.frombuffer(data, np.uint8) if data else np.empty(0, np.uint8), at)


def schema_ids(payloads: Payloads) -> npt.NDArray[np.int64]:
    """int64[n]: the schema id of each value, -1 where the value is shorter than a frame or the magic byte is not 0."""
    n = len(payloads.offsets) - 1
    out = np.full(n, -1, np.int64)
    framed = np.flatnonzero(payloads.lengths >= SIZE)
    if len(framed) == 0:
        return out
    starts = payloads.offsets[framed]
    # every 4-byte window of the data as one big-endian number, so that one gather reads all ids
    words: npt.NDArray[np.uint32] = np.ndarray(
        (len(payloads.data) - 3,), np.dtype(">u4"), payloads.data.data, strides=(1,)
    )
    out[framed] = np.where(payloads.data[starts] == MAGIC, words[starts + 1].astype(np.int64), -1)
    return out
