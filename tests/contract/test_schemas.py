"""The schemas that are committed hold what the lock says, and the command that CI runs finds what is wrong."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from penstock.cli.app import app
from penstock.cli.schemas import problems_of
from penstock.codec.avro import AvroDecoder, AvroEncoder
from penstock.codec.shapes import parse
from penstock.schemas.compatibility import check
from penstock.schemas.lock import NAME, SchemaLock

ROOT = Path(__file__).parents[2]
LOCKS = sorted(ROOT.glob(f"pipelines/*/{NAME}"))
FILES = sorted([*ROOT.glob("schemas/*.avsc"), *ROOT.glob("pipelines/*/*.avsc")])


def event(*names: str) -> dict[str, Any]:
    fields = [{"name": name, "type": ["null", "string"], "default": None} for name in names]
    return {"type": "record", "name": "event", "namespace": "flights", "fields": fields}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    SchemaLock.load(tmp_path / NAME).append("flights.raw-value", event("tailnum"))
    (tmp_path / "event.avsc").write_text(json.dumps(event("tailnum"), indent=2))
    return tmp_path


def run(*args: str | Path) -> Result:
    return CliRunner().invoke(app, ["schemas", *map(str, args)])


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_committed_schema_can_be_decoded_and_follows_itself(file: Path) -> None:
    schema = json.loads(file.read_text())

    parse(schema)
    AvroEncoder(schema, 1)
    AvroDecoder(schema, lambda _: schema)
    assert check(schema, [schema]) == []


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.parent.name)
def test_a_committed_lock_is_whole_and_the_files_beside_it_are_its_newest(lock: Path) -> None:
    assert list(problems_of(lock.parent)) == []


def test_check_passes_where_all_is_locked(folder: Path) -> None:
    result = run("check", folder)

    assert (result.exit_code, "every version is compatible" in result.output) == (0, True)
    assert json.loads(run("check", "--json", folder).output) == {"ok": True, "problems": []}


def test_check_fails_for_a_file_that_was_changed_without_the_lock(folder: Path) -> None:
    (folder / "event.avsc").write_text(json.dumps(event("tailnum", "gate")))

    result = run("check", folder)

    assert result.exit_code == 1
    assert "event.avsc: this is not the newest version of 'flights.raw-value'" in result.output
    assert "Run `penstock schemas lock PIPELINE`" in result.output


def test_check_names_the_field_that_breaks_compatibility(folder: Path) -> None:
    changed = event("tailnum")
    del changed["fields"][0]["default"]
    (folder / "event.avsc").write_text(json.dumps(changed))

    result = run("check", "--json", folder)

    assert result.exit_code == 1
    (problem,) = json.loads(result.output)["problems"]
    assert "field 'tailnum' lost its default" in problem["message"]
    assert problem["place"].endswith("event.avsc")


def test_check_names_the_field_that_clashes_with_an_older_version(folder: Path) -> None:
    SchemaLock.load(folder / NAME).append("flights.raw-value", event("gate"))
    changed = event("gate")
    changed["fields"].append({"name": "tailnum", "type": ["null", "int"], "default": None})
    (folder / "event.avsc").write_text(json.dumps(changed))

    result = run("check", folder)

    assert result.exit_code == 1
    assert "And it may not follow it: " in result.output
    assert "'tailnum'" in result.output.partition("And it may not follow it")[2]
    assert "schemas lock" not in result.output, "which would only say so again"


def test_check_sees_a_shared_schema_that_was_changed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    prediction = json.loads((ROOT / "schemas/prediction.avsc").read_text())
    SchemaLock.load(folder / NAME).append("flights.predictions-value", prediction)
    monkeypatch.setattr("penstock.schemas.files.shared_folder", lambda: shared)
    (shared / "alert.avsc").write_text((ROOT / "schemas/alert.avsc").read_text())  # which this pipeline has not
    (shared / "prediction.avsc").write_text(json.dumps(prediction))
    assert list(problems_of(folder)) == []
    (shared / "prediction.avsc").write_text(json.dumps(prediction).replace('"prediction_id"', '"id"'))
    (problem,) = problems_of(folder)
    assert problem.place.endswith("prediction.avsc")
    assert "And it may not follow it: new field 'id' has no default" in problem.message


def test_check_finds_an_incompatible_version_that_is_in_the_lock(folder: Path) -> None:
    broken = {**event(), "fields": [{"name": "gate", "type": "int"}]}
    other = SchemaLock()
    other.append("flights.raw-value", broken)
    line = json.loads(other.entries("flights.raw-value")[0].line())
    with (folder / NAME).open("a") as file:
        file.write(json.dumps({**line, "version": 2}) + "\n")
    (folder / "event.avsc").write_text(json.dumps(broken))

    result = run("check", folder)

    assert result.exit_code == 1
    assert "schema 'flights.raw-value' v2 is not backward compatible: new field 'gate' has no default" in result.output


def test_check_fails_for_a_file_that_was_never_locked_and_for_a_folder_without_a_lock(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    (folder / "label.avsc").write_text(json.dumps({**event("late"), "name": "label"}))
    (folder / "odd.avsc").write_text("{")
    empty = tmp_path_factory.mktemp("empty")

    result = run("check", folder, empty)

    assert result.exit_code == 1
    assert "label.avsc: this schema is not in the lock" in result.output
    assert "odd.avsc: this is not JSON" in result.output
    assert "there is no lock" in result.output


def test_register_says_so_when_the_registry_is_down(folder: Path) -> None:
    result = run("register", folder, "--url", "http://127.0.0.1:9", "--json")

    assert result.exit_code == 1
    assert "http://127.0.0.1:9 could not be asked" in json.loads(result.output)["error"]
    assert "Start it, or set PENSTOCK_SCHEMA_REGISTRY_URL to where it is" in json.loads(result.output)["error"]
