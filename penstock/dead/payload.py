"""The value of a dead letter, decoded as far as it goes: the codec's decoders take a row whole or not at all, and here
a person wants to see where it breaks.
"""

import json
import math
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NoReturn

from penstock.codec import frame
from penstock.codec.shapes import Array, Enum, Map, Primitive, Record, Shape, Union, UnsupportedSchema, parse
from penstock.plan import AvroSchema
from penstock.schemas.registry import TransientLookupError, UnknownSchemaId

Lookup = Callable[[int], AvroSchema]
_INDENTED = 32
"""Deeper levels stay on their line: a bomb of brackets would fill the screen with spaces."""


@dataclass(slots=True)
class Payload:
    """``kind``: ``json``, ``avro`` or ``bytes``; ``text``: JSON on several lines, empty where nothing could be decoded;
    ``faults``: what is wrong, with the field and the byte; the last one is where decoding stopped.
    """

    kind: str
    text: str = ""
    faults: list[str] = field(default_factory=list)
    schema_id: int | None = None


def decode(value: bytes | None, lookup: Lookup | None) -> Payload:
    """``lookup`` gives writers' schemas by id; None where the caller has none. Raises nothing for what is in the
    value."""
    if not value:
        return Payload("bytes", faults=["no value (a tombstone)" if value is None else "a value of no bytes"])
    if value[0] == frame.MAGIC:
        return _avro(value, lookup)
    if value.lstrip(b" \t\r\n")[:1] in (b"{", b"["):
        return _json(value)
    return Payload("bytes", faults=[f"byte 0 is {value[0]}: Avro begins with 0 and JSON with {{"])


def hex_dump(value: bytes, most: int | None = None) -> str:
    """Sixteen bytes a line: offset, hex, text. ``most``: bytes at the most; what is left out is counted."""
    shown = value if most is None else value[:most]
    lines = []
    for at in range(0, len(shown), 16):
        row = shown[at : at + 16]
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in row)
        lines.append(f"{at:08x}  {row[:8].hex(' '):<23}  {row[8:].hex(' '):<23}  |{text}|")
    if len(shown) < len(value):
        lines.append(f"… {len(value) - len(shown):,} more bytes")
    return "\n".join(lines)


def _json(value: bytes) -> Payload:
    faults = []
    try:
        value.decode()
    except UnicodeDecodeError as error:
        faults.append(f"byte {error.start}: not UTF-8")
    text = value.decode(errors="surrogateescape")
    end = len(value)
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        end = len(text[: error.pos].encode(errors="surrogateescape"))
        faults.append(f"byte {end}: {error.msg}")
    except RecursionError:
        faults.append("nested too deep to be parsed")
    return Payload("json", indented(value[:end].decode(errors="backslashreplace")), faults)


def indented(text: str) -> str:
    """JSON, or the beginning of it, with a line for each item."""
    out: list[str] = []
    depth, quoted, escaped = 0, False, False

    def line() -> None:
        if depth <= _INDENTED:
            out.append("\n" + "  " * depth)

    for letter in text:
        if quoted:
            out.append(letter)
            quoted = escaped or letter != '"'
            escaped = letter == "\\" and not escaped
        elif letter in "{[":
            out.append(letter)
            depth += 1
            line()
        elif letter in "}]":
            depth = max(0, depth - 1)
            line()
            out.append(letter)
        elif letter == ",":
            out.append(letter)
            line()
        elif letter == ":":
            out.append(": ")
        elif not letter.isspace():
            out.append(letter)
            quoted = letter == '"'
    return "".join(out)


def _avro(value: bytes, lookup: Lookup | None) -> Payload:
    if len(value) < frame.SIZE:
        return Payload("avro", faults=[f"byte {len(value)}: the frame of 5 bytes ends early"])
    schema_id = int.from_bytes(value[1 : frame.SIZE], "big")
    if lookup is None:
        mend = f"schema id {schema_id} cannot be looked up: give --plan or --lock, or set PENSTOCK_SCHEMA_REGISTRY_URL"
        return Payload("avro", faults=[mend], schema_id=schema_id)
    try:
        shape = parse(lookup(schema_id))
    except UnknownSchemaId:
        return Payload("avro", faults=[f"no schema has id {schema_id}"], schema_id=schema_id)
    except (UnsupportedSchema, TransientLookupError) as error:
        return Payload("avro", faults=[f"schema id {schema_id}: {error}"], schema_id=schema_id)
    reader = _Reader(value, frame.SIZE)
    found: list[Any] = []
    try:
        reader.read(shape, "", found.append)
    except _Stopped:
        pass
    else:
        if extra := len(value) - reader.at:
            reader.faults.append(f"byte {reader.at}: {extra} bytes follow the last field")
    return Payload("avro", json.dumps(found[0], indent=2, ensure_ascii=False), reader.faults, schema_id)


