"""What an event's Avro fields mean to features: the plain type behind a union with null, and which Feast type it may be
read as. Every feature is one of four Avro types (double, long, string, boolean), so that a model's inputs hold no
surprise.
"""

from collections.abc import Mapping
from typing import Any

from penstock.plan import AvroSchema

NUMBERS = ("int", "long", "float", "double", "boolean")
FEATURE_TYPES = {
    "Float64": "double",
    "Float32": "double",
    "Int64": "long",
    "Int32": "long",
    "String": "string",
    "Bool": "boolean",
}
"""Feast type → Avro type of a feature."""

_READABLE = {
    "double": ("int", "long", "float", "double"),
    "long": ("int", "long"),
    "string": ("string", "enum"),
    "boolean": ("boolean",),
}


def field_types(schema: AvroSchema) -> dict[str, str]:
    """Field → its plain type: an Avro primitive, ``enum``, a logical type's name, or ``union``, ``array``…"""
    return {field["name"]: plain_type(field["type"]) for field in schema["fields"]}


def plain_type(declared: Any) -> str:
    """The type without null: ``["null", {"type": "long", "logicalType": "date"}]`` is ``date``."""
    if isinstance(declared, list):
        others = [branch for branch in declared if branch != "null"]
        return plain_type(others[0]) if len(others) == 1 else "union"
    if isinstance(declared, Mapping):
        return str(declared["logicalType"]) if "logicalType" in declared else plain_type(declared["type"])
    return str(declared)


def is_nullable(declared: Any) -> bool:
    """Null is among the type's branches."""
    return declared == "null" or (isinstance(declared, list) and "null" in declared)


def is_readable(plain: str, feature_type: str) -> bool:
    """An event's field of type ``plain`` can be handed to a function as ``feature_type``."""
    return plain in _READABLE[feature_type]


def last_type(plain: str) -> str:
    """The feature type of the newest value of a numeric field."""
    return {"int": "long", "long": "long", "float": "double", "double": "double", "boolean": "boolean"}[plain]
