"""The verifier's windows: right by hand, equal to the product's kernel on any log, and a value that was corrupted on
its way is found.
"""

import json
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import fastavro
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.windows.spec import ViewSpec
from penstock.windows.state import WindowState
from tests.chaos.declared import Declared, Input, Model, declared
from tests.chaos.records import Schemas
from tests.chaos.test_verify import ENVELOPE, MemoryLog, headers_of
from tests.chaos.test_verify import LOCK as OTHERS
from tests.chaos.verify import verify
from tests.chaos.windows import Aggregation, View, Windows

FUNCTIONS = ("count", "sum", "mean", "min", "max", "std", "last")
VIEW = View(
    "spending", "t.events", "card", 100, "t.view.spending", (Aggregation("s", "x", "sum", 60, 10),
    Aggregation("n", "x", "count", 60, 10)),
)  # fmt: skip


def answers(view: View, rows: Sequence[tuple[Any, int, float | None]]) -> list[tuple[float | None, ...]]:
    """What a partition's rows of (key, event time, x) get."""
    windows, found = Windows(view), []
    for offset, (key, time, x) in enumerate(rows):
        windows.read((0, offset), (0, offset), {"_event_id": "", "_event_time": time, view.key: key, "x": x})
        found.append(windows._by_origin[0, offset])
    return found


def test_a_row_sees_itself_and_what_came_before_it_in_its_window() -> None:
    rows = [("a", 5, 1.0), ("a", 12, 2.0), ("b", 13, 9.0), ("a", 59, None), ("a", 60, 4.0), ("a", 121, 8.0)]
    assert answers(VIEW, rows) == [(1, 1), (3, 2), (9, 1), (3, 2), (6, 2), (8, 1)]


def test_a_late_row_sees_its_own_time_and_only_what_is_left_of_it() -> None:
    # at 300 all before (300 - 160) / 10 = tile 14 is given up; the row of tile 13 sees itself alone
    rows = [("a", 131, 1.0), ("a", 145, 2.0), ("a", 300, 4.0), ("a", 149, 8.0), ("a", 132, 16.0), ("a", 200, 32.0)]
    assert answers(VIEW, rows) == [(1, 1), (3, 2), (4, 1), (10, 2), (16, 1), (32, 1)]


def test_a_null_key_has_null_features() -> None:
    assert answers(VIEW, [(None, 5, 1.0)]) == [(None, None)]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["a", "b", None]),
            st.integers(0, 600),
            st.one_of(st.none(), st.floats(-1e3, 1e3), st.just(float("nan"))),
        ),
        min_size=1,
        max_size=40,
    ),
    st.integers(0, 150),
)
def test_they_are_those_of_the_products_kernel(rows: list[tuple[str | None, int, float | None]], lateness: int) -> None:
    aggregations = [(f"{f}_{w}", f, w, t) for f in FUNCTIONS for w, t in ((60, 10), (90, 30))]
    mine = answers(
        View("v", "t", "k", lateness, None, tuple(Aggregation(n, "x", f, w, t) for n, f, w, t in aggregations)), rows
    )
    spec = ViewSpec.model_validate(
        {
            "name": "v", "key": "k", "lateness_ms": lateness, "tile_ms": {60: 10, 90: 30},
            "aggregations": [{"name": n, "column": "x", "function": f, "window_ms": w} for n, f, w, _ in aggregations],
        }
    )  # fmt: skip
    times = np.array([time for _, time, _ in rows], np.int64)
    watermark = np.r_[np.int64(-(2**60)), np.maximum.accumulate(times)[:-1]]
    values = np.array([np.nan if x is None else x for _, _, x in rows])
    columns = {"x": (np.nan_to_num(values), np.isfinite(values))}
    keys = pa.array([key for key, _, _ in rows], pa.string())
    theirs = WindowState(spec).update(keys, times, watermark, np.arange(len(rows)), columns).columns
    for number, (name, *_) in enumerate(aggregations):
        for row, got in enumerate(theirs[number].to_pylist()):
            asked = mine[row][number]
            assert got == (None if asked is None else pytest.approx(asked, rel=1e-9, abs=1e-6)), (name, row)


TIME = {"name": "_event_time", "type": "long"}
CARD = {"name": "card", "type": ["null", "string"]}
SUM, COUNT = {"name": "s", "type": ["null", "double"]}, {"name": "n", "type": ["null", "long"]}
FIELDS: dict[str, list[Any]] = {
    "events": [*ENVELOPE, TIME, CARD, {"name": "x", "type": ["null", "double"]}],
    "view.spending": [ENVELOPE[0], TIME, {"name": "_offset", "type": "long"}, CARD, SUM, COUNT],
    "features": [*ENVELOPE, SUM, COUNT],
    "dropped": json.loads(OTHERS[-1])["schema"]["fields"],
}
LOCK = [
    json.dumps({"subject": f"t.{n}-value", "schema": {"type": "record", "name": f"r{i}", "fields": fields}})
    for i, (n, fields) in enumerate(FIELDS.items())
]


