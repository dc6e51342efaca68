"""librdkafka's messages to columns, and columns to messages, in compiled code: no message becomes a Python object.

A poll is copied once, into one buffer of values and one of keys per topic, and its messages are given back to
librdkafka at once. Headers are looked for in every message and copied for those that have some.
"""

import ctypes
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from penstock.jit import INTS, compiled
from penstock.records import Int64s, Records
from penstock.transport import librdkafka
from penstock.transport.headers import Headers
from penstock.transport.librdkafka import MESSAGE

ERR, TOPIC, PARTITION, VALUE, VALUE_SIZE, KEY, KEY_SIZE, OFFSET, TIMESTAMP, HEADERS = range(10)
"""Rows of a survey: what is known of each message. Pointers are numbers; 0 is null."""

MOST_BYTES = (1 << 31) - 1
"""What one Arrow binary column holds."""

_WORD = ir.IntType(64)
_NO_BYTES = ctypes.create_string_buffer(1)
_GET_TIMESTAMP = librdkafka.address("message_timestamp")
_GET_HEADERS = librdkafka.address("message_headers")
_COUNT_HEADERS = librdkafka.address("header_cnt")
_GET_HEADER = librdkafka.address("header_get_all")
_DESTROY = librdkafka.address("message_destroy")


@intrinsic  # type: ignore[untyped-decorator]
def _call(typing: Any, function: Any, arguments: Any) -> Any:
    """The C function at an address, given 64-bit integers; of a 32-bit answer the upper half means nothing."""
    count = len(arguments)

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        target, packed = given
        kind = ir.FunctionType(_WORD, [_WORD] * count)
        return builder.call(builder.inttoptr(target, kind.as_pointer()), cgutils.unpack_tuple(builder, packed, count))

    return types.int64(types.int64, arguments), generate


@intrinsic  # type: ignore[untyped-decorator]
def _words(typing: Any, address: Any) -> Any:
    """The memory at an address as 64-bit words."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        return builder.inttoptr(given[0], _WORD.as_pointer())

    return types.CPointer(types.int64)(types.int64), generate


@intrinsic  # type: ignore[untyped-decorator]
def _copy(typing: Any, to: Any, at: Any, size: Any) -> Any:
    """``memcpy``."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        pointers = [builder.inttoptr(one, ir.IntType(8).as_pointer()) for one in given[:2]]
        cgutils.raw_memcpy(builder, *pointers, given[2], 1)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate


@compiled(types.void(INTS, types.int64[:, ::1], types.int64, types.int64, types.int64[::1], types.int64))
def _survey(
    messages: Int64s,
    found: npt.NDArray[np.int64],
    get_timestamp: int,
    get_headers: int,
    answer: Int64s,
    answer_at: int,
) -> None:
    for i in range(len(messages)):
        message = _words(messages[i])
        err = types.int32(message[0])
        found[ERR, i] = err
        found[TOPIC, i] = message[1]
        found[PARTITION, i] = types.int32(message[2])
        found[VALUE, i] = message[3]
        found[VALUE_SIZE, i] = message[4]
        found[KEY, i] = message[5]
        found[KEY_SIZE, i] = message[6]
        found[OFFSET, i] = message[7]
        found[HEADERS, i] = 0
        if err == 0:
            found[TIMESTAMP, i] = _call(get_timestamp, (messages[i], answer_at))
            if types.int32(_call(get_headers, (messages[i], answer_at))) == 0:
                found[HEADERS, i] = answer[0]


@compiled(types.void(INTS, types.int64))
def _destroy(messages: Int64s, destroy: int) -> None:
    for i in range(len(messages)):
        _call(destroy, (messages[i],))


@compiled(types.void(INTS, INTS, types.int32[::1], types.int64))
def _gather(addresses: Int64s, sizes: Int64s, bounds: npt.NDArray[np.int32], out: int) -> None:
    at = np.int64(0)
    bounds[0] = 0
    for i in range(len(addresses)):
        if sizes[i] > 0:
            _copy(out + at, addresses[i], sizes[i])
            at += sizes[i]
        bounds[i + 1] = at


@compiled(types.int64(INTS, types.int64))
def _count_headers(headers: Int64s, count: int) -> int:
    total = 0
    for i in range(len(headers)):
        total += _call(count, (headers[i],))
    return total


