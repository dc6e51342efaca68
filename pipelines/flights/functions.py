"""The functions behind the on-demand views and ``predict_when``: columns in, columns out, and no Feast, so that
workers need not import it. Each also takes the dict of lists that stock Feast passes, which is why they begin with
``np.asarray``.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Columns = Mapping[str, Any]
Floats = npt.NDArray[np.float64]


def departed(columns: Columns) -> npt.NDArray[np.bool_]:
    """bool[n]: the flight left its gate, so there is something to predict."""
    left: npt.NDArray[np.bool_] = np.asarray(columns["status"], dtype=object) == "departed"
    return left


def departure(columns: Columns) -> dict[str, npt.NDArray[Any]]:
    """What the event itself says: its delay in minutes, its place in day and week, who flies from where to where."""
    # the id ends with the airport, which is a join key and so no request data
    airports = pc.utf8_slice_codeunits(pa.array(columns["flight_id"], pa.string()), -3)
    return {
        "departure_delay": _floats(columns, "dep_delay"),
        "hour_of_day": np.asarray(columns["sched_hour"], dtype=np.int64),
        "day_of_week": np.asarray(columns["sched_dow"], dtype=np.int64),
        "airline": np.asarray(columns["carrier"], dtype=object),
        "departure_airport": airports.to_numpy(zero_copy_only=False),
        "destination": np.asarray(columns["dest"], dtype=object),
        "distance_miles": _floats(columns, "distance"),
    }


def weather(columns: Columns) -> dict[str, npt.NDArray[Any]]:
    """The hour's weather at the airport, as read; the dew point's distance to the temperature tells of fog and ice."""
    temperature = _floats(columns, "temp")
    return {
        "temperature": temperature,
        "dew_point_spread": temperature - _floats(columns, "dewp"),
        "wind": _floats(columns, "wind_speed"),
        "precipitation": _floats(columns, "precip"),
        "air_pressure": _floats(columns, "pressure"),
        "visibility": _floats(columns, "visib"),
    }


def knock_on(columns: Columns) -> dict[str, npt.NDArray[Any]]:
    """Whether the delay was inherited: the mean of the aircraft's earlier delays of the day, the delay beyond the
    airport's mean of the last hour, and the airport's share of cancelled flights."""
    own = _floats(columns, "dep_delay")
    flown = _floats(columns, "aircraft_departures_1d")
    total = _floats(columns, "aircraft_delay_sum_1d")
    earlier = np.isfinite(own) & (flown > 1)
    scheduled = _floats(columns, "airport_flights_6h")
    with np.errstate(divide="ignore", invalid="ignore"):
        return {
            "aircraft_earlier_delay_1d": np.where(earlier, (total - own) / (flown - 1), np.nan),
            "delay_beyond_airport_1h": own - _floats(columns, "airport_delay_mean_1h"),
            "airport_cancelled_share_6h": np.where(
                scheduled > 0, 1.0 - _floats(columns, "airport_departures_6h") / scheduled, np.nan
            ),
        }


def _floats(columns: Columns, name: str) -> Floats:
    """float64[n] with NaN for null."""
    return np.asarray(columns[name], dtype=np.float64)
