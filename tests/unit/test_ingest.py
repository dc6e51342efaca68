"""The ingest stage on batches built in sight: what passes, what is rejected and why, and what goes out."""

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from penstock_ingest.checks import declared_checks, first_failures
from penstock_ingest.stage import build

from penstock.codec.arrow import arrow_schema
from penstock.envelope import PROBE_KEY
from penstock.plan import PlanError
from penstock.records import NO_TIME, Batch, column
from tests.onnx_models import plan as any_plan

TIMESTAMP = {"type": "long", "logicalType": "timestamp-millis"}
EVENT = {
    "type": "record",
    "name": "E",
    "fields": [
        {"name": "id", "type": "string"},
        {"name": "at", "type": TIMESTAMP},
        {"name": "who", "type": ["null", "string"], "default": None, "pattern": "^[A-Z]{2}$"},
        {"name": "amount", "type": ["null", "double"], "default": None, "minimum": 0, "maximum": 100},
        {"name": "free", "type": "double", "allowNaN": True, "default": 0.0},
    ],
}
LABEL = {
    "type": "record",
    "name": "L",
    "fields": [
        {"name": "id", "type": "string"},
        {"name": "known", "type": TIMESTAMP},
        {"name": "bad", "type": "boolean"},
    ],
}
NOW = 1_000_000


def ingest() -> Any:
    plan = any_plan()
    event = plan.event.model_copy(
        update={"avro": EVENT, "event_id": "id", "timestamp": "at", "key": "who", "future_ms": 1000}
    )
    topics = {t.name.rsplit(".", 1)[-1]: t for t in plan.topics}
    some = next(iter(topics.values()))
    made = [some.model_copy(update={"name": f"{plan.pipeline}.{s}"}) for s in ("raw", "labels", "events", "outcomes")]
    label = {
        "avro": LABEL, "id": 2, "subject": "s", "key": "id", "value": "bad", "timestamp": "known", "horizon_ms": 1
    }  # fmt: skip
    changed = plan.model_dump() | {
        "event": event.model_dump(),
        "label": label,
        "topics": [t.model_dump() for t in made],
    }
    return type(plan).model_validate(changed)


def events(rows: list[dict[str, Any]], topic: str = "raw", **changed: Any) -> Batch:
    schema = pa.schema(
        [
            ("id", pa.string()),
            ("at", pa.timestamp("ms")),
            ("who", pa.string()),
            ("amount", pa.float64()),
            ("free", pa.float64()),
        ]
    )
    full = [{"id": f"e{i}", "at": NOW, "who": "AB", "amount": 1.0, "free": 0.0, **row} for i, row in enumerate(rows)]
    n = len(full)
    times = np.array([NO_TIME if row["at"] is None else row["at"] for row in full], np.int64)
    return Batch(
        f"{ingest().pipeline}.{topic}",
        pa.RecordBatch.from_pylist(full, schema=schema),
        column([b"k"] * n),
        np.arange(n, dtype=np.int32) % 2,
        np.arange(n, dtype=np.int64) + 10,
        np.full(n, NOW, np.int64),
        times,
        np.full(n, NO_TIME, np.int64),
        **changed,
    )


def test_a_valid_event_goes_out_with_its_envelope_keyed_by_its_entity() -> None:
    result = build(ingest(), "ingest").process(events([{}, {"who": None}]))
    (output,) = result.outputs
    assert output.topic.endswith(".events")
    assert column(output.keys).to_pylist() == [b"AB", None]
    row = output.rows.to_pylist()[0]
    assert row["_event_id"] == "e0"
    assert (row["_origin_partition"], row["_origin_offset"]) == (0, 10)
    assert row["_event_time"].timestamp() * 1000 == NOW
    assert row["_traceparent"] is None
    assert row["amount"] == 1.0
    assert not result.rejects


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"amount": -1.0}, "out of range"),
        ({"amount": 100.5}, "out of range"),
        ({"amount": float("nan")}, "not a finite number"),
        ({"amount": float("inf")}, "not a finite number"),
        ({"who": "abc"}, "pattern mismatch"),
        ({"at": NOW + 1001}, "event time in the future"),
        ({"at": None}, "no event time"),
        ({"at": -100_000_000_000_000_000}, "event time out of range"),
        ({"at": -(2**63)}, "event time out of range"),
    ],
)
def test_what_the_schema_forbids_is_a_reject_that_names_field_and_rule(row: dict[str, Any], kind: str) -> None:
    result = build(ingest(), "ingest").process(events([{}, row, {}]))
    assert {place: reason.kind for place, reason in result.rejects.items()} == {1: kind}
    assert result.outputs[0].source.tolist() == [0, 2]
    assert [r["_event_id"] for r in result.outputs[0].rows.to_pylist()] == ["e0", "e2"]