@compiled(types.void(INTS, types.int64, types.int64, types.int64[::1], types.int64, types.int64[:, ::1]))
def _list_headers(
    headers: Int64s, count: int, get: int, answer: Int64s, answer_at: int, found: npt.NDArray[np.int64]
) -> None:
    """Into the rows of ``found``: message, address and size of the name, address and size of the value."""
    n = 0
    for i in range(len(headers)):
        for k in range(_call(count, (headers[i],))):
            _call(get, (headers[i], k, answer_at, answer_at + 8, answer_at + 16))
            size, name = 0, _words(answer[0] & ~7)
            shift = (answer[0] & 7) * 8
            while (name[(size * 8 + shift) // 64] >> ((size * 8 + shift) % 64)) & 0xFF:
                size += 1
            found[0, n], found[1, n], found[2, n], found[3, n], found[4, n] = i, answer[0], size, answer[1], answer[2]
            n += 1


@dataclass(frozen=True, slots=True)
class Survey:
    """What a poll brought. ``messages``: int64[n] pointers, alive until ``close``; ``facts``: int64[10, n]."""

    messages: Int64s
    facts: npt.NDArray[np.int64]

    @staticmethod
    def of(messages: npt.NDArray[np.uint64]) -> "Survey":
        pointers = messages.view(np.int64)
        facts = np.empty((HEADERS + 1, len(pointers)), np.int64)
        answer = np.zeros(3, np.int64)
        _survey(pointers, facts, _GET_TIMESTAMP, _GET_HEADERS, answer, answer.ctypes.data)
        return Survey(pointers, facts)

    def close(self) -> None:
        """Gives the messages back; what was taken from them before stays."""
        _destroy(self.messages, _DESTROY)

    def faults(self) -> Iterator[tuple[int, str, int, int]]:
        """Error code, topic, partition and offset of each message that is none."""
        for i in np.flatnonzero(self.facts[ERR]).tolist():
            topic = self.facts[TOPIC, i]
            name = librdkafka.topic_name(int(topic)) if topic else ""
            yield int(self.facts[ERR, i]), name, int(self.facts[PARTITION, i]), int(self.facts[OFFSET, i])

    def records(self) -> list[Records]:
        """The rows of each topic, in the order in which they came."""
        topic, good = self.facts[TOPIC], self.facts[ERR] == 0
        if good.all() and len(topic) and bool((topic == topic[0]).all()):
            return _records(self.facts)
        found: dict[str, list[int]] = {}
        for pointer in dict.fromkeys(topic[good].tolist()):
            found.setdefault(librdkafka.topic_name(pointer), []).append(pointer)
        places = [np.flatnonzero(good & np.isin(topic, pointers)) for pointers in found.values()]
        return [records for chosen in places for records in _records(self.facts[:, chosen])]


def _records(facts: npt.NDArray[np.int64]) -> list[Records]:
    n = facts.shape[1]
    if n > 1 and max(facts[VALUE_SIZE].sum(), facts[KEY_SIZE].sum()) > MOST_BYTES:
        return _records(facts[:, : n // 2]) + _records(facts[:, n // 2 :])
    facts = np.ascontiguousarray(facts)
    headers = _headers(facts[HEADERS], n)
    return [
        Records(
            librdkafka.topic_name(int(facts[TOPIC, 0])),
            _gathered(facts[VALUE], facts[VALUE_SIZE]),
            _gathered(facts[KEY], facts[KEY_SIZE]),
            facts[PARTITION].astype(np.int32),
            facts[OFFSET].copy(),
            facts[TIMESTAMP].copy(),
            headers.of,
            headers.texts,
        )
    ]


def _headers(pointers: Int64s, n: int) -> Headers:
    rows = np.flatnonzero(pointers)
    if not len(rows):
        return Headers.none(n)
    some = np.ascontiguousarray(pointers[rows])
    found = np.empty((5, _count_headers(some, _COUNT_HEADERS)), np.int64)
    answer = np.zeros(3, np.int64)
    _list_headers(some, _COUNT_HEADERS, _GET_HEADER, answer, answer.ctypes.data, found)
    return Headers(n, rows[found[0]], _gathered(found[1], found[2]), _gathered(found[3], found[4]))


def _gathered(addresses: Int64s, sizes: Int64s) -> pa.BinaryArray:
    """The bytes at each address as one column; null where the address is."""
    n = len(addresses)
    total = int(sizes.sum())
    data, bounds = np.empty(total, np.uint8), np.empty(n + 1, np.int32)
    _gather(addresses, sizes, bounds, data.ctypes.data)
    valid, nulls = None, n - int(np.count_nonzero(addresses))
    if nulls:
        valid = pa.py_buffer(np.packbits(addresses != 0, bitorder="little"))
    return pa.Array.from_buffers(pa.binary(), n, [valid, pa.py_buffer(bounds), pa.py_buffer(data)], nulls)


def _bounds(array: "pa.BinaryArray") -> npt.NDArray[np.int32]:
    if not len(array):
        return np.zeros(1, np.int32)
    return np.frombuffer(array.buffers()[1], np.int32, len(array) + 1, array.offset * 4)


def messages(keys: "pa.BinaryArray", values: "pa.BinaryArray", first_mark: int) -> npt.NDArray[np.void]:
    """Rows as ``MESSAGE``, marked ``first_mark``, ``first_mark + 1``, … They point into the two columns, which must
    outlive them."""
    out = np.zeros(len(values), MESSAGE)
    out["partition"] = -1
    for array, pointer, size in ((values, "payload", "length"), (keys, "key", "key_length")):
        bounds = _bounds(array)
        data = array.buffers()[2]
        base = data.address if data is not None and data.size else ctypes.addressof(_NO_BYTES)
        out[pointer] = base + bounds[:-1].astype(np.uint64)
        out[size] = np.diff(bounds)
        if array.null_count:
            null = array.is_null().to_numpy(zero_copy_only=False)
            out[pointer][null] = 0
            out[size][null] = 0
    out["private"] = first_mark + np.arange(len(values))
    return out
