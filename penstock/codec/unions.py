"""Resolution of unions: each of the writer's branches finds one of the reader's, and its rows are converted at once."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from penstock.codec.arrow import arrow_type, branch_name
from penstock.codec.convert import Convert, Faults, Unresolvable, add_faults
from penstock.codec.shapes import Enum, Record, Shape, Union, describe


def union_converter(
    writer: Shape, reader: Shape, path: str, converter: Callable[[Shape, Shape, str], Convert]
) -> Convert:
    """How a column is read where the writer's or the reader's type is a union; ``converter`` is asked branch by
    branch.
    """
    from_ = writer.branches if isinstance(writer, Union) else (writer,)
    to = reader.branches if isinstance(reader, Union) else (reader,)
    chosen: list[tuple[int, Convert] | str] = [_choose(branch, to, path, converter) for branch in from_]
    if all(isinstance(choice, str) for choice in chosen):
        raise Unresolvable(str(chosen[0]))
    kinds = [arrow_type(branch) for branch in to]
    names = [branch_name(branch) for branch in to]

    def convert(array: pa.Array, faults: Faults) -> pa.Array:
        n = len(array)
        codes, parts = _branches(writer, array)
        out_codes = np.zeros(n, np.int8)
        out: list[pa.Array | None] = [None] * len(to)
        for i, (choice, part) in enumerate(zip(chosen, parts, strict=True)):
            mine = codes == i
            if isinstance(choice, str):
                faults.update({row: choice for row in np.flatnonzero(mine).tolist() if row not in faults})
                continue
            at, step = choice
            inside: Faults = {}
            column = step(part, inside)
            add_faults(faults, inside, mine)
            out_codes[mine] = at
            before = out[at]
            out[at] = column if before is None else _merged(mine, column, before)
        whole = [pa.nulls(n, kind) if a is None else a for a, kind in zip(out, kinds, strict=True)]
        return _joined(reader, out_codes, whole, names)

    return convert


def _choose(
    branch: Shape, to: tuple[Shape, ...], path: str, converter: Callable[[Shape, Shape, str], Convert]
) -> tuple[int, Convert] | str:
    """Where a writer's branch goes: the branch of its own name, else the first that takes it; else why none does."""
    why = ""
    order = sorted(range(len(to)), key=lambda i: branch_name(to[i]) != branch_name(branch))
    for i in order:
        if len(to) > 1 and isinstance(branch, Record | Enum) and not _named_alike(branch, to[i]):
            continue
        try:
            return i, converter(branch, to[i], path)
        except Unresolvable as error:
            why = why or str(error)
    return why or f"field {path!r}: the reader's union has no {describe(branch)}."


def _named_alike(writer: Record | Enum, reader: Shape) -> bool:
    if not isinstance(reader, Record | Enum):
        return True
    names = {name.rpartition(".")[2] for name in (reader.name, *reader.aliases)}
    return writer.name.rpartition(".")[2] in names


def _branches(shape: Shape, array: pa.Array) -> tuple[npt.NDArray[np.int8], list[pa.Array]]:
    """int8[n], the branch of each row, and one column of n per branch."""
    n = len(array)
    if not isinstance(shape, Union):
        return np.zeros(n, np.int8), [array]
    if shape.optional is not None:
        null = array.is_null().to_numpy(zero_copy_only=False)
        at = shape.null_index
        parts = [pa.nulls(n), array] if at == 0 else [array, pa.nulls(n)]
        return np.where(null, at, 1 - at).astype(np.int8), parts
    codes = np.frombuffer(array.buffers()[1], np.int8, n, array.offset)
    return codes, [array.field(i) for i in range(len(shape.branches))]


def _joined(reader: Shape, codes: npt.NDArray[np.int8], parts: list[pa.Array], names: list[str]) -> pa.Array:
    if not isinstance(reader, Union):
        return parts[0]
    if reader.optional is not None:
        at = reader.null_index
        value, null = parts[1 - at], codes == at
        if (value.is_null().to_numpy(zero_copy_only=False) >= null).all():
            return value
        return value.take(pa.array(np.arange(len(null)), mask=null))
    return pa.UnionArray.from_sparse(pa.array(codes), parts, names)


def _merged(mine: npt.NDArray[np.bool_], column: pa.Array, before: pa.Array) -> pa.Array:
    # if_else knows no unions inside; take does
    rows = np.arange(len(mine))
    return pa.concat_arrays([before, column]).take(pa.array(np.where(mine, rows + len(mine), rows)))