def encoded(suffix: str, **row: object) -> bytes:
    stream = BytesIO()
    number = list(FIELDS).index(suffix)
    schema = json.loads(LOCK[number])["schema"]
    fastavro.schemaless_writer(stream, fastavro.parse_schema(schema, named_schemas={}), row)
    return b"\0" + (number + 1).to_bytes(4, "big") + stream.getvalue()


def viewed(offset: int, time: int, **row: object) -> bytes:
    """A row of the view, of the event that is at this offset."""
    return encoded("view.spending", **({"_event_id": str(offset), "_event_time": time, "_offset": offset} | row))


class Served(MemoryLog):
    """Three events of one card and one of none, their rows of the view and their features."""

    def __init__(self) -> None:
        self.topics = {f"t.{name}": [] for name in [*FIELDS, "raw", "dead"]}
        self.open = []
        cards = [("a", 5, 1.0, 1.0, 1), ("a", 12, 2.0, 3.0, 2), (None, 13, 9.0, None, None), ("a", 59, 4.0, 7.0, 3)]
        for offset, (card, time, x, total, n) in enumerate(cards):
            names = {"_event_id": str(offset), "_origin_partition": 0, "_origin_offset": offset}
            key = None if card is None else card.encode()
            self.add("raw", b"producer", b"{}")
            self.add("events", key, encoded("events", **names, _event_time=time, card=card, x=x))
            if card is not None:
                self.add("view.spending", key, viewed(offset, time, card=card, s=total, n=n))
            self.add("features", key, encoded("features", **names, s=total, n=n))

    def findings(self) -> dict[str, int]:
        verdict = verify("t", Schemas("t", LOCK), self, Declared((VIEW,)))
        if verdict.ok:
            assert verdict.counts["windows"] == 4 * 2 + 3 * 2
        return verdict.findings


def test_windows_that_are_the_logs_pass() -> None:
    assert Served().findings() == {}


def features(log: Served, place: int, **changes: Any) -> None:
    names = {"_event_id": str(place), "_origin_partition": 0, "_origin_offset": place}
    log.replace("features", place, value=encoded("features", **({**names, "s": 7.0, "n": 3} | changes)))


@pytest.mark.parametrize("changes", [{"s": 7.001}, {"n": 4}, {"s": None}])
def test_a_corrupted_window_value_is_found(changes: dict[str, Any]) -> None:
    log = Served()
    features(log, 3, **changes)
    assert log.findings() == {"wrong window": 1}


def test_a_row_without_a_key_must_have_no_value() -> None:
    log = Served()
    features(log, 2, s=0.0, n=None)
    assert log.findings() == {"wrong window": 1}


@pytest.mark.parametrize("harm", ["drop", "double"])
def test_a_row_of_the_view_is_there_once(harm: str) -> None:
    log = Served()
    getattr(log, harm)("view.spending", 1)
    assert log.findings() == {"wrong window": 1}


def test_a_row_that_its_stage_has_dead_lettered_may_be_missing_from_the_view() -> None:
    log = Served()
    log.drop("view.spending", 1)
    log.drop("features", 1)
    event = log.topics["t.events"][1]
    log.add("dead", event.key, event.value, headers=headers_of("t.events", 0, 1, "features.card", (0, 1)))
    assert verify("t", Schemas("t", LOCK), log, Declared((VIEW,))).findings == {}


def quarantined() -> Served:
    """The second event has killed its worker: nobody has decoded it, and the fourth's windows are without it."""
    log = Served()
    log.drop("view.spending", 1)
    log.drop("features", 1)
    event = log.topics["t.events"][1]
    why = [
        (name, b"killed the worker" if name == "penstock.reason" else value)
        for name, value in headers_of("t.events", 0, 1, "features.card", None)
    ]
    log.add("dead", event.key, event.value, headers=why)
    log.replace("view.spending", 1, value=viewed(3, 59, card="a", s=5.0, n=2))
    features(log, 2, s=5.0, n=2, _event_id="3", _origin_offset=3)
    return log


def test_a_row_that_was_never_decoded_is_in_no_window() -> None:
    assert verify("t", Schemas("t", LOCK), quarantined(), Declared((VIEW,))).findings == {}


def test_a_window_that_holds_what_was_never_decoded_is_found() -> None:
    log = quarantined()
    features(log, 2, s=7.0, n=3, _event_id="3", _origin_offset=3)
    assert verify("t", Schemas("t", LOCK), log, Declared((VIEW,))).findings == {"wrong window": 2}


def test_a_row_that_was_never_decoded_is_not_in_the_view() -> None:
    log = quarantined()
    log.add("view.spending", b"a", viewed(1, 12, card="a", s=3.0, n=2))
    assert verify("t", Schemas("t", LOCK), log, Declared((VIEW,))).findings == {"wrong window": 1}


