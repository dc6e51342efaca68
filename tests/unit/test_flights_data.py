"""The flights tables against what is known of them, and the conversion to UTC on days when clocks change."""

import zipfile
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from pipelines.flights import data
from pipelines.flights.data import Flights

YEAR = 336_776
HEADER = (
    "year,month,day,dep_time,sched_dep_time,dep_delay,arr_time,sched_arr_time,arr_delay,carrier,flight,tailnum,origin,"
    "dest,air_time,distance,hour,minute,time_hour\n"
)


@pytest.fixture(scope="module")
def year() -> Flights:
    return data.load(None)


def ms(column: pa.ChunkedArray) -> np.ndarray:
    return column.cast(pa.int64()).to_numpy()


def test_every_departure_of_the_year_is_an_event_with_an_id_of_its_own(year: Flights) -> None:
    assert year.departures.num_rows == YEAR
    assert pc.count_distinct(year.departures["flight_id"]).as_py() == YEAR
    assert year.departures["tailnum"].null_count == 2_512
    assert pc.count_distinct(year.departures["tailnum"]).as_py() == 4_043
    assert pc.count_distinct(year.departures["dest"]).as_py() == 105
    assert pc.count_distinct(year.departures["carrier"]).as_py() == 16


def test_april_to_december_has_the_known_cancelled_and_never_labelled_flights(year: Flights) -> None:
    months = year.between("2013-04-01", "2014-01-01")
    cancelled = pc.equal(months.departures["status"], "cancelled")
    assert months.departures.num_rows == 255_987
    assert pc.sum(cancelled).as_py() == 5_612
    assert months.departures.num_rows - 5_612 - months.landings.num_rows == 940
    assert months.departures["departed"].null_count == months.departures["dep_delay"].null_count == 5_612


def test_a_cancelled_flight_happens_at_its_scheduled_time(year: Flights) -> None:
    cancelled = year.departures.filter(pc.equal(year.departures["status"], "cancelled"))
    assert cancelled.num_rows == 8_255
    assert cancelled["timestamp"].equals(cancelled["scheduled"])


def test_events_and_labels_come_in_order_of_the_time_they_are_known(year: Flights) -> None:
    assert (np.diff(ms(year.departures["timestamp"])) >= 0).all()
    assert (np.diff(ms(year.landings["landed_at"])) >= 0).all()


def test_a_flight_lands_after_its_time_in_the_air_plus_minutes_on_the_ground(year: Flights) -> None:
    with zipfile.ZipFile(data.folder() / "flights.csv.zip") as archive:
        raw = data._csv(archive.read("flights.csv"))
    air = pa.table({"flight_id": data._flight_ids(raw), "air": raw["air_time"].cast(pa.float64())})
    flown = year.landings.join(year.departures.select(["flight_id", "departed"]), "flight_id").join(air, "flight_id")
    on_ground = (ms(flown["landed_at"]) - ms(flown["departed"])) / data.MINUTE - flown["air"].to_numpy()
    # a wrong zone, a wrong day or a missed clock change would be off by at least an hour
    assert len(on_ground) == 327_346
    assert on_ground.min() >= 2
    assert on_ground.max() < 4 * 60
    assert 20 < np.median(on_ground) < 40


def test_late_means_fifteen_minutes_or_more(year: Flights) -> None:
    late = year.landings["late"].to_numpy()
    np.testing.assert_array_equal(late, (year.landings["arr_delay"].to_numpy() >= 15).astype(np.int32))
    january = year.between("2013-01-01", "2013-02-01").landings["late"].to_numpy()
    assert round(float(january.mean()), 2) == 0.23


def test_an_impossible_wind_is_taken_for_missing(year: Flights) -> None:
    assert pc.max(year.departures["wind_speed"]).as_py() < 60


def small(folder: Path, flights: str, weather: str = "") -> Flights:
    with zipfile.ZipFile(folder / "flights.csv.zip", "w") as archive:
        archive.writestr("flights.csv", HEADER + flights)
    columns = "origin,year,month,day,hour," + ",".join(data.WEATHER) + ",time_hour\n"
    spare = "LGA,2012,1,1,0,1,1,1,1,1,1,1,1,1,2012-01-01T00:00:00Z\n"
    (folder / "weather.csv").write_text(columns + spare + weather)
    (folder / "airports.csv").write_text(
        "faa,name,lat,lon,alt,tz,dst,tzone\nLAX,Los Angeles,34,-118,126,-8,A,America/Los_Angeles\n"
        "PHX,Phoenix,33,-112,1135,-7,N,America/Phoenix\n"
    )
    return data.read(folder)


