"""librdkafka's own C interface, as far as the transport needs it: the very library that confluent-kafka brings along.

Only what ``clients.py`` and ``messages.py`` call is declared, with the names of ``rdkafka.h`` less their ``rd_kafka_``.
"""

import ctypes
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from ctypes import POINTER, byref, c_char_p, c_int, c_int32, c_int64, c_size_t, c_void_p
from typing import Any, NamedTuple

import numpy as np
from confluent_kafka import cimpl

NO_ERROR = 0
PARTITION_EOF, QUEUE_FULL, FATAL, FENCED = -191, -184, -150, -144
PURGE_QUEUE, PURGE_INFLIGHT, PRODUCER_FENCED = -152, -151, 90
ASSIGN_PARTITIONS, ERRONEOUS_STATE, NO_OFFSET = -175, -172, -1001
TIMED_OUT, END = -185, -1
MSG_SIZE_TOO_LARGE, TOPIC_AUTHORIZATION_FAILED, GROUP_AUTHORIZATION_FAILED = 10, 29, 30
RECORD_LIST_TOO_LARGE, INVALID_TIMESTAMP, INVALID_MSG, INVALID_PRODUCER_EPOCH = 18, 32, 2, 47
INVALID_TXN_STATE, INVALID_TRANSACTION_TIMEOUT = 48, 50
FENCED_INSTANCE_ID, INVALID_RECORD = 82, 87
END_TXN, TXN_OFFSET_COMMIT = 26, 28
"""API keys."""
DESCRIBED_TOPICS = 0x100000
"""A kind of events."""


class TopicPartition(ctypes.Structure):
    """``rd_kafka_topic_partition_t``."""

    _fields_ = (
        ("topic", c_char_p),
        ("partition", c_int32),
        ("offset", c_int64),
        ("metadata", c_void_p),
        ("metadata_size", c_size_t),
        ("opaque", c_void_p),
        ("err", c_int),
        ("private", c_void_p),
    )


class TopicPartitions(ctypes.Structure):
    """``rd_kafka_topic_partition_list_t``."""

    _fields_ = (("cnt", c_int), ("size", c_int), ("elems", POINTER(TopicPartition)))


class Message(ctypes.Structure):
    """``rd_kafka_message_t``; ``MESSAGE`` is the same as a numpy dtype."""

    _fields_ = (
        ("err", c_int),
        ("topic", c_void_p),
        ("partition", c_int32),
        ("payload", c_void_p),
        ("length", c_size_t),
        ("key", c_void_p),
        ("key_length", c_size_t),
        ("offset", c_int64),
        ("private", c_int64),
    )


MESSAGE = np.dtype(Message)


class Content(ctypes.Structure):
    """The union of ``rd_kafka_vu_t``: a pointer or a number, and a size."""

    _fields_ = (("pointer", c_void_p), ("size", c_size_t), ("rest", c_char_p * 6))


class Part(ctypes.Structure):
    """``rd_kafka_vu_t``: one argument of ``rd_kafka_produceva``."""

    _fields_ = (("kind", c_int), ("value", Content))


class PartitionFacts(ctypes.Structure):
    """``rd_kafka_metadata_partition_t``."""

    _fields_ = (
        ("id", c_int32),
        ("err", c_int),
        ("leader", c_int32),
        ("replica_cnt", c_int),
        ("replicas", c_void_p),
        ("isr_cnt", c_int),
        ("isrs", c_void_p),
    )


class TopicFacts(ctypes.Structure):
    """``rd_kafka_metadata_topic_t``."""

    _fields_ = (
        ("topic", c_char_p),
        ("partition_cnt", c_int),
        ("partitions", POINTER(PartitionFacts)),
        ("err", c_int),
    )


class MemberFacts(ctypes.Structure):
    """``rd_kafka_group_member_info``."""

    _fields_ = (
        ("member_id", c_char_p),
        ("client_id", c_char_p),
        ("client_host", c_char_p),
        ("metadata", c_void_p),
        ("metadata_size", c_int),
        ("assignment", c_void_p),
        ("assignment_size", c_int),
    )


class GroupFacts(ctypes.Structure):
    """``rd_kafka_group_info``."""

    _fields_ = (
        ("broker_id", c_int32),
        ("broker_host", c_char_p),
        ("broker_port", c_int),
        ("group", c_char_p),
        ("err", c_int),
        ("state", c_char_p),
        ("protocol_type", c_char_p),
        ("protocol", c_char_p),
        ("members", POINTER(MemberFacts)),
        ("member_cnt", c_int),
    )


class Groups(ctypes.Structure):
    """``rd_kafka_group_list``."""

    _fields_ = (("groups", POINTER(GroupFacts)), ("group_cnt", c_int))


class Metadata(ctypes.Structure):
    """``rd_kafka_metadata_t``."""

    _fields_ = (
        ("broker_cnt", c_int),
        ("brokers", c_void_p),
        ("topic_cnt", c_int),
        ("topics", POINTER(TopicFacts)),
        ("orig_broker_id", c_int32),
        ("orig_broker_name", c_char_p),
    )


