"""What version of Kafka answers, as far as its protocol tells: the finalized feature ``metadata.version`` (KRaft), and
the newest version of the requests that transactions need. The Kafka client keeps this to itself, so it is asked here,
by one ApiVersions request on a connection of its own, which Kafka answers before any log-in (KIP-35, KIP-584).
"""

import socket
import ssl
import struct
from collections.abc import Iterator
from typing import NamedTuple

from penstock.settings import Settings

_API_VERSIONS, _VERSION = 18, 3
_TXN_OFFSET_COMMIT = 28
_NEEDED = 3
"""The TxnOffsetCommit that carries the member's generation (KIP-447): fencing of a group's zombies rests on it."""
_FINALIZED, _MOST_BYTES = 2, 1 << 20


class BrokerVersion(NamedTuple):
    """``metadata``: level of the finalized feature ``metadata.version``, None where there is none (ZooKeeper, or a
    broker that is not Apache's). ``transactional``: the group's generation is checked in transactions."""

    metadata: int | None
    transactional: bool

    def __str__(self) -> str:
        if self.metadata is None:
            return "no metadata.version (inter-broker version unknown)"
        return f"metadata.version at level {self.metadata}"


def ask_version(settings: Settings, timeout: float) -> BrokerVersion | None:
    """None where the first broker that can be reached does not tell."""
    for address in settings.bootstrap_servers.split(","):
        host, _, port = address.strip().rpartition(":")
        try:
            with _connected(host.strip("[]"), int(port), settings, timeout) as connection:
                connection.sendall(_request())
                return read_answer(_received(connection))
        except (OSError, ValueError, struct.error, IndexError):
            continue
    return None


def read_answer(content: bytes) -> BrokerVersion:
    """An ApiVersions response of version 3, less its length. Raises ``ValueError`` for anything else."""
    answer = _Answer(content)
    answer.int32()  # correlation id; the header of this response alone has no tagged fields
    if code := answer.int16():
        raise ValueError(f"ApiVersions is answered by error {code}")
    apis = {}
    for _ in range(answer.varint() - 1):
        key, _, newest = answer.int16(), answer.int16(), answer.int16()
        apis[key] = newest
        answer.skip_tags()
    answer.int32()  # throttle time
    levels: dict[str, int] = {}
    for tag, part in answer.tags():
        if tag == _FINALIZED:
            levels = dict(_levels(_Answer(part)))
    return BrokerVersion(levels.get("metadata.version"), apis.get(_TXN_OFFSET_COMMIT, -1) >= _NEEDED)


def _levels(answer: "_Answer") -> Iterator[tuple[str, int]]:
    for _ in range(answer.varint() - 1):
        name, level, _ = answer.text(), answer.int16(), answer.int16()
        answer.skip_tags()
        yield name, level


def _request() -> bytes:
    client, tags = b"penstock", b"\0"
    header = struct.pack(">hhih", _API_VERSIONS, _VERSION, 1, len(client)) + client + tags
    body = bytes([len(client) + 1]) + client + b"\x020" + tags
    return struct.pack(">i", len(header) + len(body)) + header + body


def _connected(host: str, port: int, settings: Settings, timeout: float) -> socket.socket:
    plain = socket.create_connection((host, port), timeout)
    if not settings.security_protocol.endswith("SSL"):
        return plain
    context = ssl.create_default_context(cafile=settings.ssl_ca_location)
    if settings.ssl_certificate_location is not None:
        password = settings.ssl_key_password
        context.load_cert_chain(
            settings.ssl_certificate_location,
            settings.ssl_key_location,
            None if password is None else password.get_secret_value(),
        )
    return context.wrap_socket(plain, server_hostname=host)


def _received(connection: socket.socket) -> bytes:
    with connection.makefile("rb") as stream:
        (size,) = struct.unpack(">i", stream.read(4))
        if not 0 < size <= _MOST_BYTES:
            raise ValueError(f"an answer of {size} bytes is not Kafka's")
        return stream.read(size)


class _Answer:
    """The primitive types of Kafka's protocol, read front to back."""

    def __init__(self, content: bytes) -> None:
        self._content, self._at = content, 0

    def _take(self, count: int) -> bytes:
        if count < 0 or self._at + count > len(self._content):
            raise ValueError("the answer is cut off")
        self._at += count
        return self._content[self._at - count : self._at]

    def int16(self) -> int:
        return int.from_bytes(self._take(2), "big", signed=True)

    def int32(self) -> int:
        return int.from_bytes(self._take(4), "big", signed=True)

    def varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._take(1)[0]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7

    def text(self) -> str:
        return self._take(self.varint() - 1).decode()

    def tags(self) -> Iterator[tuple[int, bytes]]:
        for _ in range(self.varint()):
            yield self.varint(), self._take(self.varint())

    def skip_tags(self) -> None:
        for _ in self.tags():
            pass
