"""How Penstock's kernels are compiled: once, for one signature, kept on disk, and without holding the GIL.

Floating point stays strict (no fastmath), because a replay must give the same bits.
"""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
from numba import types

Function = TypeVar("Function", bound=Callable[..., Any])


# what a caller hands in may be a view of an Arrow buffer, which is read-only
INTS = types.Array(types.int64, 1, "C", readonly=True)
FLOATS = types.Array(types.float64, 1, "C", readonly=True)
BOOLS = types.Array(types.boolean, 1, "C", readonly=True)


def compiled(signature: Any) -> Callable[[Function], Function]:
    """Decorator: compile for this numba signature at import, or load it from the cache beside the module."""
    return cast(Callable[[Function], Function], numba.njit(signature, cache=True, nogil=True, error_model="numpy"))


def inlined(function: Function) -> Function:
    """Decorator of a helper that compiled functions of the *same module* call.

    numba's cache looks at one source file only: a helper in another module could change and not be compiled again.
    """
    return cast(Function, numba.njit(function, nogil=True, error_model="numpy"))