ON_REBALANCE = ctypes.CFUNCTYPE(None, c_void_p, c_int, POINTER(TopicPartitions), c_void_p)
ON_DELIVERY = ctypes.CFUNCTYPE(None, c_void_p, POINTER(Message), c_void_p)
ON_ERROR = ctypes.CFUNCTYPE(None, c_void_p, c_int, c_char_p, c_void_p)
ON_NEW = ctypes.CFUNCTYPE(c_int, c_void_p, c_void_p, c_void_p, c_void_p, c_size_t)
ON_LOG = ctypes.CFUNCTYPE(None, c_void_p, c_int, c_char_p, c_char_p)

# the library that confluent-kafka is linked to, wherever its wheel keeps it
_library = ctypes.CDLL(cimpl.__file__)


_P, _I, _S, _L, _N = c_void_p, c_int, c_size_t, POINTER(TopicPartitions), POINTER(c_void_p)
_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "conf_new": (_P,),
    "conf_destroy": (None, _P),
    "conf_set": (_I, _P, c_char_p, c_char_p, c_char_p, _S),
    "conf_set_rebalance_cb": (None, _P, ON_REBALANCE),
    "conf_set_dr_msg_cb": (None, _P, ON_DELIVERY),
    "conf_set_error_cb": (None, _P, ON_ERROR),
    "conf_set_log_cb": (None, _P, ON_LOG),
    "conf_interceptor_add_on_new": (_I, _P, c_char_p, ON_NEW, _P),
    "interceptor_add_on_request_sent": (_I, _P, c_char_p, _P, _P),
    "interceptor_add_on_response_received": (_I, _P, c_char_p, _P, _P),
    "new": (_P, _I, _P, c_char_p, _S),
    "set_log_queue": (_I, _P, _P),
    "destroy_flags": (None, _P, _I),
    "err2str": (c_char_p, _I),
    "err2name": (c_char_p, _I),
    "fatal_error": (_I, _P, c_char_p, _S),
    "last_error": (_I,),
    "error_code": (_I, _P),
    "error_string": (c_char_p, _P),
    "error_is_fatal": (_I, _P),
    "error_is_retriable": (_I, _P),
    "error_txn_requires_abort": (_I, _P),
    "error_destroy": (None, _P),
    "topic_partition_list_new": (_L, _I),
    "topic_partition_list_add": (POINTER(TopicPartition), _L, c_char_p, c_int32),
    "topic_partition_list_destroy": (None, _L),
    "mem_malloc": (_P, _P, _S),
    "poll": (_I, _P, _I),
    "poll_set_consumer": (_I, _P),
    "queue_get_consumer": (_P, _P),
    "queue_new": (_P, _P),
    "consumer_close_queue": (_P, _P, _P),
    "consumer_closed": (_I, _P),
    "message_destroy": (None, _P),
    "queue_destroy": (None, _P),
    "consume_batch_queue": (ctypes.c_ssize_t, _P, _I, _P, _S),
    "subscribe": (_I, _P, _L),
    "incremental_assign": (_P, _P, _L),
    "incremental_unassign": (_P, _P, _L),
    "assignment_lost": (_I, _P),
    "seek_partitions": (_P, _P, _L, _I),
    "pause_partitions": (_I, _P, _L),
    "resume_partitions": (_I, _P, _L),
    "committed": (_I, _P, _L, _I),
    "commit": (_I, _P, _L, _I),
    "query_watermark_offsets": (_I, _P, c_char_p, c_int32, POINTER(c_int64), POINTER(c_int64), _I),
    "get_watermark_offsets": (_I, _P, c_char_p, c_int32, POINTER(c_int64), POINTER(c_int64)),
    "offsets_for_times": (_I, _P, _L, _I),
    "consumer_group_metadata": (_P, _P),
    "consumer_group_metadata_destroy": (None, _P),
    "topic_new": (_P, _P, c_char_p, _P),
    "topic_destroy": (None, _P),
    "topic_name": (c_char_p, _P),
    "metadata": (_I, _P, _I, _P, POINTER(POINTER(Metadata)), _I),
    "metadata_destroy": (None, POINTER(Metadata)),
    "produce_batch": (_I, _P, c_int32, _I, _P, _I),
    "produceva": (_P, _P, POINTER(Part), _S),
    "headers_new": (_P, _S),
    "headers_destroy": (None, _P),
    "header_add": (_I, _P, c_char_p, ctypes.c_ssize_t, c_char_p, ctypes.c_ssize_t),
    "outq_len": (_I, _P),
    "flush": (_I, _P, _I),
    "init_transactions": (_P, _P, _I),
    "begin_transaction": (_P, _P),
    "send_offsets_to_transaction": (_P, _P, _L, _P, _I),
    "commit_transaction": (_P, _P, _I),
    "abort_transaction": (_P, _P, _I),
    "queue_poll": (_P, _P, _I),
    "event_type": (_I, _P),
    "event_error": (_I, _P),
    "event_destroy": (None, _P),
    "TopicCollection_of_topic_names": (_P, POINTER(c_char_p), _S),
    "TopicCollection_destroy": (None, _P),
    "DescribeTopics": (None, _P, _P, _P, _P),
    "event_DescribeTopics_result": (_P, _P),
    "DescribeTopics_result_topics": (_N, _P, POINTER(c_size_t)),
    "TopicDescription_name": (c_char_p, _P),
    "TopicDescription_error": (_P, _P),
    "TopicDescription_partitions": (_N, _P, POINTER(c_size_t)),
    "ListOffsets": (None, _P, _L, _P, _P),
    "event_ListOffsets_result": (_P, _P),
    "ListOffsets_result_infos": (_N, _P, POINTER(c_size_t)),
    "ListOffsetsResultInfo_topic_partition": (POINTER(TopicPartition), _P),
    "list_groups": (_I, _P, c_char_p, POINTER(POINTER(Groups)), _I),
    "group_list_destroy": (None, POINTER(Groups)),
}
"""Function, without its ``rd_kafka_`` → what it returns, what it is given."""


