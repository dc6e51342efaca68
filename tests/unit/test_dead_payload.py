"""The value of a dead letter as a person sees it: decoded up to the field and the byte where it breaks."""

import io
import json
from typing import Any

import fastavro
import pytest

from penstock.dead.payload import decode, hex_dump, indented

LINE: dict[str, Any] = {
    "type": "record",
    "name": "Line",
    "fields": [{"name": "sku", "type": "string"}, {"name": "n", "type": "int"}],
}
SCHEMA: dict[str, Any] = {
    "type": "record",
    "name": "Order",
    "fields": [
        {"name": "id", "type": "string"},
        {"name": "amount", "type": ["null", "double"]},
        {"name": "lines", "type": {"type": "array", "items": LINE}},
        {"name": "tags", "type": {"type": "map", "values": "long"}},
        {"name": "kind", "type": {"type": "enum", "name": "Kind", "symbols": ["new", "used"]}},
        {"name": "paid", "type": "boolean"},
        {"name": "proof", "type": "bytes"},
    ],
}
ORDER: dict[str, Any] = {
    "id": "o-1", "amount": 2.5, "lines": [{"sku": "a", "n": 1}, {"sku": "b", "n": -2}], "tags": {"x": 1 << 40},
    "kind": "used", "paid": True, "proof": b"\x01\xff",
}  # fmt: skip


def avro(row: dict[str, Any] = ORDER) -> bytes:
    out = io.BytesIO()
    fastavro.schemaless_writer(out, fastavro.parse_schema(SCHEMA, named_schemas={}), row)
    return b"\0\0\0\0\7" + out.getvalue()


def lookup(schema_id: int) -> dict[str, Any]:
    assert schema_id == 7
    return SCHEMA


def test_a_whole_avro_value_is_what_fastavro_wrote() -> None:
    found = decode(avro(), lookup)
    assert json.loads(found.text) == {**ORDER, "proof": "01ff"}
    assert (found.kind, found.schema_id, found.faults) == ("avro", 7, [])


@pytest.mark.parametrize("length", range(5, len(avro())))
def test_a_value_cut_anywhere_shows_a_beginning_and_says_where_it_stops(length: int) -> None:
    found = decode(avro()[:length], lookup)
    shown, whole = json.loads(found.text), {**ORDER, "proof": "01ff"}
    names = list(shown)
    assert names == list(whole)[: len(names)]
    assert all(shown[name] == whole[name] for name in names[:-1])
    (fault,) = found.faults
    assert f"and {length - int(fault.split()[1].strip(','))} are left" in fault


def test_the_field_within_a_nested_value_is_named() -> None:
    found = decode(avro()[: avro().index(b"b") + 1], lookup)
    assert json.loads(found.text)["lines"] == [{"sku": "a", "n": 1}, {"sku": "b"}]
    assert "field 'lines[1].n'" in found.faults[-1]


def test_what_is_out_of_its_range_stops_at_its_own_byte() -> None:
    value = avro().replace(b"\2\1\4\1\xff", b"\x0e\1\4\1\xff")  # the enum's second symbol becomes its eighth
    found = decode(value, lookup)
    assert found.faults == [f"byte {len(value) - 5}, field 'kind': no symbol 7 of 2"]
    assert list(json.loads(found.text)) == ["id", "amount", "lines", "tags"]


def test_text_that_is_no_utf8_is_told_and_passed_over() -> None:
    found = decode(avro().replace(b"o-1", b"o\xff1"), lookup)
    assert json.loads(found.text)["id"] == "o\\xff1"
    assert json.loads(found.text)["paid"] is True
    assert found.faults == ["byte 5, field 'id': not UTF-8"]


def test_trailing_bytes_are_counted() -> None:
    assert decode(avro() + b"xyz", lookup).faults == [f"byte {len(avro())}: 3 bytes follow the last field"]


def test_nan_is_shown_in_json() -> None:
    assert json.loads(decode(avro({**ORDER, "amount": float("nan")}), lookup).text)["amount"] == "nan"


def test_a_claim_of_billions_of_items_ends_with_the_bytes() -> None:
    claim = avro()[:5] + b"\2a" + b"\0" + b"\xfe\xff\xff\xff\xff\xff\xff\xff\xff\1" + b"\2s\2"
    found = decode(claim, lookup)
    assert json.loads(found.text)["lines"] == [{"sku": "s", "n": 1}, {}]


def test_without_a_schema_the_mend_is_named() -> None:
    assert "schema id 7 cannot be looked up: give --plan or --lock" in decode(avro(), None).faults[0]


def test_json_is_laid_out_up_to_the_error() -> None:
    found = decode(b'{"a": [1, {"b": "x, {y}\\""}], "c": tru', None)
    assert found.text == '{\n  "a": [\n    1,\n    {\n      "b": "x, {y}\\""\n    }\n  ],\n  "c": '
    assert found.faults == ["byte 35: Expecting value"]
    assert json.loads(indented('{"a":[1,{"b":"x"}]}')) == {"a": [1, {"b": "x"}]}


def test_bad_utf8_in_json_is_told_and_passed_over() -> None:
    found = decode('{"a": "é'.encode() + b'\xff", "b": }', None)
    assert found.faults == ["byte 9: not UTF-8", "byte 18: Expecting value"]
    assert found.text == '{\n  "a": "é\\xff",\n  "b": '


def test_a_bomb_of_brackets_takes_little_room() -> None:
    found = decode(b"[" * 40_000, None)
    assert found.faults
    assert len(found.text) < 60_000


@pytest.mark.parametrize(
    ("value", "fault"),
    [(None, "tombstone"), (b"", "no bytes"), (b"\7abc", "byte 0 is 7"), (b"\0\0", "the frame of 5 bytes ends early")],
)
def test_what_is_no_value_at_all_is_told(value: bytes | None, fault: str) -> None:
    assert fault in decode(value, lookup).faults[0]


def test_a_hex_dump_shows_offsets_bytes_and_text_and_counts_the_rest() -> None:
    dump = hex_dump(b"\0\x1b[31mhello, world" + b"\xff" * 30, 20).splitlines()
    assert dump[0] == "00000000  00 1b 5b 33 31 6d 68 65  6c 6c 6f 2c 20 77 6f 72  |..[31mhello, wor|"
    assert dump[1] == "00000010  6c 64 ff ff              " + " " * 25 + "|ld..|"
    assert dump[2] == "… 28 more bytes"
