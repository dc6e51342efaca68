"""The inference stage: every row gets a prediction, a fallback or a reason, whatever the model does."""

import math
from datetime import datetime
from importlib.metadata import entry_points
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from onnx import ModelProto
from penstock_inference.loaded import LoadedModel, load_model
from penstock_inference.stage import InferenceStage

from penstock.codec.avro import AvroEncoder
from penstock.models.manifest import Manifest
from penstock.models.verification import VerifiedModel
from penstock.plan import Plan, PlanError
from penstock.records import Result
from penstock.stage import StageKind
from penstock.telemetry import MODEL_FAILURES, PREDICTIONS
from tests.onnx_models import baskets, batch, linear, plan, raises_on_large_amounts


def champion(for_plan: Plan, proto: ModelProto, version: str = "1.0.0", threshold: float | None = None) -> LoadedModel:
    content = {"model.onnx": proto.SerializeToString()}
    manifest = Manifest.of(for_plan, version, content, threshold=threshold)
    return load_model(for_plan, VerifiedModel(manifest, version * 4, content), providers="cpu")


def stage(for_plan: Plan, proto: ModelProto, **how: Any) -> InferenceStage:
    ready = InferenceStage(for_plan)
    ready.use(champion(for_plan, proto, **how), 41)
    return ready


def predictions(result: Result) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = result.outputs[0].rows.to_pylist()
    return rows


def amounts(*values: float | None) -> dict[str, pa.Array]:
    n = len(values)
    return {
        "amount": pa.array(values, pa.float64()),
        "count": pa.array([0] * n, pa.int64()),
        "online": pa.array([False] * n),
    }


def first_feature() -> ModelProto:
    """score = the first feature, NaN and infinity included."""
    return linear((1.0, 0.0, 0.0), final=None)


def test_a_prediction_says_what_was_predicted_by_whom_from_which_record() -> None:
    result = stage(plan(), linear((1.0, 0.0, 0.0))).process(batch(**amounts(2.0, -1.0)))

    assert result.outputs[0].topic == "shop.predictions"
    assert result.outputs[0].keys.to_pylist() == [b"card-0", None]
    assert result.outputs[0].source.tolist() == [0, 1]
    first, second = predictions(result)
    assert first == {
        "prediction_id": "event-0",
        "key": "card-0",
        "event_time": datetime(1970, 1, 1, 0, 0, 1),
        "ingest_time": datetime(1970, 1, 1, 0, 0, 2),
        "origin_partition": 0,
        "origin_offset": 100,
        "traceparent": None,
        "model": "shop_model",
        "version": "1.0.0",
        "digest": "1.0.0" * 4,
        "control_offset": 41,
        "served_by": "champion",
        "score": pytest.approx(1 / (1 + math.exp(-2)), rel=1e-6),
        "label": "1",
        "confidence": first["score"],
    }
    assert (second["key"], second["label"]) == (None, "0")
    assert second["confidence"] == 1 - second["score"]


def test_facts_go_to_the_outcomes_under_the_label_key_of_rows_that_have_one() -> None:
    result = stage(plan(), linear()).process(batch(label_keys=["a", None, "c"], **amounts(0.5, 1.5, 2.5)))

    facts = result.outputs[1]
    assert (facts.topic, facts.keys.to_pylist(), facts.source.tolist()) == ("shop.outcomes", ["a", "c"], [0, 2])
    for fact, prediction in zip(facts.rows.to_pylist(), [predictions(result)[0], predictions(result)[2]], strict=True):
        assert fact["kind"] == "prediction"
        assert fact["event_id"] == prediction["prediction_id"]
        assert fact["value"] is None
        for name in ("score", "label", "confidence", "model", "version", "served_by", "origin_offset", "event_time"):
            assert fact[name] == prediction[name]
    assert facts.rows.column("baseline").to_pylist() == [0.5, 2.5]


def test_without_a_label_there_are_no_outcomes() -> None:
    result = stage(plan(label=False, baseline=None), linear()).process(batch(**baskets()))

    assert [output.topic for output in result.outputs] == ["shop.predictions"]


