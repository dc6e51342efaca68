"""FULL_TRANSITIVE: a new version must read what every older one wrote, and every older one must read what it writes.

Names matter here as in Avro itself; aliases count only in the direction in which they are looked at, so a rename is
never fully compatible.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from penstock.codec.shapes import (
    MISSING,
    Array,
    Enum,
    Field,
    Map,
    Primitive,
    Record,
    Shape,
    Union,
    describe,
    parse,
)

_PROMOTIONS = {
    ("int", "long"),
    ("int", "float"),
    ("int", "double"),
    ("long", "float"),
    ("long", "double"),
    ("float", "double"),
    ("string", "bytes"),
    ("bytes", "string"),
}


@dataclass(frozen=True, slots=True)
class Incompatibility:
    """``field``: its path in the record; ``message``: what changed and the mend; ``version``: the older version, from
    1.
    """

    field: str
    message: str
    direction: str
    version: int

    def __str__(self) -> str:
        return self.message


class IncompatibleSchema(ValueError):
    """A version that the ones before it forbid."""

    def __init__(self, subject: str, version: int, found: Sequence[Incompatibility]) -> None:
        first = found[0]
        more = f" ({len(found) - 1} more.)" if len(found) > 1 else ""
        super().__init__(f"schema {subject!r} v{version} is not {first.direction} compatible: {first.message}{more}")
        self.found = tuple(found)


def check(new: Mapping[str, Any], olds: Sequence[Mapping[str, Any]]) -> list[Incompatibility]:
    """What stands between ``new`` and each of ``olds``, both ways; empty where it may follow them."""
    fresh = parse(new)
    found: dict[str, Incompatibility] = {}
    for version, old in enumerate(olds, 1):
        shape = parse(old)
        for direction, writer, reader in (("backward", shape, fresh), ("forward", fresh, shape)):
            for path, message in _differences(writer, reader, "", direction):
                found.setdefault(path, Incompatibility(path, message, direction, version))
    return list(found.values())


def _differences(writer: Shape, reader: Shape, path: str, direction: str) -> Iterator[tuple[str, str]]:
    match writer, reader:
        case Record(), Record():
            yield from _records(writer, reader, path, direction)
        case Enum(), Enum():
            yield from _enums(writer, reader, path, direction)
        case (Array(w), Array(r)) | (Map(w), Map(r)):
            yield from _differences(w, r, f"{path}[]", direction)
        case (Union(), _) | (_, Union()):
            yield from _unions(writer, reader, path, direction)
        case Primitive(), Primitive():
            if writer.kind != reader.kind and (writer.kind, reader.kind) not in _PROMOTIONS:
                yield path, _changed(writer, reader, path, direction)
            elif writer.logical != reader.logical:
                yield path, f"{_changed(writer, reader, path, direction)}"
        case _:
            yield path, _changed(writer, reader, path, direction)


def _changed(writer: Shape, reader: Shape, path: str, direction: str) -> str:
    old, new = (writer, reader) if direction == "backward" else (reader, writer)
    return (
        f"field {path!r} changed from {describe(old)} to {describe(new)}. "
        "Add a field with a default instead, or register a new subject."
    )


def _records(writer: Record, reader: Record, path: str, direction: str) -> Iterator[tuple[str, str]]:
    if path and not _named_alike(writer, reader):
        yield path, _changed(writer, reader, path, direction)
        return
    written = {f.name: f for f in writer.fields}
    for field in reader.fields:
        where = f"{path}.{field.name}" if path else field.name
        source = next((written[name] for name in (field.name, *sorted(field.aliases)) if name in written), None)
        if source is not None:
            yield from _differences(source.shape, field.shape, where, direction)
            if direction == "backward" and source.default is not MISSING and field.default is MISSING:
                # harmless to this pair, but readers of the version after next would be without it
                yield where, f"field {where!r} lost its default. Give it a default or register a new subject."
        elif field.default is MISSING:
            yield where, _without_default(field, where, direction)


def _without_default(field: Field, where: str, direction: str) -> str:
    if direction == "backward":
        return f"new field {where!r} has no default. Give it a default or register a new subject."
    return (
        f"field {where!r} is gone, and readers of the older version know no default for it. "
        "Keep it or register a new subject."
    )


def _enums(writer: Enum, reader: Enum, path: str, direction: str) -> Iterator[tuple[str, str]]:
    if not _named_alike(writer, reader):
        yield path, _changed(writer, reader, path, direction)
    lost = [s for s in writer.symbols if s not in reader.symbols]
    if lost and reader.default is None:
        what = "lost" if direction == "backward" else "gained"
        who = "the new" if direction == "backward" else "an older"
        yield (
            path,
            f"enum field {path!r} {what} the symbol {lost[0]!r}, and {who} version has no default symbol. "
            "Keep the symbols, give the enum a default in its first version, or register a new subject.",
        )


def _unions(writer: Shape, reader: Shape, path: str, direction: str) -> Iterator[tuple[str, str]]:
    to = reader.branches if isinstance(reader, Union) else (reader,)
    for branch in writer.branches if isinstance(writer, Union) else (writer,):
        if any(not list(_differences(branch, candidate, path, direction)) for candidate in to):
            continue
        if isinstance(branch, Primitive) and branch.kind == "null":
            became = "required" if direction == "backward" else "nullable"
            yield (
                path,
                f"field {path!r} became {became}, and one of the two versions cannot read the other's. "
                "Add a field instead, or register a new subject.",
            )
        else:
            yield path, _changed(writer, reader, path, direction)
        return


def _named_alike(writer: Record | Enum, reader: Record | Enum) -> bool:
    names = {name.rpartition(".")[2] for name in (reader.name, *reader.aliases)}
    return writer.name.rpartition(".")[2] in names