def utc(zone: str, *clock: int) -> datetime:
    return datetime(*clock, tzinfo=ZoneInfo(zone)).astimezone(ZoneInfo("UTC")).replace(tzinfo=None)


def test_a_landing_is_on_the_destinations_clock_over_a_change_of_clocks(tmp_path: Path) -> None:
    flights = small(
        tmp_path,
        # the evening before New York's clocks go forward, landing on the Pacific coast after midnight, before theirs do
        "2013,3,9,2145,2130,15,59,110,-11,UA,1,N10001,EWR,LAX,330,2454,21,30,2013-03-10T02:00:00Z\n"
        # the same evening to San Juan, which the airports table lacks and which keeps its time all year
        "2013,3,9,2359,2359,0,438,440,-2,B6,2,N10002,JFK,SJU,193,1598,23,59,2013-03-10T04:00:00Z\n"
        # the morning after
        "2013,3,10,602,600,2,900,905,-5,US,3,N10003,JFK,PHX,300,2153,6,0,2013-03-10T10:00:00Z\n",
    )
    departed = dict(zip(*(flights.departures[c].to_pylist() for c in ("flight_id", "departed")), strict=True))
    landed = dict(zip(*(flights.landings[c].to_pylist() for c in ("flight_id", "landed_at")), strict=True))
    assert departed["2013-03-09.UA.1.EWR"] == utc("America/New_York", 2013, 3, 9, 21, 45)
    assert departed["2013-03-10.US.3.JFK"] == utc("America/New_York", 2013, 3, 10, 6, 2)
    assert landed["2013-03-09.UA.1.EWR"] == utc("America/Los_Angeles", 2013, 3, 10, 0, 59)
    assert landed["2013-03-09.B6.2.JFK"] == utc("America/Puerto_Rico", 2013, 3, 10, 4, 38)
    assert landed["2013-03-10.US.3.JFK"] == utc("America/Phoenix", 2013, 3, 10, 9, 0)


def test_midnight_written_as_2400_is_the_end_of_the_day(tmp_path: Path) -> None:
    flights = small(tmp_path, "2013,7,4,1900,1900,0,2400,5,-5,US,3,N10003,JFK,PHX,420,2153,19,0,2013-07-04T23:00:00Z\n")
    assert flights.landings["landed_at"].to_pylist() == [utc("America/Phoenix", 2013, 7, 5, 0, 0)]


def test_weather_is_the_reading_of_the_hour_at_the_airport_or_null(tmp_path: Path) -> None:
    flights = small(
        tmp_path,
        "2013,1,1,517,515,2,830,819,11,UA,1,N10001,EWR,LAX,330,2454,5,15,2013-01-01T10:00:00Z\n"
        "2013,1,1,617,615,2,930,919,11,UA,2,N10002,EWR,LAX,330,2454,6,15,2013-01-01T11:00:00Z\n",
        "EWR,2013,1,1,5,39.02,26.06,59.37,NA,10.35,NA,0,1012,10,2013-01-01T10:00:00Z\n",
    ).departures.to_pylist()
    assert [row["temp"] for row in flights] == [39.02, None]
    assert (flights[0]["wind_dir"], flights[0]["pressure"]) == (None, 1012.0)
    assert flights[0]["sched_dow"] == 2


def test_a_cached_table_that_is_damaged_is_named_with_the_mend(tmp_path: Path) -> None:
    for name in ("departures", "landings"):
        (tmp_path / f"{name}-v{data.VERSION}.parquet").write_bytes(bytes(range(256)))
    file = tmp_path / f"departures-v{data.VERSION}.parquet"
    with pytest.raises(OSError, match=f"{file} cannot be read: .*. Delete {file}, and it is made anew$"):
        data.load(tmp_path)


def test_the_cached_tables_are_the_ones_that_were_read(tmp_path: Path, year: Flights) -> None:
    first, again = data.load(tmp_path), data.load(tmp_path)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["departures-v1.parquet", "landings-v1.parquet"]
    for flights in (first, again):
        assert flights.departures.equals(year.departures)
        assert flights.landings.equals(year.landings)