def test_what_comes_out_fits_the_schemas() -> None:
    for task, fallback in (("binary", None), ("regression", None), ("binary", 0.5)):
        used = plan(task=task, fallback=fallback)
        result = stage(used, first_feature()).process(
            batch(label_keys=["a", None, "c"], **amounts(0.5, 0.25, math.nan))
        )
        for output in result.outputs:
            value = used.named(output.topic).value
            assert value is not None
            encoded = AvroEncoder(value.avro, value.id).encode(output.rows)
            assert len(encoded) == len(output.keys) == len(output.source)


def test_a_score_at_the_threshold_is_a_one_and_the_versions_threshold_goes_before_the_pipelines() -> None:
    rows = amounts(0.25, 0.75, 0.5)

    by_pipeline = stage(plan(threshold=0.5), first_feature()).process(batch(**rows))
    by_version = stage(plan(threshold=0.5), first_feature(), threshold=0.75).process(batch(**rows))

    assert [p["label"] for p in predictions(by_pipeline)] == ["0", "1", "1"]
    assert [p["label"] for p in predictions(by_version)] == ["0", "1", "0"]


def test_a_regression_gives_the_score_alone() -> None:
    result = stage(plan(task="regression"), first_feature()).process(batch(**amounts(-3.5, 1e6)))

    assert [(p["score"], p["label"], p["confidence"]) for p in predictions(result)] == [
        (-3.5, None, None),
        (1e6, None, None),
    ]


@pytest.mark.parametrize("odd", [None, math.inf, -math.inf, 1.5, -0.5, 1e300])
def test_a_row_without_a_usable_score_is_a_dead_letter_and_the_others_go_on(odd: float | None) -> None:
    counted = MODEL_FAILURES.labels("shop_model", "1.0.0", "model gave no score")._value.get()

    result = stage(plan(), first_feature()).process(batch(**amounts(0.25, odd, 0.75)))

    assert list(result.rejects) == [1]
    assert result.rejects[1].kind == "model gave no score"
    assert "model shop_model 1.0.0" in result.rejects[1].message
    assert result.rejects[1].details == {"model": "shop_model 1.0.0"}
    assert [p["prediction_id"] for p in predictions(result)] == ["event-0", "event-2"]
    assert result.outputs[0].source.tolist() == [0, 2]
    assert result.outputs[1].source.tolist() == [0, 2]
    assert MODEL_FAILURES.labels("shop_model", "1.0.0", "model gave no score")._value.get() == counted + 1


def test_a_probability_off_by_a_rounding_is_no_failure() -> None:
    result = stage(plan(), first_feature()).process(batch(**amounts(1.0000001, -1e-7)))

    assert not result.rejects
    assert [p["score"] for p in predictions(result)] == [1.0, 0.0]


def test_a_regression_may_be_any_number_but_infinite_or_nan() -> None:
    result = stage(plan(task="regression"), first_feature()).process(batch(**amounts(1.5, math.inf, None, -9.0)))

    assert sorted(result.rejects) == [1, 2]
    assert [p["score"] for p in predictions(result)] == [1.5, -9.0]


def test_the_declared_fallback_answers_in_the_models_place_and_says_so() -> None:
    before = PREDICTIONS.labels("shop_model", "1.0.0", "fallback")._value.get()

    result = stage(plan(fallback=0.1), first_feature()).process(batch(**amounts(0.75, None, 0.25)))

    assert not result.rejects
    assert [(p["served_by"], p["score"], p["label"]) for p in predictions(result)] == [
        ("champion", 0.75, "1"),
        ("fallback", 0.1, "0"),
        ("champion", 0.25, "0"),
    ]
    assert result.outputs[1].rows.column("served_by").to_pylist() == ["champion", "fallback", "champion"]
    assert PREDICTIONS.labels("shop_model", "1.0.0", "fallback")._value.get() == before + 1


