"""The shapes that go through librdkafka's C interface."""

import ctypes

import numpy as np
import pyarrow as pa
import pytest

from penstock.transport.clients import Producer
from penstock.transport.librdkafka import MESSAGE, KafkaFault, Message, Place, listed, places_of, rd
from penstock.transport.messages import messages


def test_a_place_keeps_its_text_which_ends_in_a_nul_for_clients_that_read_on_to_one() -> None:
    with listed([Place("t", 3, 7, "1795564345034"), Place("t", 4, 8)]) as them:
        first = them.contents.elems[0]
        assert ctypes.string_at(first.metadata, first.metadata_size) == b"1795564345034\0"
        assert places_of(them) == [Place("t", 3, 7, "1795564345034"), Place("t", 4, 8, None)]


def test_a_place_that_failed_raises_its_error() -> None:
    with listed([Place("t", 3, 7)]) as them:
        them.contents.elems[0].err = 3
        with pytest.raises(KafkaFault, match="Unknown topic or partition") as raised:
            places_of(them)
    assert raised.value.code == 3


def test_messages_point_at_the_bytes_of_their_row() -> None:
    keys, values = pa.array([b"a", None, b"", b"dd"]), pa.array([b"1", b"22", None, b""])
    made = messages(keys.slice(1), values.slice(1), 40)
    assert MESSAGE.itemsize == ctypes.sizeof(Message) == 72
    assert made["private"].tolist() == [40, 41, 42]
    assert (made["partition"] == -1).all()
    read = [tuple(ctypes.string_at(int(m[at]), int(m[size])) if m[at] else None for at, size in FIELDS) for m in made]
    assert read == [(b"22", None), (None, b""), (b"", b"dd")]


FIELDS = (("payload", "length"), ("key", "key_length"))


def test_a_setting_that_librdkafka_does_not_have_is_named() -> None:
    with pytest.raises(ValueError, match="No such configuration property"):
        Producer({"no.such.setting": 1}, print, print)


def test_a_function_that_is_not_declared_is_named() -> None:
    with pytest.raises(AttributeError, match="rd_kafka_no_such is not declared"):
        rd.no_such()


def test_no_rows_make_no_messages() -> None:
    assert len(messages(pa.nulls(0, pa.binary()), pa.nulls(0, pa.binary()), 0)) == 0
    assert isinstance(messages(pa.nulls(1, pa.binary()), pa.array([b"v"]), 0), np.ndarray)
