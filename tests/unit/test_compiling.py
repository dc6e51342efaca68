"""A pipeline's folder compiled to a plan: what the plan holds, that it is always the same, and what is refused with its
mend."""

import itertools
import json
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
from penstock_features.views import window_spec

from penstock.codec.arrow import arrow_schema
from penstock.codec.avro import AvroDecoder, AvroEncoder
from penstock.compiling import compile_pipeline
from penstock.plan import Plan, PlanError
from penstock.schemas.files import shared_schemas
from penstock.schemas.registry import LockRegistry
from penstock.windows.state import WindowState
from penstock.worker import find_kind

MINUTE, HOUR, DAY = 60_000, 3_600_000, 86_400_000

EVENT = {
    "type": "record",
    "name": "Ride",
    "namespace": "rides",
    "fields": [
        {"name": "ride_id", "type": "string"},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}},
        {"name": "driver", "type": ["null", "string"], "default": None},
        {"name": "zone", "type": "int"},
        {"name": "fare", "type": ["null", "double"], "default": None, "minimum": 0},
        {"name": "seats", "type": "int"},
        {"name": "paid", "type": "boolean"},
        {"name": "state", "type": {"type": "enum", "name": "State", "symbols": ["done", "void"]}},
    ],
}
LABEL = {
    "type": "record",
    "name": "Tip",
    "fields": [
        {"name": "ride_id", "type": "string"},
        {"name": "known_at", "type": {"type": "long", "logicalType": "timestamp-millis"}},
        {"name": "tipped", "type": "int"},
    ],
}
PIPELINE = """
    from datetime import timedelta
    from penstock import Label, Model, Monitors, Pipeline, When
    pipeline = Pipeline(
        name="rides",
        event_id="ride_id",
        timestamp="at",
        feature_service="features:service",
        predict_when=When(function="functions:done", otherwise="void"),
        label=Label(key="ride_id", value="tipped", timestamp="known_at", horizon=timedelta(days=1)),
        model=Model(name="tips"),
        monitors=Monitors(baseline="fare_now"),
        partitions=3,
        lateness=timedelta(minutes=5),
    )
"""
FUNCTIONS = """
    import numpy as np
    SCALE = 2.0
    def done(columns):
        return np.asarray(columns["state"], dtype=object) == "done"
    def now(columns):
        return {"fare_now": scaled(columns["fare"]), "seats_now": np.asarray(columns["seats"], dtype=np.int64)}
    def scaled(values):
        return np.asarray(values, dtype=np.float64) * SCALE
"""
FEATURES = """
    from datetime import timedelta
    from feast import Entity, FeatureService, Field, FileSource, KafkaSource, RequestSource, StreamFeatureView
    from feast.aggregation import Aggregation
    from feast.data_format import AvroFormat
    from feast.on_demand_feature_view import on_demand_feature_view
    from feast.types import Bool, Float64, Int64, String
    from feast.value_type import ValueType

    MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)
    driver = Entity(name="driver", join_keys=["driver"], value_type=ValueType.STRING)
    place = Entity(name="place", join_keys=["zone"], value_type=ValueType.INT64)
    stream = KafkaSource(
        name="rides", kafka_bootstrap_servers="", topic="rides.events", timestamp_field="at",
        message_format=AvroFormat(""),
        batch_source=FileSource(name="history", path="history", timestamp_field="_event_time"),
    )
    by_driver = StreamFeatureView(
        name="by_driver", entities=[driver], source=stream, mode="python", timestamp_field="at",
        ttl=timedelta(days=2), online=True, offline=False,
        schema=[
            Field(name="driver", dtype=String),
            Field(name="driver_rides", dtype=Int64),
            Field(name="driver_seats", dtype=Int64),
            Field(name="mean_fare_3600s", dtype=Float64),
        ],
        aggregations=[
            Aggregation(column="*", function="count", time_window=HOUR, name="driver_rides"),
            Aggregation(column="seats", function="last", time_window=HOUR, name="driver_seats"),
            Aggregation(column="fare", function="mean", time_window=HOUR),
        ],
    )
    by_place = StreamFeatureView(
        name="by_place", entities=[place], source=stream, mode="python", timestamp_field="at",
        online=False, offline=False, tiling_hop_size=MINUTE,
        schema=[Field(name="zone", dtype=Int64), Field(name="place_fares", dtype=Float64)],
        aggregations=[
            Aggregation(column="fare", function="sum", time_window=HOUR, slide_interval=10 * MINUTE, name="place_fares")
        ],
    )
    event = RequestSource(name="ride", schema=[Field(name="fare", dtype=Float64), Field(name="seats", dtype=Int64)])

    @on_demand_feature_view(
        sources=[event, by_place], mode="python",
        schema=[Field(name="fare_now", dtype=Float64), Field(name="seats_now", dtype=Int64)],
    )
    def now(inputs):
        raise NotImplementedError

    service = FeatureService(name="tip", features=[now, by_driver[["mean_fare_3600s", "driver_rides"]], by_place])
"""

