"""The flights' functions: nulls, shapes, and the same answer for Feast's lists as for our arrays."""

import numpy as np
import pytest

from pipelines.flights import functions

EVENT = {
    "flight_id": ["2013-04-01.UA.15.EWR", "2013-04-01.B6.1807.JFK", "2013-04-01.AA.1.LGA"],
    "status": ["departed", "cancelled", "departed"],
    "dep_delay": [30.0, None, -2.0],
    "sched_hour": [6, 12, 23],
    "sched_dow": [1, 5, 7],
    "carrier": ["UA", "B6", "AA"],
    "dest": ["LAX", "BOS", "ORD"],
    "distance": [2454.0, 187.0, 733.0],
    "temp": [50.0, None, 70.0],
    "dewp": [40.0, 30.0, None],
    "wind_speed": [10.0, None, 5.0],
    "precip": [0.0, 0.1, None],
    "pressure": [None, 1012.0, 1000.0],
    "visib": [10.0, 1.0, 5.0],
    "aircraft_departures_1d": [3, 2, 1],
    "aircraft_delay_sum_1d": [50.0, 40.0, -2.0],
    "airport_delay_mean_1h": [12.0, None, -2.0],
    "airport_departures_6h": [8, 0, 1],
    "airport_flights_6h": [10, 0, 1],
}


def arrays() -> dict[str, np.ndarray]:
    """As workers pass them: NaN for null in numbers, objects for strings."""
    text = {"flight_id", "status", "carrier", "dest"}
    return {name: np.array(values, object if name in text else np.float64) for name, values in EVENT.items()}


def test_only_a_flight_that_left_is_predicted() -> None:
    assert functions.departed(arrays()).tolist() == [True, False, True]


def test_the_airport_of_departure_is_read_from_the_id_of_the_flight() -> None:
    assert functions.departure(arrays())["departure_airport"].tolist() == ["EWR", "JFK", "LGA"]


def test_earlier_delay_of_the_aircraft_leaves_its_own_out() -> None:
    found = functions.knock_on(arrays())
    np.testing.assert_allclose(found["aircraft_earlier_delay_1d"], [10.0, np.nan, np.nan])
    np.testing.assert_allclose(found["delay_beyond_airport_1h"], [18.0, np.nan, 0.0])
    np.testing.assert_allclose(found["airport_cancelled_share_6h"], [0.2, np.nan, 0.0])


def test_weather_that_is_missing_stays_missing() -> None:
    found = functions.weather(arrays())
    np.testing.assert_allclose(found["dew_point_spread"], [10.0, np.nan, np.nan])
    np.testing.assert_allclose(found["air_pressure"], [np.nan, 1012.0, 1000.0])


@pytest.mark.parametrize("function", [functions.departure, functions.weather, functions.knock_on])
def test_lists_as_stock_feast_passes_them_give_the_same_as_arrays(function: object) -> None:
    assert callable(function)
    given = arrays()
    before = {name: values.copy() for name, values in given.items()}
    ours, feasts = function(given), function(EVENT)
    assert ours.keys() == feasts.keys()
    for name, values in ours.items():
        np.testing.assert_array_equal(values, feasts[name])
        assert len(values) == 3
    for name, values in given.items():
        np.testing.assert_array_equal(values, before[name])


@pytest.mark.parametrize("function", [functions.departure, functions.weather, functions.knock_on])
def test_a_row_alone_gets_what_it_gets_among_others(function: object) -> None:
    assert callable(function)
    whole = function(arrays())
    for i in range(3):
        alone = function({name: values[i : i + 1] for name, values in arrays().items()})
        for name, values in alone.items():
            np.testing.assert_array_equal(values, whole[name][i : i + 1])
