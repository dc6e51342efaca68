"""Which files an ONNX model wants to read beside itself. A model may name any path for its weights, so the names are
read here, from the verified bytes, before ONNX Runtime opens anything.

Only the protobuf fields on the way to a tensor are walked (onnx.proto), so that workers need no onnx package;
weights are skipped over.
"""

from collections.abc import Iterator

_NESTED: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 20: "Training", 25: "Function"},
    "Training": {1: "Graph", 2: "Graph"},
    "Function": {7: "Node", 11: "Attribute"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "SparseTensor", 23: "SparseTensor"},
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
    "Tensor": {13: "External"},
}
_LENGTH_DELIMITED = 2
_MAX_DEPTH = 64


def external_files(model: bytes) -> set[str]:
    """The locations that the model's tensors name. Raises ``ValueError`` when the bytes are no protobuf message."""
    found: set[str] = set()
    _walk(memoryview(model), "Model", found, 0)
    return found


def _walk(message: memoryview, kind: str, found: set[str], depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise ValueError(f"its graphs are nested more than {_MAX_DEPTH} deep")
    nested = _NESTED[kind]
    for number, content in _fields(message):
        inner = nested.get(number)
        if inner == "External":
            entry = {n: bytes(c) for n, c in _fields(content) if n in (1, 2)}
            if entry.get(1) == b"location":
                found.add(entry.get(2, b"").decode("utf-8", "replace"))
        elif inner is not None:
            _walk(content, inner, found, depth + 1)


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """The length-delimited fields of a message: number and content."""
    at, end = 0, len(message)
    while at < end:
        tag, at = _varint(message, at)
        wire = tag & 7
        if wire == 0:
            _, at = _varint(message, at)
        elif wire == 1:
            at += 8
        elif wire == _LENGTH_DELIMITED:
            size, at = _varint(message, at)
            if size > end - at:
                raise ValueError("a field reaches beyond the end of the file")
            yield tag >> 3, message[at : at + size]
            at += size
        elif wire == 5:
            at += 4
        else:
            raise ValueError(f"wire type {wire} at byte {at}")
    if at != end:
        raise ValueError("a field reaches beyond the end of the file")


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(message) and shift < 70:
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise ValueError("a number does not end")
