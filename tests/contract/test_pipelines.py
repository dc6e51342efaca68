"""Every pipeline of the repository passes the shared checks, and the checks notice what they are there for."""

import importlib
import json
import random
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from typer.testing import CliRunner

from penstock.checks import _check_model, run_checks
from penstock.checks.functions import check_functions
from penstock.checks.patterns import matching
from penstock.checks.result import CheckResult
from penstock.checks.samples import made_rows, sample_rows
from penstock.checks.stages import check_stages
from penstock.cli.app import app
from penstock.cli.new import make_pipeline
from penstock.compiling import compile_pipeline
from penstock.models.manifest import Manifest
from penstock.models.registry import ModelRegistry
from penstock.pipeline import Pipeline
from penstock.plan import Plan, PlanError, WhenPlan
from penstock.records import Batch, Output, Partition, Reason, Result, State
from penstock.stage import Stage, StageKind
from penstock.worker import find_kind
from tests.onnx_models import linear
from tests.onnx_models import plan as shop

ROOT = Path(__file__).parents[2]


def pipelines() -> list[str]:
    """The import string of every Pipeline in pipelines/."""
    modules = [f"pipelines.{file.parent.name}.pipeline" for file in sorted((ROOT / "pipelines").glob("*/pipeline.py"))]
    return [
        f"{module}:{name}"
        for module in modules
        for name, value in vars(importlib.import_module(module)).items()
        if isinstance(value, Pipeline)
    ]


def test_there_are_pipelines_to_check() -> None:
    assert {"pipelines.flights.pipeline:pipeline", "pipelines.fraud.pipeline:pipeline"} <= set(pipelines())