@pytest.mark.parametrize(
    "row", [{"amount": None}, {"amount": 0.0}, {"amount": 100.0}, {"free": float("nan")}, {"who": None}]
)
def test_nulls_bounds_and_what_the_schema_allows_pass(row: dict[str, Any]) -> None:
    assert not build(ingest(), "ingest").process(events([row])).rejects


def test_a_reason_tells_the_rule_and_never_a_text_itself() -> None:
    found = first_failures(events([{"who": "secret"}]).rows, declared_checks(EVENT))
    assert "secret" not in found[0].message
    assert "'who'" in found[0].message
    assert "^[A-Z]{2}$" in found[0].message


def test_an_event_without_a_declared_id_is_named_by_where_it_was_read() -> None:
    plan = ingest()
    plan = plan.model_copy(update={"event": plan.event.model_copy(update={"event_id": None})})
    (output,) = build(plan, "ingest").process(events([{}, {}])).outputs
    topic = plan.topic("raw").name
    assert output.rows.column("_event_id").to_pylist() == [f"{topic}-0-10", f"{topic}-1-11"]


def test_an_event_without_an_entity_is_keyed_by_its_id_where_copies_are_to_meet() -> None:
    plan, batch = ingest(), events([{}, {"who": None}])
    copies = plan.model_copy(update={"event": plan.event.model_copy(update={"deduplicate_ms": 1})})
    keys = [build(given, "ingest").process(batch).outputs[0].keys.to_pylist() for given in (plan, copies)]
    assert keys == [["AB", None], ["AB", "e1"]]


@pytest.mark.parametrize("name", ["_traceparent", "_replays"])
def test_what_a_record_says_in_a_header_becomes_a_column(name: str) -> None:
    batch = events([{}, {"amount": -1.0}, {}], headed={name: pa.array([None, "lost", "said"])})
    (output,) = build(ingest(), "ingest").process(batch).outputs
    assert output.rows.column(name).to_pylist() == [None, "said"]
    other = {"_traceparent": "_replays", "_replays": "_traceparent"}[name]
    assert output.rows.column(other).null_count == 2


