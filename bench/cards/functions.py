"""The function behind the on-demand view."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt


def amounts(columns: Mapping[str, Any]) -> dict[str, npt.NDArray[np.float64]]:
    """The transaction's own amount."""
    return {"amount_now": np.asarray(columns["amount"], dtype=np.float64)}