Folder = Callable[..., str]
_numbers = itertools.count()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    """Writes a pipeline's folder and gives its import string; ``edits`` are (old, new) in features.py."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(
        *edits: tuple[str, str],
        event: object = EVENT,
        label: object = LABEL,
        functions: str = FUNCTIONS,
        pipeline: str = PIPELINE,
    ) -> str:
        package = f"rides_{next(_numbers)}"
        made = tmp_path / package
        made.mkdir()
        features = textwrap.dedent(FEATURES)
        for old, new in edits:
            assert old in features, f"the edit {old!r} does not apply"
            features = features.replace(old, new)
        (made / "event.avsc").write_text(event if isinstance(event, str) else json.dumps(event))
        (made / "label.avsc").write_text(json.dumps(label))
        (made / "features.py").write_text(features)
        (made / "functions.py").write_text(textwrap.dedent(functions))
        (made / "pipeline.py").write_text(textwrap.dedent(pipeline))
        return f"{package}.pipeline:pipeline"

    return write


def without(schema: dict[str, object], name: str, *instead: dict[str, object]) -> dict[str, object]:
    fields = schema["fields"]
    assert isinstance(fields, list)
    return {**schema, "fields": [*(field for field in fields if field["name"] != name), *instead]}


def test_the_stages_chain_the_entities_in_the_services_order(folder: Folder) -> None:
    plan = compile_pipeline(folder(), lock="extend")
    found = {s.name: ([i.topic for i in s.inputs], list(s.outputs), s.rekeys) for s in plan.stages}
    assert found == {
        "ingest": (["rides.raw", "rides.labels"], ["rides.events", "rides.outcomes"], True),
        "features.driver": (["rides.events"], ["rides.view.by_driver", "rides.by.place"], True),
        "features.place": (["rides.by.place"], ["rides.features"], False),
        "features.feast": (["rides.view.by_driver"], [], False),
        "inference": (["rides.features"], ["rides.predictions", "rides.outcomes"], False),
        "monitor": (["rides.features", "rides.predictions", "rides.outcomes"], ["rides.profiles"], False),
        "monitor.merge": (["rides.profiles"], ["rides.alerts"], False),
    }
    assert (plan.stage("features.driver").next_key, plan.stage("features.driver").last) == ("zone", False)
    assert plan.stage("features.place").last
    assert plan.event.key == "driver"
    assert {topic.partitions for topic in plan.topics} == {3}
    assert [topic.name for topic in plan.topics if topic.compacted] == ["rides.control", "rides.replayed"]


def test_tiles_are_the_hop_else_the_slide_else_a_sixtieth(folder: Folder) -> None:
    plan = compile_pipeline(folder(), lock="extend")
    assert {a.name: a.tile_ms for view in plan.views for a in view.aggregations} == {
        "driver_rides": HOUR // 60,
        "driver_seats": HOUR // 60,
        "mean_fare_3600s": HOUR // 60,
        "place_fares": MINUTE,
    }
    hopless = compile_pipeline(folder((", tiling_hop_size=MINUTE", "")), lock="extend")
    assert hopless.view("by_place").aggregations[0].tile_ms == 10 * MINUTE


def test_the_plan_says_what_a_keys_windows_take(folder: Folder) -> None:
    plan = compile_pipeline(folder(), lock="extend")
    read = {view: stage.inputs[0].value.avro for stage in plan.stages for view in stage.views}
    for view in plan.views:
        state = WindowState(window_spec(view, arrow_schema(read[view.name])))
        for ring in state._rings:
            ring.make_room(1)
        assert view.key_bytes == sum(ring.ints[0].nbytes for ring in state._rings) > 0


def test_the_services_columns_are_in_its_order_and_chosen_features_only(folder: Folder) -> None:
    plan = compile_pipeline(folder(), lock="extend")
    assert [(c.name, c.type) for c in plan.service.columns] == [
        ("fare_now", ["null", "double"]),
        ("seats_now", ["null", "long"]),
        ("mean_fare_3600s", ["null", "double"]),
        ("driver_rides", ["null", "long"]),
        ("place_fares", ["null", "double"]),
    ]


def test_views_carry_ttl_flags_and_what_lies_before_them(folder: Folder) -> None:
    plan = compile_pipeline(folder(), lock="extend")
    driver, place = plan.view("by_driver"), plan.view("by_place")
    assert (driver.ttl_ms, driver.online, driver.offline, driver.topic) == (
        2 * DAY,
        True,
        False,
        "rides.view.by_driver",
    )
    assert (place.ttl_ms, place.topic, place.upstream) == (None, None, ("by_driver",))
    assert driver.lateness_ms == 5 * MINUTE


def test_functions_are_named_in_the_module_that_imports_no_feast(folder: Folder) -> None:
    source = folder()
    plan = compile_pipeline(source, lock="extend")
    package = source.partition(".")[0]
    assert plan.when is not None
    assert (plan.when.function, plan.when.otherwise) == (f"{package}.functions:done", "void")
    assert plan.on_demand[0].function == f"{package}.functions:now"
    assert plan.on_demand[0].inputs == ("fare", "seats", "place_fares")


def test_an_on_demand_view_may_take_a_function_of_another_module_itself(folder: Folder) -> None:
    views = (
        "@on_demand_feature_view(",
        "from feast.on_demand_feature_view import OnDemandFeatureView\nnow = OnDemandFeatureView(\n    name='now',",
    )
    body = ("\n)\ndef now(inputs):\n    raise NotImplementedError\n", "\n    udf=functions.now, udf_string='now',\n)\n")
    source = folder(views, body)
    package = source.partition(".")[0]
    features = Path(sys.path[0]) / package / "features.py"
    features.write_text(f"from {package} import functions\n{features.read_text()}")
    assert compile_pipeline(source, lock="extend").on_demand[0].function == f"{package}.functions:now"


def test_generated_schemas_hold_the_envelope_and_every_feature_and_no_checks(folder: Folder) -> None:
    plan = compile_pipeline(folder(), lock="extend")

    def fields(suffix: str) -> list[str]:
        value = plan.topic(suffix).value
        assert value is not None
        return [field["name"] for field in value.avro["fields"]]

    envelope = ["_event_id", "_origin_partition", "_origin_offset", "_event_time", "_ingest_time"]
    envelope += ["_traceparent", "_replays"]
    event = ["ride_id", "at", "driver", "zone", "fare", "seats", "paid", "state"]
    assert fields("events") == envelope + event
    assert fields("by.place") == [*envelope, *event, "driver_rides", "driver_seats", "mean_fare_3600s"]
    assert fields("features") == [*envelope, "_label_key", *(c.name for c in plan.service.columns)]
    assert fields("view.by_driver") == [
        "_event_id",
        "_event_time",
        "_offset",
        "driver",
        "driver_rides",
        "driver_seats",
        "mean_fare_3600s",
    ]
    events = plan.topic("events").value
    assert events is not None
    assert "minimum" not in json.dumps(events.avro)
    assert "minimum" in json.dumps(plan.event.avro)
    assert (plan.topic("raw").value, plan.topic("dead").value) == (None, None)


def test_every_generated_schema_can_be_written_and_read(folder: Folder) -> None:
    plan = compile_pipeline(folder(), lock="extend")
    for topic in plan.topics:
        if topic.value is not None:
            rows = arrow_schema(topic.value.avro).empty_table().to_batches(1)
            empty = rows[0] if rows else None
            if empty is not None:
                AvroEncoder(topic.value.avro, topic.value.id).encode(empty)
            AvroDecoder(topic.value.avro, lambda _, avro=topic.value.avro: avro).decode([])


def test_installed_stages_start_from_the_plan(folder: Folder) -> None:
    plan = compile_pipeline(folder(), lock="extend")
    for name in ("ingest", "features.driver", "features.place"):
        assert find_kind(name).build(plan, name) is not None


def test_a_pipeline_without_model_and_label_has_no_stages_or_topics_of_theirs(folder: Folder) -> None:
    bare = """
        from penstock import Pipeline
        pipeline = Pipeline(name="rides", timestamp="at", feature_service="features:service")
    """
    plan = compile_pipeline(folder(pipeline=bare), lock="extend")
    assert [s.name for s in plan.stages if s.kind in ("inference", "monitor")] == ["monitor", "monitor.merge"]
    assert {"labels", "outcomes", "predictions", "control"} & {t.name.partition(".")[2] for t in plan.topics} == set()


def test_the_same_folder_gives_the_same_bytes_in_another_process(folder: Folder, tmp_path: Path) -> None:
    source = folder()
    first = compile_pipeline(source, lock="extend").model_dump_json()
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from penstock.compiling import compile_pipeline; "
        f"sys.stdout.write(compile_pipeline({source!r}).model_dump_json())"
    )
    again = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert again.stdout == first
    path = tmp_path / "plan.json"
    path.write_text(first)
    assert Plan.load(path).hash == Plan.model_validate_json(first).hash
    for former in ('"format":1,', ""):
        path.write_text(first.replace('"format":2,', former))
        with pytest.raises(PlanError, match=r"format: .* Compile the plan again with this version of penstock"):
            Plan.load(path)


def test_a_hash_changes_with_what_its_values_depend_on_and_with_nothing_else(folder: Folder) -> None:
    base = compile_pipeline(folder(), lock="extend")
    comment = compile_pipeline(folder(("MINUTE, HOUR =", "# a comment\nMINUTE, HOUR =")), lock="extend")
    assert comment.service.hash == base.service.hash
    assert [view.hash for view in comment.views] == [view.hash for view in base.views]

    window = compile_pipeline(folder(("10 * MINUTE", "20 * MINUTE"), (", tiling_hop_size=MINUTE", "")), lock="extend")
    assert window.view("by_place").hash != base.view("by_place").hash
    assert window.view("by_driver").hash == base.view("by_driver").hash
    assert window.service.hash != base.service.hash

    called = compile_pipeline(
        folder(functions=FUNCTIONS.replace("float64) * SCALE", "float64) + SCALE")), lock="extend"
    )
    constant = compile_pipeline(folder(functions=FUNCTIONS.replace("SCALE = 2.0", "SCALE = 3.0")), lock="extend")
    unused = compile_pipeline(folder(functions=FUNCTIONS + "\n    OTHER = 1\n"), lock="extend")
    assert len({base.service.hash, called.service.hash, constant.service.hash}) == 3
    assert unused.service.hash == base.service.hash

    narrower = without(EVENT, "fare", {"name": "fare", "type": ["null", "float"], "default": None})
    retyped = compile_pipeline(folder(event=narrower), lock="extend")
    assert retyped.view("by_place").hash != base.view("by_place").hash


def test_copies_are_looked_for_within_the_declared_horizon_and_in_no_views_name(folder: Folder) -> None:
    plain = compile_pipeline(folder(), lock="extend")
    declared = PIPELINE.replace("partitions=3", "deduplicate=timedelta(hours=1), partitions=3")
    plan = compile_pipeline(folder(pipeline=declared), lock="extend")
    assert (plain.event.deduplicate_ms, plan.event.deduplicate_ms) == (None, HOUR)
    assert [view.hash for view in plan.views] == [view.hash for view in plain.views]


def test_require_refuses_what_the_lock_does_not_hold(folder: Folder, tmp_path: Path) -> None:
    source = folder()
    with pytest.raises(PlanError, match=r"'rides.raw-value' as it is now.*penstock schemas lock rides_\d+\.pipeline"):
        compile_pipeline(source)
    plan = compile_pipeline(source, lock="extend")
    assert compile_pipeline(source) == plan
    assert sorted(plan.schemas) == list(range(1, len(plan.schemas) + 1))
    assert plan.schemas[plan.event.id] == EVENT


def test_extend_refuses_a_change_that_old_readers_could_not_bear(folder: Folder, tmp_path: Path) -> None:
    source = folder()
    compile_pipeline(source, lock="extend")
    file = tmp_path / source.partition(".")[0] / "event.avsc"
    file.write_text(json.dumps(without(EVENT, "paid")))
    with pytest.raises(PlanError, match="'paid'"):
        compile_pipeline(source, lock="extend")


def test_with_a_registry_ids_are_its_own_and_a_missing_schema_is_refused(folder: Folder, tmp_path: Path) -> None:
    registry = LockRegistry.at(tmp_path / "registry.lock")
    registry.register("other-value", EVENT)
    source = folder()
    locked = compile_pipeline(source, lock="extend")
    with pytest.raises(PlanError, match=r"the registry does not hold.*'rides.raw-value'.*penstock schemas register"):
        compile_pipeline(source, registry=registry)
    registered = compile_pipeline(source, lock="extend", registry=registry)
    assert (locked.event.id, registered.event.id) == (1, 2)
    assert registered.schemas[2] == EVENT
    assert compile_pipeline(source, registry=registry) == registered


def test_shared_schemas_are_found() -> None:
    assert {"prediction", "outcome", "dropped", "control", "profile", "alert"} <= set(shared_schemas())


FEATURE_MISTAKES = [
    ("unknown function", ('function="sum"', 'function="median"'), r"'median'.*count, sum, mean, min, max, std, last"),
    (
        "unknown column",
        ('column="fare", function="sum"', 'column="fair", function="sum"'),
        "'fair'.*no field of the event",
    ),
    (
        "text summed",
        ('column="fare", function="sum"', 'column="state", function="sum"'),
        "the sum of 'state', which is of type enum",
    ),
    ("uneven hop", ("tiling_hop_size=MINUTE", "tiling_hop_size=7 * MINUTE"), "does not divide the window"),
    ("uneven slide", ("slide_interval=10 * MINUTE", "slide_interval=7 * MINUTE"), None),
    ("no window", ("time_window=HOUR, slide_interval=10 * MINUTE, ", ""), "has no time_window"),
    ("wrong dtype", ('"driver_rides", dtype=Int64', '"driver_rides", dtype=Float64'), "'driver_rides'.*dtype Int64"),
    ("undeclared", ('Field(name="driver_seats", dtype=Int64),', ""), "computes 'driver_seats', which its schema lacks"),
    (
        "not computed",
        ('name="place_fares")\n', 'name="place_sum")\n'),
        "declares 'place_fares', which no aggregation computes",
    ),
    ("clash", ('Field(name="fare_now"', 'Field(name="fare"'), "feature 'fare' of view 'now'.*a column of the event"),
    ("underscore", ('Field(name="fare_now"', 'Field(name="_fare"'), "begins with an underscore"),
    (
        "request field",
        ('[Field(name="fare", dtype', '[Field(name="fair", dtype'),
        "'fair' of request source.*no field",
    ),
    (
        "a join key as request data",
        ('Field(name="fare", dtype=Float64), Field', 'Field(name="driver", dtype=String), Field'),
        "field 'driver' of request source 'ride'.*is the join key of view.*Leave the field out",
    ),
    (
        "request type",
        ('[Field(name="fare", dtype=Float64', '[Field(name="fare", dtype=String'),
        "event's is a double",
    ),
    (
        "mode",
        ('sources=[event, by_place], mode="python"', 'sources=[event, by_place], mode="pandas"'),
        'Use mode="python"',
    ),
    ("key", ('"zone"', '"area"'), "keyed by 'area', which is no field"),
    ("key field", ('Field(name="zone", dtype=Int64), ', ""), "no Field for the join key of entity 'place'"),
    (
        "no windows",
        ('features=[now, by_driver[["mean_fare_3600s", "driver_rides"]], by_place]', "features=[]"),
        "no StreamFeatureView",
    ),
    ("string", ("features=[now, ", "features=['by_place', now, "), "names 'by_place' as a text"),
    (
        "timestamp",
        ('timestamp_field="at",\n    ttl', 'timestamp_field="when",\n    ttl'),
        "timestamp_field 'when'.*'at'",
    ),
]


@pytest.mark.parametrize(("edit", "message"), [m[1:] for m in FEATURE_MISTAKES], ids=[m[0] for m in FEATURE_MISTAKES])
def test_a_mistake_in_the_features_is_refused_with_its_place_and_mend(
    folder: Folder, edit: tuple[str, str], message: str | None
) -> None:
    edits = [edit]
    if message is None:  # the hop would hide the slide
        edits, message = [edit, (", tiling_hop_size=MINUTE", "")], "slide_interval is 420000 ms.*does not divide"
    with pytest.raises(PlanError, match=f"(?s){message}") as told:
        compile_pipeline(folder(*edits), lock="extend")
    assert "features.py" in str(told.value)


FIELD = {"name": "extra", "type": "string"}
SCHEMA_MISTAKES = [
    ("underscore", {"event": without(EVENT, "paid", {**FIELD, "name": "_paid"})}, "'_paid' begins with an underscore"),
    ("no timestamp", {"event": without(EVENT, "at")}, "no field 'at', which the Pipeline names as timestamp"),
    ("text time", {"event": without(EVENT, "at", {"name": "at", "type": "string"})}, "timestamp 'at' is a string"),
    (
        "date",
        {"event": without(EVENT, "at", {"name": "at", "type": {"type": "int", "logicalType": "date"}})},
        "is a date",
    ),
    (
        "nullable id",
        {"event": without(EVENT, "ride_id", {"name": "ride_id", "type": ["null", "string"]})},
        "may be null",
    ),
    ("label key", {"label": without(LABEL, "ride_id")}, "no field 'ride_id', which the Pipeline names as label key"),
    ("label value", {"label": without(LABEL, "tipped", {"name": "tipped", "type": "string"})}, "Make it a number"),
    ("no json", {"event": "{"}, "event.avsc is not JSON"),
    ("no record", {"event": '"string"'}, "must be an Avro record"),
    (
        "fixed",
        {"event": without(EVENT, "paid", {"name": "x", "type": {"type": "fixed", "name": "F", "size": 4}})},
        "'fixed' is not supported",
    ),
    *(
        (f"property {number}", {"event": without(EVENT, "paid", {"name": "extra", **field})}, f"event.avsc: {said}")
        for number, (field, said) in enumerate(
            [
                ({"type": "double", "maximum": "x"}, "the maximum of field 'extra' is 'x'. Give a number"),
                ({"type": "double", "minimum": True}, "the minimum of field 'extra' is True. Give a number"),
                (
                    {"type": "int", "minimum": 200, "maximum": 100},
                    "field 'extra' of type int has minimum 200 and maximum 100: no value would pass",
                ),
                (
                    {"type": "int", "minimum": 1.2, "maximum": 1.8},
                    "field 'extra' of type int has minimum 1.2 and maximum 1.8: no value would pass",
                ),
                (
                    {"type": "int", "minimum": 2**31},
                    "field 'extra' of type int has minimum 2147483648: no value would pass",
                ),
                (
                    {"type": "string", "minimum": 1},
                    "field 'extra' has a minimum but is a string. Only numbers have one",
                ),
                (
                    {"type": "double", "pattern": "x"},
                    "field 'extra' has a pattern but is a double. Only strings have one",
                ),
                ({"type": "string", "pattern": "("}, r"the pattern '\(' of field 'extra' is no RE2 expression"),
                ({"type": "string", "pattern": 7}, "the pattern of field 'extra' is 7. Give a string"),
                ({"type": "float", "allowNaN": "no"}, "allowNaN of field 'extra' is 'no'. Give true or false"),
            ]
        )
    ),
]


@pytest.mark.parametrize(("changed", "message"), [m[1:] for m in SCHEMA_MISTAKES], ids=[m[0] for m in SCHEMA_MISTAKES])
def test_a_mistake_in_a_schema_is_refused_and_not_locked(
    folder: Folder, changed: dict[str, object], message: str, tmp_path: Path
) -> None:
    source = folder(**changed)
    with pytest.raises(PlanError, match=message):
        compile_pipeline(source, lock="extend")
    assert not list(tmp_path.rglob("schemas.lock"))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('baseline="fare_now"', 'baseline="fare"', "baseline 'fare' is no column of the service 'tip'"),
        ('"functions:done"', '"functions:gone"', "no 'gone'"),
        ('"features:service"', '"features:now"', "not a FeatureService"),
        ("baseline=", "window=timedelta(minutes=90), baseline=", "not made of panes"),
        ('event_id="ride_id"', "deduplicate=timedelta(hours=1)", "deduplicate and no event_id.*Name the field"),
    ],
)
def test_a_mistake_in_the_pipeline_is_refused(folder: Folder, old: str, new: str, message: str) -> None:
    assert old in PIPELINE
    with pytest.raises(PlanError, match=message):
        compile_pipeline(folder(pipeline=PIPELINE.replace(old, new)), lock="extend")


def test_an_on_demand_function_that_no_worker_could_import_is_refused(folder: Folder) -> None:
    with pytest.raises(
        PlanError, match=r"(?s)'now' is in .*Put a function of the same name into rides_\d+/functions.py"
    ):
        compile_pipeline(folder(functions=FUNCTIONS.replace("def now", "def later")), lock="extend")
    with pytest.raises(PlanError, match=r"functions.py imports feast.*Take the import out"):
        compile_pipeline(folder(functions="    import feast.types" + FUNCTIONS), lock="extend")


def test_something_else_than_a_pipeline_is_refused(folder: Folder) -> None:
    source = folder().replace(":pipeline", ":Model")
    with pytest.raises(PlanError, match="not a Pipeline"):
        compile_pipeline(source)
    with pytest.raises(PlanError, match="no module 'nowhere'"):
        compile_pipeline("nowhere.pipeline:pipeline")
