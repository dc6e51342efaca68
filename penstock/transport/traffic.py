"""How many requests of each kind a client has sent, and whether anything answers, counted where librdkafka does it.

Nothing else tells it in time: a request that is sent again is no error and no event, and statistics come when their
interval is over. The counting is compiled, so that librdkafka's threads never wait for Python.
"""

from ctypes import c_void_p
from typing import Any

import numba
import numpy as np
from numba import types

from penstock.transport.librdkafka import NO_ERROR, ON_NEW, rd

_KINDS, _ANSWERS = 128, 127
"""Room for Kafka's API keys, of which there are less than a hundred, and the place that counts answers of any kind."""

_COUNTS = types.CPointer(types.int64)
_REQUEST = (types.voidptr, types.int32, types.voidptr, types.int32, types.int16, types.int16, types.int32, types.uintp)


# rd_kafka_interceptor_f_on_request_sent_t
@numba.cfunc(types.int32(*_REQUEST, _COUNTS), cache=True)  # type: ignore[untyped-decorator]
def _sent(
    client: Any, sock: Any, name: Any, broker: Any, api: Any, version: Any, no: Any, size: Any, counts: Any
) -> int:
    counts[api] += 1
    return 0


# rd_kafka_interceptor_f_on_response_received_t; called once or twice for an answer, and also when one is given up
@numba.cfunc(types.int32(*_REQUEST, types.int64, types.int32, _COUNTS), cache=True)  # type: ignore[untyped-decorator]
def _answered(
    rk: Any,
    sock: Any,
    name: Any,
    broker: Any,
    api: Any,
    version: Any,
    no: Any,
    size: Any,
    took: Any,
    err: Any,
    counts: Any,
) -> int:
    if err == 0:
        counts[_ANSWERS] += 1
    return 0


class Traffic:
    """Of the one client that is made of ``conf``; must live as long as that."""

    def __init__(self, conf: int) -> None:
        self._counts, self._before = np.zeros((2, _KINDS), np.int64)
        self._counts_at = c_void_p(self._counts.ctypes.data)
        self._on_new = ON_NEW(self._count)
        rd.conf_interceptor_add_on_new(conf, b"traffic", self._on_new, None)

    def _count(self, client: int, *_: Any) -> int:
        rd.interceptor_add_on_request_sent(client, b"traffic", _sent.address, self._counts_at)
        rd.interceptor_add_on_response_received(client, b"traffic", _answered.address, self._counts_at)
        return NO_ERROR

    @property
    def answers(self) -> int:
        """Grows with every answer."""
        return int(self._counts[_ANSWERS])

    def mark(self) -> None:
        """``sent`` counts from now on."""
        self._before[:] = self._counts

    def sent(self, api: int) -> int:
        """Requests of one kind that left whole since ``mark``, with those that were sent again."""
        return int(self._counts[api] - self._before[api])
