"""The default of a schema's field as a column: what a row gets that was written before the field existed."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from penstock.codec.arrow import arrow_type, branch_name
from penstock.codec.shapes import Array, Enum, Map, Primitive, Record, Shape, Union, UnsupportedSchema, describe

_KINDS: dict[str, tuple[type, ...]] = {
    "boolean": (bool,),
    "int": (int,),
    "long": (int,),
    "float": (int, float),
    "double": (int, float),
    "bytes": (str,),
    "string": (str,),
}
_RANGE = {"int": 31, "long": 63}


def default_column(shape: Shape, default: Any, n: int) -> pa.Array:
    """``default`` (JSON, as it stands in the schema) n times. Raises ``UnsupportedSchema`` where it is none of
    ``shape``.
    """
    if isinstance(shape, Union) and shape.optional is None:
        return _of_union(shape, default, n)
    return pa.repeat(pa.scalar(default_value(shape, default), arrow_type(shape)), n)


def default_value(shape: Shape, default: Any) -> Any:
    """The default as a Python value that pyarrow takes for ``arrow_type(shape)``."""
    match shape:
        case Primitive("null") if default is None:
            return None
        case Primitive(kind) if _is_a(kind, default):
            return _of_primitive(shape, default)
        case Enum(_, symbols) if default in symbols:
            return default
        case Array(items) if isinstance(default, list):
            return [default_value(items, v) for v in default]
        case Map(values) if isinstance(default, Mapping):
            return [(k, default_value(values, v)) for k, v in default.items()]
        case Record(_, fields) if isinstance(default, Mapping):
            return {f.name: default_value(f.shape, default.get(f.name, f.default)) for f in fields}
        case Union():
            # the first branch in Avro 1.11, any that fits since 1.12
            return default_value(_branch(shape, default)[1], default)
    raise UnsupportedSchema(f"default {default!r} is no {describe(shape)}.")


def _is_a(kind: str, default: Any) -> bool:
    return isinstance(default, _KINDS.get(kind, ())) and (kind == "boolean" or not isinstance(default, bool))


def _of_primitive(shape: Primitive, default: Any) -> Any:
    kind = shape.kind
    if kind == "bytes":
        return default.encode("latin-1")
    if kind in ("float", "double"):
        return float(default)
    if kind in _RANGE:
        if not -(1 << _RANGE[kind]) <= default < 1 << _RANGE[kind]:
            raise UnsupportedSchema(f"default {default} is out of the range of {kind}.")
        if shape.logical is not None:
            return _moment(default, kind, arrow_type(shape))
    return default


def _moment(value: int, kind: str, to: pa.DataType) -> Any:
    whole = pa.int32() if kind == "int" else pa.int64()
    return pa.array([value], whole).view(to)[0].as_py()


def _branch(shape: Union, default: Any) -> tuple[int, Shape]:
    for i, branch in enumerate(shape.branches):
        try:
            default_value(branch, default)
        except UnsupportedSchema:
            continue
        return i, branch
    raise UnsupportedSchema(f"default {default!r} fits no branch of {describe(shape)}.")


def _of_union(shape: Union, default: Any, n: int) -> pa.Array:
    chosen, _ = _branch(shape, default)
    parts = [
        default_column(b, default, n) if i == chosen else pa.nulls(n, arrow_type(b))
        for i, b in enumerate(shape.branches)
    ]
    codes = pa.array(np.full(n, chosen, np.int8))
    return pa.UnionArray.from_sparse(codes, parts, [branch_name(b) for b in shape.branches])
