"""What the conversions of schema resolution share: their type, how they name rows they cannot convert, how they
refuse.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Faults = dict[int, str]
Convert = Callable[[pa.Array, Faults], pa.Array]
"""A column of the writer's type to the reader's; adds row → message for rows that cannot be."""


class Unresolvable(ValueError):
    """No value of the writer's schema can be read with the reader's; the message names the field."""


def add_faults(faults: Faults, inside: Faults, matters: npt.NDArray[np.bool_]) -> None:
    # where the outer value is null or another branch, what stands inside means nothing
    for i, message in inside.items():
        if matters[i]:
            faults.setdefault(i, message)