class _Stopped(Exception):
    """The value cannot be read any further. Never leaves this module."""


class _Reader:
    """Walks one value. ``put`` takes a container before what is in it, so what was read stays when the walk stops. The
    depth is the schema's, and every item takes a byte at the least, so a value cannot ask for more than it has.
    """

    def __init__(self, value: bytes, at: int) -> None:
        self._value, self.at = value, at
        self.faults: list[str] = []

    def read(self, shape: Shape, path: str, put: Callable[[Any], None]) -> None:
        start = self.at
        match shape:
            case Record(_, fields):
                row: dict[str, Any] = {}
                put(row)
                for one in fields:
                    self.read(one.shape, f"{path}.{one.name}" if path else one.name, partial(row.__setitem__, one.name))
            case Union(branches):
                branch = self._long(path)
                if not 0 <= branch < len(branches):
                    self._stop(start, path, f"no branch {branch} of {len(branches)}")
                self.read(branches[branch], path, put)
            case Array(items):
                rows: list[Any] = []
                put(rows)
                for _ in self._items(path):
                    self.read(items, f"{path}[{len(rows)}]", rows.append)
            case Map(values):
                entries: dict[str, Any] = {}
                put(entries)
                for _ in self._items(path):
                    key = self._text(path)
                    self.read(values, f"{path}[{key!r}]", partial(entries.__setitem__, key))
            case Enum(_, symbols):
                symbol = self._long(path)
                if not 0 <= symbol < len(symbols):
                    self._stop(start, path, f"no symbol {symbol} of {len(symbols)}")
                put(symbols[symbol])
            case Primitive(kind):
                put(self._primitive(kind, path))

    def _primitive(self, kind: str, path: str) -> Any:
        match kind:
            case "null":
                return None
            case "boolean":
                (byte,) = self._take(1, path)
                if byte > 1:
                    self._stop(self.at - 1, path, "neither true nor false")
                return bool(byte)
            case "int" | "long":
                return self._long(path)
            case "float" | "double":
                code, size = ("<f", 4) if kind == "float" else ("<d", 8)
                (number,) = struct.unpack(code, self._take(size, path))
                return number if math.isfinite(number) else str(number)  # JSON has no word for these
            case "bytes":
                return self._take(self._length(path), path).hex()
        return self._text(path)

    def _text(self, path: str) -> str:
        start = self.at
        raw = self._take(self._length(path), path)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            self.faults.append(f"byte {start}, field {path!r}: not UTF-8")
            return raw.decode(errors="backslashreplace")

    def _items(self, path: str) -> Iterator[int]:
        while count := self._long(path):
            if count < 0:
                self._long(path)  # the block's size in bytes
            yield from range(abs(count))

    def _length(self, path: str) -> int:
        start, length = self.at, self._long(path)
        if length < 0:
            self._stop(start, path, f"a length of {length}")
        return length

    def _long(self, path: str) -> int:
        start, coded = self.at, 0
        for shift in range(0, 70, 7):
            (byte,) = self._take(1, path)
            coded |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
        else:
            self._stop(start, path, "a number of more than ten bytes")
        return (coded >> 1) ^ -(coded & 1)

    def _take(self, size: int, path: str) -> bytes:
        left = len(self._value) - self.at
        if size > left:
            self._stop(self.at, path, f"it asks for {size} bytes, and {left} are left")
        self.at += size
        return self._value[self.at - size : self.at]

    def _stop(self, at: int, path: str, why: str) -> NoReturn:
        self.faults.append(f"byte {at}, field {path!r}: {why}")
        raise _Stopped
