"""One suite for every registry: the committed lock, and a real registry by URL (Apicurio, which speaks Confluent's
API).
"""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from typer.testing import CliRunner

from penstock.cli.app import app
from penstock.codec.avro import AvroDecoder, AvroEncoder
from penstock.codec.json import JsonDecoder
from penstock.local.apicurio import Apicurio
from penstock.local.ports import free_port
from penstock.schemas.compatibility import IncompatibleSchema
from penstock.schemas.lock import SchemaLock
from penstock.schemas.registry import (
    LEVEL,
    ConfluentRegistry,
    LockRegistry,
    Registry,
    TransientLookupError,
    UnknownSchemaId,
)


def flight(*more: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "record",
        "name": "Flight",
        "namespace": "flights",
        "fields": [{"name": "tailnum", "type": ["null", "string"], "default": None}, *more],
    }


GATE = {"name": "gate", "type": "int", "default": 3}


@pytest.fixture(scope="module")
def apicurio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Apicurio]:
    with Apicurio(tmp_path_factory.mktemp("apicurio")) as running:
        yield running


@pytest.fixture(params=["lock", "url"])
def registry(request: pytest.FixtureRequest, tmp_path: Path) -> Registry:
    if request.param == "lock":
        return LockRegistry.at(tmp_path / "schemas.lock")
    return ConfluentRegistry(request.getfixturevalue("apicurio").url)


@pytest.fixture
def subject() -> str:
    return f"s{uuid4().hex[:8]}.events-value"


def test_a_registered_schema_is_found_by_its_id(registry: Registry, subject: str) -> None:
    schema_id = registry.register(subject, flight())

    assert registry.schema(schema_id) == flight()
    assert registry.id_of(subject, flight()) == schema_id
    assert registry.versions(subject) == [1]


def test_a_schema_registered_twice_keeps_its_id(registry: Registry, subject: str) -> None:
    first = registry.register(subject, flight())

    assert registry.register(subject, flight()) == first
    assert registry.versions(subject) == [1]


def test_a_compatible_version_gets_an_id_of_its_own(registry: Registry, subject: str) -> None:
    first = registry.register(subject, flight())
    second = registry.register(subject, flight(GATE))

    assert second != first
    assert registry.schema(first) == flight()
    assert registry.schema(second) == flight(GATE)
    assert registry.versions(subject) == [1, 2]


def test_an_incompatible_version_is_refused_by_field_and_nothing_changes(registry: Registry, subject: str) -> None:
    registry.register(subject, flight())
    required = flight({"name": "gate", "type": "int"})

    with pytest.raises(IncompatibleSchema, match=r"v2 is not backward compatible: new field 'gate' has no default"):
        registry.register(subject, required)
    assert registry.id_of(subject, required) is None
    assert registry.versions(subject) == [1]


def test_a_version_must_suit_all_before_it_and_not_only_the_last(registry: Registry, subject: str) -> None:
    registry.register(subject, flight(GATE))
    registry.register(subject, flight())

    with pytest.raises(IncompatibleSchema, match="'gate' changed from int to string"):
        registry.register(subject, flight({"name": "gate", "type": "string", "default": ""}))


def test_an_unknown_subject_has_no_versions_and_no_ids(registry: Registry) -> None:
    assert registry.versions("nobody.nothing-value") == []
    assert registry.id_of("nobody.nothing-value", flight()) is None


def test_an_id_that_does_not_exist_is_known_to_be_unknown(registry: Registry) -> None:
    with pytest.raises(UnknownSchemaId, match="987654"):
        registry.schema(987654)


def test_rows_of_two_versions_are_decoded_by_what_the_registry_says(registry: Registry, subject: str) -> None:
    old, new = registry.register(subject, flight()), registry.register(subject, flight(GATE))
    rows = JsonDecoder(flight(GATE)).decode([b'{"tailnum":"N1","gate":9}', b"{}"]).rows
    encoders = AvroEncoder(flight(GATE), new), AvroEncoder(flight(), old)
    values = [value for encoder in encoders for value in encoder.encode(rows).to_pylist()]

    decoded = AvroDecoder(flight(GATE), registry.schema).decode([*values, b"\0\0\x0f\x0f\x0fx"])

    assert decoded.rows["gate"].to_pylist() == [9, 3, 3, 3]
    assert decoded.bad[4].reason == "unknown schema id"