class _Functions:
    """The functions as attributes."""

    def __init__(self) -> None:
        for name, (result, *arguments) in _SIGNATURES.items():
            function = getattr(_library, f"rd_kafka_{name}")
            function.restype, function.argtypes = result, arguments
            setattr(self, name, function)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"rd_kafka_{name} is not declared in {__name__}")


rd = _Functions()


def address(name: str) -> int:
    """Where the C function ``rd_kafka_NAME`` lies, for compiled code that calls it."""
    return ctypes.cast(getattr(_library, f"rd_kafka_{name}"), c_void_p).value or 0


def topic_name(topic: int) -> str:
    """The name of a ``rd_kafka_topic_t``."""
    name: bytes = rd.topic_name(topic)
    return name.decode()


def name_of(code: int) -> str:
    """An error's code as librdkafka names it."""
    name: bytes = rd.err2name(code)
    return name.decode()


class KafkaFault(Exception):
    """An error that librdkafka answered. ``retriable``: the same call again; ``abortable``: the transaction has to be
    aborted; ``fatal``: the client is beyond repair."""

    def __init__(
        self, code: int, text: str = "", *, retriable: bool = False, abortable: bool = False, fatal: bool = False
    ) -> None:
        super().__init__(text or rd.err2str(code).decode())
        self.code, self.retriable, self.abortable, self.fatal = code, retriable, abortable, fatal


class Place(NamedTuple):
    """A partition with an offset; ``metadata`` is the text beside a committed one."""

    topic: str
    partition: int
    offset: int = NO_OFFSET
    metadata: str | None = None


@contextmanager
def listed(places: Iterable[Place]) -> Iterator[Any]:
    """A list for a call. What the call writes into it is read with ``places_of``."""
    made = rd.topic_partition_list_new(8)
    try:
        for place in places:
            entry = rd.topic_partition_list_add(made, place.topic.encode(), place.partition).contents
            entry.offset = place.offset
            if place.metadata is not None:
                # confluent-kafka and what is built on it reads on to a NUL byte
                text = place.metadata.encode() + b"\0"
                entry.metadata = rd.mem_malloc(None, len(text))  # the list frees it
                ctypes.memmove(entry.metadata, text, len(text))
                entry.metadata_size = len(text)
        yield made
    finally:
        rd.topic_partition_list_destroy(made)


def places_of(listed: Any) -> list[Place]:
    """The places of a list, as a call left them. Raises ``KafkaFault`` for one that failed."""
    found = []
    for entry in listed.contents.elems[: listed.contents.cnt]:
        if entry.err:
            raise KafkaFault(entry.err)
        metadata = ctypes.string_at(entry.metadata, entry.metadata_size) if entry.metadata_size else b""
        text = metadata.rstrip(b"\0").decode() or None
        found.append(Place(entry.topic.decode(), entry.partition, entry.offset, text))
    return found


def elements(listing: Any, of: int) -> list[int]:
    """The objects that ``listing``, a function of a result and a count, lists of the result ``of``."""
    size = c_size_t()
    found = listing(of, byref(size))
    return [int(found[i]) for i in range(size.value)]


def named(listed: Any) -> list[Place]:
    """The places of a list by name alone."""
    return [Place(entry.topic.decode(), entry.partition) for entry in listed.contents.elems[: listed.contents.cnt]]


def check(code: int) -> None:
    """Raises ``KafkaFault`` for any answer but success."""
    if code != NO_ERROR:
        raise KafkaFault(code)


def check_error(error: int | None) -> None:
    """The same for functions that answer with an error object, which is freed."""
    if error:
        fault = KafkaFault(
            rd.error_code(error),
            rd.error_string(error).decode(),
            retriable=bool(rd.error_is_retriable(error)),
            abortable=bool(rd.error_txn_requires_abort(error)),
            fatal=bool(rd.error_is_fatal(error)),
        )
        rd.error_destroy(error)
        raise fault


def content_of(content: bytes | None) -> Content:
    """Bytes as an argument; they must outlive the call."""
    if content is None:
        return Content(None, 0)
    return Content(ctypes.cast(c_char_p(content), c_void_p).value, len(content))
