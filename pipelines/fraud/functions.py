"""The function behind the on-demand view of the fraud pipeline: columns in, columns out, numpy only. It also takes the
dict of lists that stock Feast passes.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

HOME = ("DE", "FR", "GB", "US")
"""Countries that the cards are issued in; a card used elsewhere is abroad."""


def spending(columns: Mapping[str, Any]) -> dict[str, npt.NDArray[Any]]:
    """The amount itself and against the card's habit, whether the card was there, and whether it was abroad."""
    amount = np.asarray(columns["amount"], dtype=np.float64)
    usual = np.asarray(columns["mean_amount_1d"], dtype=np.float64)
    country = np.asarray(columns["country"], dtype=object).astype("U2")
    with np.errstate(divide="ignore", invalid="ignore"):
        return {
            "amount_spent": amount,
            "amount_over_mean": np.where(usual > 0, amount / usual, np.nan),
            "card_present": np.asarray(columns["present"], dtype=np.int64),
            "abroad": (~np.isin(country, HOME)).astype(np.int64),
        }