def test_a_lock_keeps_its_ids_when_it_is_read_again(tmp_path: Path, subject: str) -> None:
    path = tmp_path / "schemas.lock"
    ids = [LockRegistry.at(path).register(subject, schema) for schema in (flight(), flight(GATE))]

    assert ids == [1, 2]
    assert LockRegistry.at(path).schema(2) == flight(GATE)


def test_a_lock_sees_what_another_process_appended(tmp_path: Path, subject: str) -> None:
    path = tmp_path / "schemas.lock"
    reader = LockRegistry.at(path)

    schema_id = LockRegistry.at(path).register(subject, flight())

    assert reader.schema(schema_id) == flight()


def test_a_registry_that_is_down_is_a_transient_fault() -> None:
    down = ConfluentRegistry(f"http://127.0.0.1:{free_port()}")

    with pytest.raises(TransientLookupError, match="schema id 1"):
        down.schema(1)
    with pytest.raises(TransientLookupError):
        AvroDecoder(flight(), down.schema).decode([b"\0\0\0\0\1\0"])


def test_a_registry_that_went_down_still_knows_what_it_was_asked_before(tmp_path: Path, subject: str) -> None:
    with Apicurio(tmp_path) as running:
        registry = ConfluentRegistry(running.url)
        schema_id = registry.register(subject, flight())
        registry.schema(schema_id)

    assert registry.schema(schema_id) == flight()
    with pytest.raises(TransientLookupError):
        registry.schema(schema_id + 1)


def test_the_registry_itself_refuses_what_others_register(
    apicurio: Apicurio, subject: str, request: pytest.FixtureRequest
) -> None:
    registry = ConfluentRegistry(apicurio.url)
    registry.register(subject, flight())
    from confluent_kafka.schema_registry import Schema, SchemaRegistryClient
    from confluent_kafka.schema_registry.error import SchemaRegistryError

    other = SchemaRegistryClient({"url": apicurio.url})
    request.addfinalizer(other.close)

    assert other.get_compatibility(subject) == LEVEL
    required = '{"type":"record","name":"Flight","namespace":"flights","fields":[{"name":"gate","type":"int"}]}'
    with pytest.raises(SchemaRegistryError) as refused:
        other.register_schema(subject, Schema(required, "AVRO"))
    assert refused.value.http_status_code == 409


def test_the_level_in_force_is_a_subjects_own_or_that_of_all(apicurio: Apicurio, subject: str) -> None:
    registry = ConfluentRegistry(apicurio.url)
    registry.register(subject, flight())

    assert registry.level(subject) == LEVEL
    assert registry.level("nobody.nothing-value") != LEVEL


def test_a_lock_and_a_registry_hold_the_same_versions(apicurio: Apicurio, tmp_path: Path, subject: str) -> None:
    lock = SchemaLock.load(tmp_path / "schemas.lock")
    registry = ConfluentRegistry(apicurio.url)
    for schema in (flight(), flight(GATE)):
        lock.append(subject, schema)
        registry.register(subject, schema)

    assert [e.version for e in lock.entries(subject)] == registry.versions(subject)


def test_the_command_registers_every_version_of_a_lock(apicurio: Apicurio, tmp_path: Path, subject: str) -> None:
    lock = SchemaLock.load(tmp_path / "schemas.lock")
    for schema in (flight(), flight(GATE)):
        lock.append(subject, schema)

    result = CliRunner().invoke(app, ["schemas", "register", str(tmp_path), "--url", apicurio.url, "--json"])

    assert result.exit_code == 0
    registry = ConfluentRegistry(apicurio.url)
    told = json.loads(result.output)["registered"]
    assert [(one["subject"], one["version"]) for one in told] == [(subject, 1), (subject, 2)]
    assert [registry.schema(one["id"]) for one in told] == [flight(), flight(GATE)]


def test_an_unknown_id_is_not_asked_for_again_at_once_but_later(
    apicurio: Apicurio, subject: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("penstock.schemas.registry.UNKNOWN_FOR_S", 0.5)
    registry = ConfluentRegistry(apicurio.url)
    # content of its own, since equal schemas share an id across subjects
    first, second = ({**flight(*more), "doc": subject} for more in ([], [GATE]))
    next_id = registry.register(subject, first) + 1
    with pytest.raises(UnknownSchemaId):
        registry.schema(next_id)

    assert ConfluentRegistry(apicurio.url).register(subject, second) == next_id
    with pytest.raises(UnknownSchemaId):
        registry.schema(next_id)
    time.sleep(0.6)
    assert registry.schema(next_id) == second
