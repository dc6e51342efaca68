"""Merging a worker's partitions by event time, before a stage writes their rows under another key.

The order within a partition always stays: a row is placed by the largest event time its partition has shown up to it,
never by its own, so an early row behind a late one waits for it.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def merge_order(times: Sequence[NDArray[np.int64]], waiting: Sequence[bool]) -> NDArray[np.int64]:
    """Order in which buffered rows may go on: repeatedly the partition whose head is the earliest in event time.

    `times[k]`: int64[n_k], ms since epoch, the buffered rows of partition k in log order; `waiting[k]`: whether k must
    be waited for once it has run dry, because more of its log is still to come. Of equal heads the lower k goes first.

    Returns int64[m], indices into the concatenation of `times`. The merge ends after the last row of the first
    partition that runs dry and is waited for; it is empty if such a partition has nothing buffered.
    """
    if len(times) != len(waiting):
        raise ValueError(
            f"merge_order got {len(times)} partitions but {len(waiting)} waiting flags. Pass one flag each."
        )
    if any(wait and not len(rows) for rows, wait in zip(times, waiting, strict=True)):
        return np.empty(0, np.int64)
    filled = [np.maximum.accumulate(rows) for rows in times if len(rows)]
    if not filled:
        return np.empty(0, np.int64)
    order = np.argsort(np.concatenate(filled), kind="stable").astype(np.int64, copy=False)
    last_rows = np.cumsum([len(rows) for rows in times]) - 1
    dry = last_rows[np.asarray(waiting, bool)]
    if len(dry):
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order))
        order = order[: place[dry].min() + 1]
    return order
