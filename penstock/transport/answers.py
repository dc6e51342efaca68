"""How many requests of each kind a client has sent and has no answer to, counted where librdkafka sends and receives.

Nothing else tells it in time: the error callback leaves out what it told a moment ago, a retry is silent, and statistics
come when their interval is over. The counting is compiled, so that librdkafka's threads never wait for Python.
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


# signatures of rd_kafka_interceptor_f_on_request_sent_t and _on_response_received_t
@numba.cfunc(types.int32(*_REQUEST, _COUNTS), cache=True)  # type: ignore[untyped-decorator]
def _sent(
    client: Any, sock: Any, name: Any, broker: Any, api: Any, version: Any, id_: Any, size: Any, counts: Any
) -> int:
    counts[api] += 1
    return 0


@numba.cfunc(types.int32(*_REQUEST, types.int64, types.int32, _COUNTS), cache=True)  # type: ignore[untyped-decorator]
def _answered(
    client: Any,
    sock: Any,
    name: Any,
    broker: Any,
    api: Any,
    version: Any,
    id_: Any,
    size: Any,
    took: Any,
    err: Any,
    counts: Any,
) -> int:
    if err == 0:  # else the client has given it up
        counts[api] -= 1
        counts[_ANSWERS] += 1
    return 0


class Answers:
    """Counts for the one client that is made of ``conf``; must live as long as that."""

    def __init__(self, conf: int) -> None:
        self._counts = np.zeros(_KINDS, np.int64)
        self._counts_at = c_void_p(self._counts.ctypes.data)
        self._on_new = ON_NEW(self._begin)
        rd.conf_interceptor_add_on_new(conf, b"answers", self._on_new, None)

    def _begin(self, client: int, *_: Any) -> int:
        rd.interceptor_add_on_request_sent(client, b"answers", _sent.address, self._counts_at)
        rd.interceptor_add_on_response_received(client, b"answers", _answered.address, self._counts_at)
        return NO_ERROR

    @property
    def received(self) -> int:
        """Answers so far, of any kind."""
        return int(self._counts[_ANSWERS])

    def missing(self, *apis: int) -> int:
        """Requests of these kinds that were sent whole and not answered."""
        return int(self._counts[list(apis)].sum())