@pytest.mark.parametrize("source", pipelines())
def test_a_pipeline_passes_the_shared_checks(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_MODELS_URL", str(tmp_path))
    results = list(run_checks(source, samples=60))
    assert [result for result in results if not result.passed] == []
    ran = {(result.check, result.subject) for result in results}
    plan = compile_pipeline(source)
    for stage in ["ingest", *(stage.name for stage in plan.stages if stage.entity)]:
        assert ("batch of 1 equals batch of N", stage) in ran
    for view in plan.on_demand:
        assert ("same in stock Feast", f"on-demand {view.name}") in ran


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The pipeline that `penstock new` makes, on the path."""
    parent = tmp_path_factory.mktemp("made")
    make_pipeline("checked", parent)
    sys.path.insert(0, str(parent))
    yield parent / "checked"
    sys.path.remove(str(parent))


@pytest.fixture(scope="module")
def plan(folder: Path) -> Plan:
    return compile_pipeline("checked.pipeline:pipeline", lock="extend")


@pytest.fixture(scope="module")
def events(plan: Plan, folder: Path) -> pa.RecordBatch:
    return sample_rows(plan, folder, 20)


class Faulty(Stage):
    """The real ingest stage, with ``fault`` done to its results."""

    def __init__(self, plan: Plan, fault: Callable[[Batch, Result], Result]) -> None:
        self._stage, self._fault = find_kind("ingest").build(plan, "ingest"), fault

    def process(self, batch: Batch) -> Result:
        return self._fault(batch, self._stage.process(batch))

    def restore(self, partition: Partition, snapshot: State | None) -> None:
        self._stage.restore(partition, snapshot)


def changed(result: Result, change: Callable[[Output], Output]) -> Result:
    return replace(result, outputs=[change(output) for output in result.outputs])


def mutates(batch: Batch, result: Result) -> Result:
    batch.event_time[0] += 1
    return result


def counts_the_batch(batch: Batch, result: Result) -> Result:
    return changed(result, lambda output: replace(output, keys=pa.repeat(str(len(batch)), len(output.keys))))


def turns_around(batch: Batch, result: Result) -> Result:
    back = np.arange(len(batch))[::-1]

    def turn(output: Output) -> Output:
        keys, rows = output.keys.take(pa.array(back)), output.rows.take(pa.array(back))
        return replace(output, keys=keys, rows=rows, source=output.source[back])

    return changed(result, turn)


def forgets_one(batch: Batch, result: Result) -> Result:
    return changed(
        result, lambda o: replace(o, keys=o.keys[:-1], rows=o.rows.slice(0, len(o.keys) - 1), source=o.source[:-1])
    )


def misnames_a_column(batch: Batch, result: Result) -> Result:
    return changed(
        result, lambda o: replace(o, rows=o.rows.rename_columns([f"x{i}" for i in range(o.rows.num_columns)]))
    )


def rejects_all(batch: Batch, result: Result) -> Result:
    return Result(rejects={row: Reason("no", "nothing is good enough") for row in range(len(batch))})


def raises(batch: Batch, result: Result) -> Result:
    raise ValueError("out of luck")


@pytest.mark.parametrize(
    ("fault", "check", "message"),
    [
        (mutates, "input not mutated", "changed its input"),
        (counts_the_batch, "batch of 1 equals batch of N", "depends on where the batch was cut"),
        (turns_around, "order kept", "not in the input's order"),
        (forgets_one, "every row has a fate", "no output, reject or drop"),
        (misnames_a_column, "stage runs", ""),
        (rejects_all, "samples pass", "nothing is good enough"),
        (raises, "stage runs", "ValueError: out of luck"),
    ],
)
def test_a_faulty_stage_is_noticed(
    plan: Plan, events: pa.RecordBatch, fault: Callable[[Batch, Result], Result], check: str, message: str
) -> None:
    kind = StageKind(lambda plan, name: Faulty(plan, fault))
    results = list(check_stages(plan, events, lambda name: kind if name == "ingest" else find_kind(name)))
    failed = {result.check: result.message for result in results if not result.passed and result.subject == "ingest"}
    assert check in failed
    assert message in failed[check]


def test_a_service_that_is_not_installed_is_a_failure(plan: Plan, events: pa.RecordBatch) -> None:
    def missing(name: str) -> StageKind:
        raise PlanError(f"no installed service runs {name!r}. Install penstock-ingest")

    assert list(check_stages(plan, events, missing)) == [
        CheckResult("stage runs", "ingest", False, "no installed service runs 'ingest'. Install penstock-ingest")
    ]


def test_a_model_that_does_not_read_what_the_feature_service_gives_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PENSTOCK_MODELS_URL", str(tmp_path))
    files = {"model.onnx": linear().SerializeToString()}

    def checked(now: Plan) -> list[tuple[bool, str]]:
        return [(result.passed, result.message) for result in _check_model(now)]

    ((passed, told),) = checked(shop())
    assert (passed, "no version is registered" in told) == (True, True)
    ModelRegistry(str(tmp_path)).register(Manifest.of(shop(), "1.0.0", files), files)
    assert checked(shop()) == [(True, "version 1.0.0")]
    assert checked(shop(service_hash="0ther")) == [
        (False, "version 1.0.0 was trained on 'basket' with hash feedc0de, and it is 0ther now. Train it anew")
    ]
    assert checked(shop(columns={"amount": "double", "online": "boolean"}, service_hash="0ther")) == [
        (False, "version 1.0.0 reads 'count', which 'basket' lacks. Train it anew")
    ]
    (tmp_path / "shop_model/1.0.0/manifest.json").write_text("{}")
    ((passed, told),) = checked(shop())
    assert not passed
    assert "manifest" in told


FUNCTIONS = {
    "mutates": ("columns['amount'][:1] = 1.0; amount = columns['amount']", "input not mutated", "changed its input"),
    "averages": ("amount = columns['amount'] - columns['amount'].mean()", "batch of 1 equals batch of N", "depends on"),
    "shortens": ("amount = columns['amount'][1:]", "vectorised", "Give a numpy array of shape"),
    "lists": ("amount = list(columns['amount'])", "vectorised", "as a list"),
    "raises": ("amount = columns['amounts']", "vectorised", "raised KeyError"),
    "imports": ("import feast; amount = columns['amount']", "workers import it", "imports feast"),
}


@pytest.mark.parametrize("fault", FUNCTIONS)
def test_a_faulty_function_is_noticed(
    plan: Plan, events: pa.RecordBatch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    line, check, message = FUNCTIONS[fault]
    monkeypatch.syspath_prepend(tmp_path)
    body = "\n    ".join(line.split("; "))
    rest = "return {'order_amount': amount, 'order_items': columns['items'], 'amount_over_mean': amount}"
    head = "import feast\n" if fault == "imports" else ""
    (tmp_path / f"faulty_{fault}.py").write_text(f"{head}def order(columns):\n    {body}\n    {rest}\n")
    view = plan.on_demand[0].model_copy(update={"function": f"faulty_{fault}:order"})
    faulty = plan.model_copy(update={"on_demand": (view,)})
    failed = {result.check: result.message for result in check_functions(faulty, events, {}) if not result.passed}
    assert check in failed
    assert message in failed[check]


def test_a_view_that_is_another_in_stock_feast_is_noticed(plan: Plan, events: pa.RecordBatch) -> None:
    def other(inputs: dict[str, Any]) -> dict[str, Any]:
        n = len(inputs["amount"])
        return {"order_amount": [0.0] * n, "order_items": [0] * n, "amount_over_mean": [0.0] * n}

    failed = [result for result in check_functions(plan, events, {"order": other}) if not result.passed]
    assert [(result.check, result.message.partition(" of ")[0]) for result in failed] == [
        ("same in stock Feast", "'order_amount'")
    ]


def numbers_for_truth(columns: Any) -> Any:
    return np.ones(len(columns["amount"]))


def test_predict_when_has_to_say_yes_or_no(plan: Plan, events: pa.RecordBatch) -> None:
    when = WhenPlan(function=f"{__name__}:numbers_for_truth", otherwise="no")
    results = check_functions(plan.model_copy(update={"when": when}), events, {})
    failed = [result for result in results if not result.passed and result.subject == "predict_when"]
    assert len(failed) == 1
    assert "Give bool[n]" in failed[0].message


@pytest.mark.parametrize(
    "pattern",
    [
        "^[A-Z]{3}$",
        "^[0-9]{4}-[0-9]{2}[.][A-Z0-9]{2,5}$",
        r"^\d+\s?(kg|lb)\.?$",
        "^[^a-z]x.*$",
        "^(?:a|bb)?c{2}$",
        "abc",
        r"^\w+@\w+\.(com|org)$",
    ],
)
def test_made_texts_match_their_pattern(pattern: str) -> None:
    rng = random.Random(1)
    for _ in range(50):
        assert re.search(pattern, matching(pattern, rng, "field"))


def test_a_pattern_that_no_text_can_be_made_for_asks_for_samples() -> None:
    with pytest.raises(PlanError, match=r"field 'code'.*samples.jsonl"):
        matching(r"^(a)\1(?=b)c$", random.Random(0), "code")


def test_made_samples_are_the_same_for_the_same_seed_and_within_their_ranges(plan: Plan) -> None:
    rows = made_rows(plan, 300, seed=3)
    assert rows == made_rows(plan, 300, seed=3)
    assert rows != made_rows(plan, 300, seed=4)
    assert all(0 <= row["amount"] <= 100_000 and 1 <= row["items"] <= 1000 for row in rows)
    assert len({row["order_id"] for row in rows}) == 300
    assert 1 < len({row["customer"] for row in rows}) <= 6
    times = [row["placed_at"] for row in rows]
    assert times != sorted(times)


def test_samples_of_the_pipeline_are_taken_and_a_bad_one_is_named(plan: Plan, tmp_path: Path) -> None:
    good = made_rows(plan, 2, seed=1)
    file = tmp_path / "samples.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in good))
    assert sample_rows(plan, tmp_path, 99).column("order_id").to_pylist() == [row["order_id"] for row in good]
    file.write_text(json.dumps(good[0]) + "\n" + json.dumps({**good[1], "amount": "much"}))
    with pytest.raises(PlanError, match=r"samples.jsonl 2 is no event of 'checked'.*amount"):
        sample_rows(plan, tmp_path, 99)


def test_the_command_prints_a_table_and_exits_1_when_a_check_fails(
    folder: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PENSTOCK_MODELS_URL", str(tmp_path))
    passed = CliRunner().invoke(app, ["check", "checked.pipeline:pipeline", "--samples", "10", "--json"])
    assert passed.exit_code == 0, passed.output
    assert json.loads(passed.output)["passed"] is True
    lock = folder / "schemas.lock"
    before = lock.read_text()
    try:
        lock.write_text("")
        failed = CliRunner().invoke(app, ["check", "checked.pipeline:pipeline"])
    finally:
        lock.write_text(before)
    assert failed.exit_code == 1
    assert "0 of 1 checks passed" in failed.output


def test_new_refuses_a_bad_name_and_a_full_folder(tmp_path: Path) -> None:
    for name in ("Shop", "9shop", "json", "a-b"):
        with pytest.raises(PlanError, match="name"):
            make_pipeline(name, tmp_path)
    make_pipeline("shop", tmp_path)
    with pytest.raises(PlanError, match="is not empty"):
        make_pipeline("shop", tmp_path)
    assert "NAME" not in "".join(file.read_text() for file in (tmp_path / "shop").iterdir())


def test_the_new_pipeline_trains_and_registers_a_version(folder: Path, plan: Plan, tmp_path: Path) -> None:
    version = importlib.import_module("checked.train").train(str(tmp_path), plan, print)
    assert version == "1.0.0"
    manifest = json.loads((tmp_path / "order_return" / "1.0.0" / "manifest.json").read_text())
    assert manifest["feature_service_hash"] == plan.service.hash
    assert manifest["metrics"]["auc"] > manifest["metrics"]["baseline_auc"]
