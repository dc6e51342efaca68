"""Control messages on the wire."""

from datetime import UTC, datetime

import pytest

from penstock.codec.avro import AvroEncoder
from penstock.models.control import ControlCodec, ControlMessage
from penstock.models.manifest import ModelError
from tests.onnx_models import plan

SAID = ControlMessage(
    model="shop_model",
    role="champion",
    version="1.0.0",
    digest="d" * 64,
    author="ann",
    reason="better on March",
    time=datetime(2024, 5, 6, 7, 8, 9, 123_000, UTC),
)


def test_a_message_comes_back_as_it_was_said() -> None:
    codec = ControlCodec(plan())

    assert codec.decode(codec.encode(SAID)) == SAID
    retired = SAID.model_copy(update={"version": None, "digest": None, "author": None})
    assert codec.decode(codec.encode(retired)) == retired


def test_a_champion_and_a_canary_have_keys_of_their_own_so_that_compaction_keeps_both() -> None:
    assert SAID.key == b"shop_model/champion"
    assert SAID.model_copy(update={"role": "canary"}).key == b"shop_model/canary"


@pytest.mark.parametrize("value", [b"", b"{}", b"\x00\x00\x00\x00\x0c\x01", b"\x00\x00\x00\x00\x63\x00"])
def test_foreign_bytes_are_no_control_message(value: bytes) -> None:
    with pytest.raises(ModelError, match="no control message"):
        ControlCodec(plan()).decode(value)


def test_a_share_beyond_a_hundred_percent_is_no_control_message() -> None:
    codec, value = ControlCodec(plan()), plan().topic("control").value
    assert value is not None
    assert isinstance(codec._encoder, AvroEncoder)
    with pytest.raises(ModelError, match="less than or equal to 100"):
        codec.decode(codec.encode(SAID.model_copy(update={"percent": 140.0})))