def test_rows_that_make_the_model_raise_are_found_and_the_others_are_predicted() -> None:
    values = [float(i) for i in range(100)]
    guilty = [3, 50, 51, 99]
    for row in guilty:
        values[row] = 1000.0

    result = stage(plan(), raises_on_large_amounts()).process(batch(**amounts(*values)))

    assert sorted(result.rejects) == guilty
    assert {reason.kind for reason in result.rejects.values()} == {"model failed"}
    assert "Reshape" in result.rejects[3].message
    assert [p["score"] for p in predictions(result)] == [0.25] * 96


def test_a_model_that_raises_on_everything_leaves_every_row_with_a_fate() -> None:
    everything = batch(**amounts(*[1000.0] * 7))

    dead = stage(plan(), raises_on_large_amounts()).process(everything)
    answered = stage(plan(fallback=0.5), raises_on_large_amounts()).process(everything)

    assert sorted(dead.rejects) == list(range(7))
    assert not dead.outputs
    assert [p["served_by"] for p in predictions(answered)] == ["fallback"] * 7


def test_a_model_that_gives_one_score_for_many_rows_blames_them_all_and_stops_nothing() -> None:
    used = plan()
    ready = stage(used, first_feature())
    assert ready._champion is not None
    ready._champion.session._run = lambda features: np.zeros((1, 1), np.float32)

    result = ready.process(batch(**amounts(0.1, 0.2)))

    assert {reason.kind for reason in result.rejects.values()} == {"model gave no score"}
    assert "has shape [1, 1] for 2 rows" in result.rejects[0].message
    assert not result.outputs


def test_a_batch_gives_what_its_rows_give_alone() -> None:
    used, rows = plan(fallback=0.5), batch(**baskets(33))
    ready = stage(used, linear())

    together = predictions(ready.process(rows))
    alone = [predictions(ready.process(rows.take(np.array([i]))))[0] for i in range(len(rows))]

    for one, other in zip(together, alone, strict=True):
        assert one["score"] == pytest.approx(other["score"], rel=2e-6)
        assert one["confidence"] == pytest.approx(other["confidence"], rel=2e-6)
        different = {"score", "confidence"}
        assert {k: v for k, v in one.items() if k not in different} == {
            k: v for k, v in other.items() if k not in different
        }


def test_the_input_is_not_changed_and_an_earlier_result_stays_as_it_was() -> None:
    ready, first = stage(plan(), linear()), batch(**baskets(8, seed=1))
    copy = pa.RecordBatch.from_pylist(first.rows.to_pylist(), first.rows.schema)

    result = ready.process(first)
    scores = [p["score"] for p in predictions(result)]
    ready.process(batch(**baskets(8, seed=2)))

    assert first.rows.equals(copy)
    assert [p["score"] for p in predictions(result)] == scores


def test_another_champion_takes_over_between_two_batches() -> None:
    used = plan()
    ready = stage(used, linear((1.0, 0.0, 0.0)))
    before = predictions(ready.process(batch(**amounts(2.0))))[0]

    ready.use(champion(used, linear((-1.0, 0.0, 0.0)), version="1.1.0"), 42)
    after = predictions(ready.process(batch(**amounts(2.0))))[0]

    assert (before["version"], before["control_offset"], before["label"]) == ("1.0.0", 41, "1")
    assert (after["version"], after["control_offset"], after["label"]) == ("1.1.0", 42, "0")
    assert before["score"] + after["score"] == pytest.approx(1.0)


def test_a_stage_without_a_champion_says_what_is_missing() -> None:
    with pytest.raises(RuntimeError, match="no champion of model 'shop_model' is loaded"):
        InferenceStage(plan()).process(batch(**baskets()))


def test_a_pipeline_without_a_model_has_no_inference() -> None:
    with pytest.raises(PlanError, match="has no model"):
        InferenceStage(plan().model_copy(update={"model": None}))


def test_the_service_is_found_by_its_kind() -> None:
    (point,) = entry_points(group="penstock.stages", name="inference")

    kind = point.load()

    assert isinstance(kind, StageKind)
    assert isinstance(kind.build(plan(), "inference"), InferenceStage)
    assert kind.companion is not None
    with pytest.raises(PlanError, match=r"no stage 'inference.two'"):
        kind.build(plan(), "inference.two")
