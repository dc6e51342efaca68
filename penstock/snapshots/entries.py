"""A hash table's entries, each with the text that it is about, as an Arrow table that can be written row by row."""

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Entries = npt.NDArray[np.void]
Texts = npt.NDArray[np.uint8]


def as_table(entries: Entries, texts: Texts) -> "pa.Table":
    """``entries``: structured array whose ``start`` and ``stop`` are bounds in ``texts``, where they follow one another
    in the entries' order. Shares their memory."""
    n = len(entries)
    bounds = np.zeros(n + 1, np.int64)
    bounds[1:] = entries["stop"]
    entry = [None, pa.py_buffer(entries.view(np.uint8))]
    text = [None, pa.py_buffer(bounds), pa.py_buffer(texts)]
    columns = [
        pa.Array.from_buffers(pa.binary(entries.itemsize), n, entry),
        pa.Array.from_buffers(pa.large_binary(), n, text),
    ]
    return pa.Table.from_arrays(columns, names=["entry", "text"])


def from_table(table: "pa.Table", kind: "np.dtype[np.void]") -> tuple[Entries, Texts]:
    """What ``as_table`` was given, in memory of its own. Raises ``ValueError`` for entries of another ``kind``."""
    if table.schema.field("entry").type != pa.binary(kind.itemsize):
        raise ValueError(f"its entries are {table.schema.field('entry').type}, and have {kind.itemsize} bytes here")
    entries, texts = [np.empty(0, np.uint8)], [np.empty(0, np.uint8)]
    for batch in table.to_batches():
        entry, text = batch.columns
        begin, end = entry.offset * kind.itemsize, (entry.offset + len(entry)) * kind.itemsize
        entries.append(np.frombuffer(entry.buffers()[1], np.uint8)[begin:end])
        _, bounds, data = text.buffers()
        begin, end = np.frombuffer(bounds, np.int64)[[text.offset, text.offset + len(text)]]
        texts.append(np.frombuffer(data, np.uint8)[begin:end])
    return np.concatenate(entries).view(kind), np.concatenate(texts)
