"""librdkafka's message objects to columns. The objects go no further than this; asking each for a fact costs, so every
fact is asked for once, and only when it is needed.
"""

import numpy as np
import pyarrow as pa
from confluent_kafka import TIMESTAMP_LOG_APPEND_TIME, Message

from penstock.records import Header, Int32s, Int64s, Records


def by_topic(messages: list[Message], only: str | None) -> list[Records]:
    """``only``: the topic, where one alone is read, so that no message is asked for it."""
    if not messages:
        return []
    if only is not None:
        return [_records(only, messages)]
    topics = list(map(Message.topic, messages))
    if topics.count(topics[0]) == len(topics):
        return [_records(topics[0], messages)]
    return [
        _records(name, [m for m, topic in zip(messages, topics, strict=True) if topic == name])
        for name in dict.fromkeys(topics)
    ]


def _records(topic: str, messages: list[Message]) -> Records:
    """Headers are taken out now: what holds on to the messages themselves, as a merge does until they are its turn,
    holds three times the memory."""
    n = len(messages)
    found = list(map(Message.headers, messages))
    headers = found if any(found) else None
    partition = np.fromiter(map(Message.partition, messages), np.int32, n)
    return Records(
        topic,
        list(map(Message.value, messages)),
        list(map(Message.key, messages)),
        partition,
        np.fromiter(map(Message.offset, messages), np.int64, n),
        _timestamps(messages, partition),
        lambda row: (headers[row] or []) if headers is not None else [],
        lambda: None if headers is None else _traceparents(headers),
    )


def _timestamps(messages: list[Message], partition: Int32s) -> Int64s:
    """Append times. Asking a message for its time costs ten times what its value costs; a partition's append times
    never fall, so where two rows have the same one, so have all between them. Times that producers set are asked for
    one by one."""
    times = np.empty(len(messages), np.int64)
    for number in np.flatnonzero(np.bincount(partition)).tolist():
        places = np.flatnonzero(partition == number)
        kind, _ = messages[places[0]].timestamp()
        if kind != TIMESTAMP_LOG_APPEND_TIME:
            times[places] = [messages[i].timestamp()[1] for i in places.tolist()]
            continue
        spans = [(0, len(places) - 1)]
        while spans:
            first, last = spans.pop()
            begin, end = messages[places[first]].timestamp()[1], messages[places[last]].timestamp()[1]
            if begin == end or last - first < 2:
                times[places[first : last + 1]] = begin
                times[places[last]] = end
            else:
                middle = (first + last) // 2
                spans += [(first, middle), (middle, last)]
    return times


def _traceparents(headers: list[list[Header] | None]) -> "pa.Array":
    found = [next((value for name, value in row or [] if name == "traceparent" and value), None) for row in headers]
    texts = [value if value is None or value.isascii() else None for value in found]
    return pa.array(texts, pa.binary()).cast(pa.string())
