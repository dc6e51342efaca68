"""Finds the pipeline that an import string names, and reads and judges the Avro schemas of its folder."""

import sys
from dataclasses import dataclass
from pathlib import Path

from penstock.feast.fields import NUMBERS, field_types, is_nullable
from penstock.pipeline import Label, Pipeline
from penstock.plan import AvroSchema, PlanError, load_object
from penstock.schemas.files import read_schema

TIMES = ("timestamp-millis", "timestamp-micros", "long")
KEYS = ("string", "int", "long", "enum")


@dataclass(frozen=True, slots=True)
class PipelineFolder:
    """``source`` is the import string as given; ``package`` the module's package, empty where it is in none; ``path``
    the folder."""

    pipeline: Pipeline
    source: str
    package: str
    path: Path
    event: AvroSchema
    label: AvroSchema | None

    def import_string(self, path: str) -> str:
        """``features:service`` as ``PACKAGE.features:service`` where the folder holds that module; else as it is."""
        module, _, name = path.partition(":")
        if self.package and "." not in module and (self.path / f"{module}.py").exists():
            return f"{self.package}.{module}:{name}"
        return path

    @property
    def feature_store(self) -> str | None:
        """The folder of ``feature_store.yaml``, relative to where packages are imported from; None without one."""
        return self.package.replace(".", "/") or "." if (self.path / "feature_store.yaml").exists() else None


def open_folder(source: str) -> PipelineFolder:
    """The pipeline behind ``module:name`` with its schemas. Raises ``PlanError``."""
    pipeline = load_object(source)
    if not isinstance(pipeline, Pipeline):
        raise PlanError(
            f"{source!r} is of type {type(pipeline).__name__}, not a Pipeline. Name the object made by Pipeline(...)"
        )
    module = sys.modules[source.partition(":")[0]]
    if not module.__file__:
        raise PlanError(f"{source!r}: module {module.__name__!r} has no file, so its schemas cannot be found")
    path = Path(module.__file__).parent
    event = read_schema(path / pipeline.event_schema)
    label = None if pipeline.label is None else read_schema(path / pipeline.label.schema_file)
    _check_event(pipeline, event, path / pipeline.event_schema)
    if pipeline.label is not None and label is not None:
        _check_label(pipeline.label, event, label, path / pipeline.label.schema_file)
    package = module.__name__.rpartition(".")[0]
    return PipelineFolder(pipeline, source, package, path, event, label)


def _check_event(pipeline: Pipeline, event: AvroSchema, file: Path) -> None:
    for field in event["fields"]:
        if field["name"].startswith("_"):
            raise PlanError(
                f"{file}: field {field['name']!r} begins with an underscore, which is kept for the envelope. Rename it"
            )
    types = field_types(event)
    _check_time(types, "timestamp", pipeline.timestamp, file)
    if pipeline.deduplicate is not None and pipeline.event_id is None:
        raise PlanError(
            f"pipeline {pipeline.name!r} has deduplicate and no event_id: where each raw record is an event of its own "
            "none is a copy. Name the field that tells events apart as event_id"
        )
    if pipeline.event_id is not None:
        _check_key(types, "event_id", pipeline.event_id, file)
        if any(f["name"] == pipeline.event_id and is_nullable(f["type"]) for f in event["fields"]):
            raise PlanError(
                f"{file}: event_id {pipeline.event_id!r} may be null. Take null out of its type, or declare no event_id"
            )


def _check_label(label: Label, event: AvroSchema, schema: AvroSchema, file: Path) -> None:
    types, of_event = field_types(schema), field_types(event)
    _check_key(types, "label key", label.key, file)
    if label.key not in of_event:
        raise PlanError(
            f"label key {label.key!r} is in {file} and not in the event. Both need the field that joins them"
        )
    if of_event[label.key] not in KEYS:
        raise PlanError(
            f"label key {label.key!r} is a {of_event[label.key]} in the event. A key is a string or an integer"
        )
    _check_time(types, "label timestamp", label.timestamp, file)
    plain = _type_of(types, "label value", label.value, file)
    if plain not in NUMBERS:
        raise PlanError(f"{file}: label value {label.value!r} is a {plain}. Make it a number; a class is 0 or 1")


def _check_time(types: dict[str, str], role: str, name: str, file: Path) -> None:
    plain = _type_of(types, role, name, file)
    if plain not in TIMES:
        raise PlanError(f"{file}: {role} {name!r} is a {plain}. Make it a long of logicalType timestamp-millis")


def _check_key(types: dict[str, str], role: str, name: str, file: Path) -> None:
    plain = _type_of(types, role, name, file)
    if plain not in KEYS:
        raise PlanError(f"{file}: {role} {name!r} is a {plain}. A key is a string or an integer")


def _type_of(types: dict[str, str], role: str, name: str, file: Path) -> str:
    if name not in types:
        raise PlanError(f"{file} has no field {name!r}, which the Pipeline names as {role}. It has {', '.join(types)}")
    return types[name]
