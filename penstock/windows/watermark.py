"""The event-time watermark of a partition: the largest event time that its log has shown so far.

A row is judged by the watermark *before* it, so that the verdict is a function of the log and of nothing else.
"""

import numpy as np
from numpy.typing import NDArray

from penstock.records import NO_TIME

NO_WATERMARK = NO_TIME
"""Watermark of a partition that has shown no row: older than any event, and far from overflow."""


def running_watermark(times: NDArray[np.int64], start: int = NO_WATERMARK) -> NDArray[np.int64]:
    """Largest event time before each row: `start` for the first one.

    `times`: int64[n], ms since epoch, the rows of one partition in log order; `start`: the watermark before them.
    Returns int64[n]. The watermark after the batch is `max(start, times.max())`.
    """
    before = np.empty(len(times), np.int64)
    if len(times):
        before[0] = start
        np.maximum.accumulate(times[:-1], out=before[1:])
        np.maximum(before, start, out=before)
    return before
