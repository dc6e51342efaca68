"""How many bytes columns take in Avro, without writing them: what tells whether a batch was read to the end of every
value.

Fast because it sums per column: a varint's length is a count of comparisons, and text is its offsets.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from penstock.codec.shapes import Array, Enum, Map, Primitive, Record, Shape, Union


def encoded_size(array: pa.Array, shape: Shape) -> int:
    """How many bytes the column takes in Avro, written the shortest way."""
    n = len(array)
    if n == 0:
        return 0
    match shape:
        case Primitive("null"):
            return 0
        case Primitive("boolean"):
            return n
        case Primitive("float"):
            return 4 * n
        case Primitive("double"):
            return 8 * n
        case Primitive("int") | Primitive("long"):
            return varint_sizes(_integers(array))
        case Primitive():
            lengths = _lengths(array)
            return int(lengths.sum()) + varint_sizes(lengths)
        case Enum(_, symbols):
            if len(symbols) <= 64:
                return n
            return varint_sizes(pc.index_in(array, pa.array(symbols)).to_numpy(zero_copy_only=False))
        case Union(branches):
            if shape.optional is not None:
                return n + encoded_size(array.drop_null() if array.null_count else array, shape.optional)
            codes = np.frombuffer(array.buffers()[1], np.int8, n)
            parts = (encoded_size(array.field(i).filter(pa.array(codes == i)), b) for i, b in enumerate(branches))
            return n + sum(parts)
        case Record(_, fields):
            return sum(encoded_size(array.field(i), f.shape) for i, f in enumerate(fields))
        case Array(items):
            lengths = _lengths(array)
            return _block_sizes(lengths) + encoded_size(array.flatten(), items)
        case Map(values):
            lengths = _lengths(array)
            start, end = array.offsets[0].as_py(), array.offsets[n].as_py()
            keys, inner = array.keys.slice(start, end - start), array.items.slice(start, end - start)
            return _block_sizes(lengths) + encoded_size(keys, Primitive("string")) + encoded_size(inner, values)


def varint_sizes(values: npt.NDArray[Any]) -> int:
    """The bytes that int64[n] takes as zigzag varints, in sum."""
    n = len(values)
    if n == 0:
        return 0
    wide = values.astype(np.int64, copy=False)
    low, high = int(wide.min()), int(wide.max())
    if low >= -64 and high < 64:
        return n
    coded = ((wide << 1) ^ (wide >> 63)).view(np.uint64)
    total, most, least = n, int(coded.max()), int(coded.min())
    limit = 1 << 7
    while limit <= most:
        total += n if least >= limit else int(np.count_nonzero(coded >= np.uint64(limit)))
        limit <<= 7
    return total


def _block_sizes(lengths: npt.NDArray[Any]) -> int:
    # a count and a closing 0 each; an empty one is the 0 alone
    return varint_sizes(lengths) + int(np.count_nonzero(lengths))


def _integers(array: pa.Array) -> npt.NDArray[np.int64]:
    kind = pa.int32() if array.type.bit_width == 32 else pa.int64()
    return array.view(kind).to_numpy()  # type: ignore[no-any-return]  # pyarrow is untyped here


def _lengths(array: pa.Array) -> npt.NDArray[np.int32]:
    at = np.frombuffer(array.buffers()[1], np.int32, len(array) + 1, array.offset * 4)
    return at[1:] - at[:-1]