@pytest.mark.parametrize("changes", [{"n": 2}, {"_event_id": "4"}, {"_event_time": 60}, {"card": "b"}])
def test_a_corrupted_row_of_the_view_is_found(changes: dict[str, Any]) -> None:
    log = Served()
    log.replace("view.spending", 2, value=viewed(3, 59, **({"card": "a", "s": 7.0, "n": 3} | changes)))
    assert log.findings() == {"wrong window": 1}


def test_a_plan_declares_the_views(tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    aggregations = [{"name": a.name, "column": "x", "function": a.function, "window_ms": 60, "tile_ms": 10}
                    for a in VIEW.aggregations]  # fmt: skip
    view = {"name": "spending", "key": "card", "lateness_ms": 100, "topic": "t.view.spending", "hash": "0"}
    stages = [
        {"views": [], "inputs": [], "next_key": None},
        {"views": ["spending"], "inputs": [{"topic": "t.events"}], "next_key": "shop", "outputs": ["t.by.shop", "t.x"]},
    ]
    event = {"key": "card", "event_id": "id", "deduplicate_ms": 1000, "avro": {"fields": []}, "timestamp": "at"}
    columns = [{"name": "s", "type": ["null", "double"]}, {"name": "shop", "type": "string"}]
    model = {"name": "m", "task": "binary", "threshold": 0.5, "fallback": None}
    plan = {
        "pipeline": "t",
        "views": [{**view, "aggregations": aggregations, "key_bytes": 8}],
        "stages": stages,
        "event": event,
        "label": {"key": "id", "value": "late", "timestamp": "then", "avro": {"fields": []}},
        "when": {"function": "f:f", "otherwise": "closed"},
        "on_demand": [{"outputs": [{"name": "twice"}]}],
        "service": {"columns": columns},
        "model": model,
        "monitors": {"baseline": "s"},
    }
    file.write_text(json.dumps(plan))
    keys = {"events": "card", "by.shop": "shop"}
    assert declared(file) == Declared(
        (VIEW,), keys, "id", frozenset({"probe", "closed", "duplicate"}), Input({"fields": []}, "at"),
        Input({"fields": []}, "then", "id", "late"),
        Model("m", "binary", 0.5, None, ("s", "shop"), frozenset({"shop"})),
        frozenset({"s", "n", "twice"}), "s", 1000,
    )  # fmt: skip
    file.write_text("{}")
    with pytest.raises(ValueError, match="no plan with views"):
        declared(file)


EVENT = {
    "type": "record",
    "name": "Event",
    "fields": [{"name": "id", "type": "string"}, {"name": "at", "type": "long"}],
}
PLAN = Declared((VIEW,), {"events": "card"}, "id", frozenset({"closed"}), Input(EVENT, "at"))


def identified() -> Served:
    """The same, with raw events that have ids, of which one more is dropped."""
    log = Served()
    log.add("raw", b"producer", b"")
    for offset, record in enumerate(log.topics["t.raw"]):
        log.replace("raw", offset, value=json.dumps({"id": str(offset), "at": [5, 12, 13, 59, 60][offset]}).encode())
        assert record.offset == offset
    names = {"_event_id": "4", "_origin_partition": 0, "_origin_offset": 4}
    log.add("events", b"b", encoded("events", **names, _event_time=60, card="b", x=1.0))
    log.add("view.spending", b"b", viewed(4, 60, card="b", s=1.0, n=1))
    log.add("dropped", b"b", encoded("dropped", **DROP, reason="closed"))
    return log


DROP = {"topic": "t.events", "message": "", "event_id": None, "origin_partition": 0, "origin_offset": 4}
MISTAKES: dict[str, tuple[Callable[[Served], object], dict[str, int]]] = {
    "none": (lambda log: None, {}),
    "a row has another event's id": (lambda log: features(log, 3, _event_id="1"), {"mistaken": 1}),
    "two events have changed their contents": (
        lambda log: [features(log, 0, _event_id="1", s=1.0, n=1), features(log, 1, _event_id="0", s=3.0, n=2)],
        {"mistaken": 2},
    ),
    "a key is missing": (lambda log: log.replace("events", 1, key=None), {"mistaken": 1}),
    "a key is another's": (lambda log: log.replace("events", 1, key=b"b"), {"mistaken": 1}),
    "an event is dropped for no good reason": (
        lambda log: log.replace("dropped", 0, value=encoded("dropped", **DROP, reason="felt like it")),
        {"unattributed": 1},
    ),
    "nobody can say which event it was": (lambda log: log.replace("raw", 1, value=b"[" * 100_000), {}),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_the_plan_declares_is_held_against_every_row(mistake: str) -> None:
    log = identified()
    do, found = MISTAKES[mistake]
    do(log)
    assert verify("t", Schemas("t", LOCK), log, PLAN).findings == found