def test_a_label_becomes_an_outcome_keyed_by_its_label_key() -> None:
    n = 2
    rows = pa.RecordBatch.from_pydict(
        {"id": ["a", "b"], "known": pa.array([NOW, NOW + 5], pa.timestamp("ms")), "bad": [True, False]}
    )
    batch = Batch(
        f"{ingest().pipeline}.labels",
        rows,
        pa.nulls(n, pa.binary()),
        np.zeros(n, np.int32),
        np.arange(n, dtype=np.int64),
        np.full(n, NOW, np.int64),
        np.array([NOW, NOW + 5]),
        np.full(n, NO_TIME, np.int64),
    )
    (output,) = build(ingest(), "ingest").process(batch).outputs
    assert output.topic.endswith(".outcomes")
    assert output.keys.to_pylist() == ["a", "b"]
    assert [(row["kind"], row["value"]) for row in output.rows.to_pylist()] == [("label", 1.0), ("label", 0.0)]


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"name": "f", "type": "string", "minimum": 1}, "Only numbers"),
        ({"name": "f", "type": "double", "pattern": "x"}, "Only strings"),
        ({"name": "f", "type": "string", "pattern": "("}, "no RE2 expression"),
    ],
)
def test_a_declaration_that_makes_no_sense_is_refused_at_start(field: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        declared_checks({"type": "record", "name": "R", "fields": [field]})


def test_a_probe_of_the_doctor_is_dropped_and_feeds_nothing() -> None:
    batch = events([{}, {"at": None, "amount": -1.0}, {}])
    batch = replace(batch, keys=column([b"k", PROBE_KEY + b"1", b"k"]))
    result = build(ingest(), "ingest").process(batch)
    assert {row: reason.kind for row, reason in result.dropped.items()} == {1: "probe"}
    assert result.rejects == {}
    assert result.outputs[0].source.tolist() == [0, 2]


@pytest.mark.parametrize(("key", "at"), [(PROBE_KEY + b"1", NOW + 1001), (PROBE_KEY, NOW), (b"k", None), (None, None)])
def test_what_is_no_probe_in_both_key_and_time_is_an_event_like_others(key: bytes | None, at: int | None) -> None:
    result = build(ingest(), "ingest").process(replace(events([{"at": at}]), keys=column([key])))
    assert not result.dropped
    assert len(result.rejects) == (at != NOW)


@pytest.mark.parametrize(
    ("declared", "values", "bad"),
    [
        ({"type": "array", "items": "double"}, [[1.0], [], [2.0, float("nan")], [float("inf")]], [2, 3]),
        (
            {"type": "map", "values": ["null", "float"]},
            [[("a", 1.0)], [("a", None)], [("b", 1.0), ("c", float("-inf"))]],
            [2],
        ),
        (
            [
                "null",
                {"type": "record", "name": "P", "fields": [{"name": "x", "type": {"type": "array", "items": "float"}}]},
            ],
            [None, {"x": [1.0]}, {"x": [float("nan")]}],
            [2],
        ),
        ({"type": "array", "items": "string"}, [["NaN"], []], []),
    ],
)
def test_a_number_that_is_none_is_found_wherever_it_is_nested(declared: Any, values: list[Any], bad: list[int]) -> None:
    schema = {"type": "record", "name": "E", "fields": [{"name": "v", "type": declared}]}
    kind = arrow_schema(schema).field("v").type
    rows = pa.RecordBatch.from_arrays([pa.array(values, kind)], ["v"])
    assert sorted(first_failures(rows, declared_checks(schema))) == bad
    allowed = {**schema, "fields": [{"name": "v", "type": declared, "allowNaN": True}]}
    assert declared_checks(allowed) == []


YEAR_10000 = {"ms": 253_402_300_800_000, "us": 253_402_300_800_000_000}
YEAR_0 = {"ms": -62_135_596_800_001, "us": -62_135_596_800_000_001}


@pytest.mark.parametrize(
    ("declared", "values", "bad"),
    [
        (
            {"type": "long", "logicalType": "timestamp-millis"},
            [0, YEAR_10000["ms"] - 1, YEAR_10000["ms"], YEAR_0["ms"] + 1, YEAR_0["ms"]],
            [2, 4],
        ),
        (
            ["null", {"type": "long", "logicalType": "local-timestamp-micros"}],
            [None, YEAR_10000["us"] - 1, YEAR_10000["us"], YEAR_0["us"] + 1, YEAR_0["us"]],
            [2, 4],
        ),
        ({"type": "long", "logicalType": "timestamp-nanos"}, [-(2**63), 2**63 - 1], []),
        ({"type": "int", "logicalType": "date"}, [2_932_896, 2_932_897, -719_162, -719_163], [1, 3]),
        (
            {"type": "array", "items": {"type": "long", "logicalType": "timestamp-millis"}},
            [[], [0], [0, 2**62]],
            [2],
        ),
        ("long", [2**62], []),
    ],
)
def test_a_date_that_no_calendar_has_is_found_and_shown_as_its_number(
    declared: Any, values: list[Any], bad: list[int]
) -> None:
    schema = {"type": "record", "name": "E", "fields": [{"name": "v", "type": declared}]}
    kind = arrow_schema(schema).field("v").type
    nested = pa.types.is_list(kind)
    plain = pa.list_(pa.int64()) if nested else pa.int32() if pa.types.is_date32(kind) else pa.int64()
    column = pa.array(values, plain)
    found = first_failures(pa.RecordBatch.from_arrays([column.cast(kind)], ["v"]), declared_checks(schema))
    assert sorted(found) == bad
    for row, reason in found.items():
        assert reason.kind == "out of range"
        assert ("2 values" if nested else str(values[row])) in reason.message
        assert "the years 1 to 9999" in reason.message


def test_what_is_wrong_with_an_event_time_is_said_of_it_first() -> None:
    result = build(ingest(), "ingest").process(events([{"at": 2**62, "amount": -1.0}]))
    assert result.rejects[0].kind == "event time in the future"
