"""The lock of a pipeline's schemas: only ever added to, and every damage is noticed and named."""

import json
from pathlib import Path
from typing import Any

import pytest

from penstock.codec.shapes import UnsupportedSchema
from penstock.schemas.compatibility import IncompatibleSchema
from penstock.schemas.lock import DamagedLock, SchemaLock


def event(*names: str) -> dict[str, Any]:
    fields = [{"name": name, "type": ["null", "string"], "default": None} for name in names]
    return {"type": "record", "name": "event", "fields": fields}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    lock = SchemaLock.load(tmp_path / "schemas.lock")
    lock.append("flights.events-value", event("a"))
    lock.append("flights.features-value", event("x"))
    lock.append("flights.events-value", event("a", "é"))
    return tmp_path / "schemas.lock"


def test_an_id_is_the_number_of_its_line(path: Path) -> None:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lock = SchemaLock.load(path)

    assert [(line["subject"], line["version"]) for line in lines] == [
        ("flights.events-value", 1),
        ("flights.features-value", 1),
        ("flights.events-value", 2),
    ]
    assert [lock.schema(i + 1) for i in range(3)] == [line["schema"] for line in lines]
    assert lock.id_of("flights.events-value", event("a", "é")) == 3
    assert lock.id_of("flights.features-value", event("a")) is None
    latest = lock.latest("flights.events-value")
    assert latest is not None
    assert (latest.id, latest.version) == (3, 2)
    assert lock.latest("nobody") is None
    assert lock.subjects == ["flights.events-value", "flights.features-value"]


def test_a_lock_that_is_not_there_yet_is_empty_and_made_by_the_first_append(tmp_path: Path) -> None:
    path = tmp_path / "new" / "schemas.lock"

    assert len(SchemaLock.load(path)) == 0
    assert not path.exists()
    assert SchemaLock.load(path).append("s", event("a")) == 1
    assert len(SchemaLock.load(path)) == 1


def test_appending_a_locked_schema_again_adds_no_line(path: Path) -> None:
    before = path.read_bytes()

    assert SchemaLock.load(path).append("flights.events-value", event("a")) == 1
    assert path.read_bytes() == before


@pytest.mark.parametrize("schema_id", [0, 4, -1])
def test_an_id_beyond_the_lines_is_a_key_error(path: Path, schema_id: int) -> None:
    with pytest.raises(KeyError, match="3 schemas"):
        SchemaLock.load(path).schema(schema_id)


def test_what_may_not_follow_is_refused_and_not_written(path: Path) -> None:
    before = path.read_bytes()
    lock = SchemaLock.load(path)
    required = {"type": "record", "name": "event", "fields": [{"name": "b", "type": "int"}]}

    with pytest.raises(IncompatibleSchema, match=r"schema 'flights\.events-value' v3 is not backward compatible"):
        lock.append("flights.events-value", required)
    fixed = {"type": "fixed", "name": "F", "size": 2}
    with pytest.raises(UnsupportedSchema, match="schema 'new': b: 'fixed'"):
        lock.append("new", {"type": "record", "name": "event", "fields": [{"name": "b", "type": fixed}]})
    assert path.read_bytes() == before
    assert len(lock) == 3


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"name":"x"', '"name":"y"', r":2: the schema of 'flights.features-value' v1 was edited"),
        ('"version":2', '"version":3', r":3: v3 of 'flights.events-value' is out of turn"),
        ('{"subject":"flights.features', "{flights.features", r":2: no entry of a lock"),
    ],
)
def test_an_edited_line_is_found_and_named(path: Path, old: str, new: str, words: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))

    with pytest.raises(DamagedLock, match=words):
        SchemaLock.load(path)


def test_a_line_that_is_cut_off_is_found(path: Path) -> None:
    path.write_text(path.read_text()[:-1])

    with pytest.raises(DamagedLock, match="cut off"):
        SchemaLock.load(path)
