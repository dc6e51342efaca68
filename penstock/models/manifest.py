"""What one version of a model is: its files with their sha256, the columns it reads, the score it gives, and where
it came from.

The manifest is the identity of a version: its own sha256, the digest, is on every prediction, so a prediction names
the exact bytes that made it.
"""

import hashlib
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from penstock.plan import Plan

FILE = "manifest.json"
MODEL_FILE = "model.onnx"
PROFILE_FILE = "profile.json"

ModelName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,62}$")]
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
# semver.org's own expression, less the build part: two versions that differ there alone have no order
_SEMVER = re.compile(
    r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)"
    r"(?:-((?:0|[1-9]\d*|\d*[A-Za-z-][0-9A-Za-z-]*)(?:\.(?:0|[1-9]\d*|\d*[A-Za-z-][0-9A-Za-z-]*))*))?"
)


class ModelError(Exception):
    """A model version that cannot be registered, read or served; the message names model, version, file and the
    mend.
    """


class Described(BaseModel):
    """A part of the manifest: immutable, and an unknown field means another version wrote it."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class FileFacts(Described):
    """``size`` in bytes."""

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    size: int = Field(ge=0)


class ModelInput(Described):
    """One float32 tensor ``name`` of shape [n, len(columns)]: the service's columns in order, null as NaN.

    ``codes`` lists the values of each string column; such a column reaches the model as the value's index, an
    unlisted value as NaN.
    """

    name: str = "features"
    columns: tuple[str, ...] = Field(min_length=1)
    codes: dict[str, tuple[str, ...]] = {}

    @model_validator(mode="after")
    def _columns_are_distinct(self) -> Self:
        if len(set(self.columns)) != len(self.columns):
            raise ValueError("a column is named twice")
        if unknown := set(self.codes) - set(self.columns):
            raise ValueError(f"codes for {', '.join(sorted(unknown))}, which the model does not read")
        return self


class ModelOutput(Described):
    """The float tensor ``name``: [n], [n, 1], or [n, m] of which column ``column`` is the score (binary: the
    positive class).
    """

    name: str = "score"
    column: int | None = Field(None, ge=0)


class Manifest(Described):
    """One immutable version. ``files`` holds every file beside the manifest: the model, its external data, the
    profile.

    ``threshold``: None means the pipeline's. ``data_hash`` names the training data. ``signature`` is kept for a
    later release: today only sha256 is verified, which shows damage and mix-ups, not who wrote the version.
    """

    format: Literal[1] = 1
    name: ModelName
    version: str
    created: datetime
    files: dict[str, FileFacts]
    input: ModelInput
    output: ModelOutput = ModelOutput()
    task: Literal["binary", "regression"] = "binary"
    threshold: float | None = None
    feature_service: str
    feature_service_hash: str
    metrics: dict[str, float] = {}
    data_hash: str | None = None
    signature: str | None = None

    @model_validator(mode="after")
    def _names_are_plain(self) -> Self:
        parse_version(self.version)
        if MODEL_FILE not in self.files:
            raise ValueError(f"files lists no {MODEL_FILE}")
        for name in self.files:
            check_file_name(name)
        return self

    @property
    def label(self) -> str:
        """``model VERSION`` for messages."""
        return f"{self.name} {self.version}"

    def same_but_for_time(self, other: "Manifest") -> bool:
        """Whether both describe the same version, whenever they were written."""
        return self.model_copy(update={"created": other.created}) == other

    def save(self) -> bytes:
        """The content of ``manifest.json``."""
        return self.model_dump_json(indent=1).encode()

    @staticmethod
    def load(content: bytes, where: str) -> "Manifest":
        """Raises ``ModelError`` when the bytes are no manifest of this release; ``where`` says what was read."""
        try:
            return Manifest.model_validate_json(content)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"]) or "content"
            raise ModelError(
                f"{where}: {field}: {first['msg']}. "
                "Restore the file, or move its folder away and register the version again"
            ) from None

    @staticmethod
    def of(
        plan: Plan,
        version: str,
        files: Mapping[str, bytes],
        *,
        metrics: Mapping[str, float] | None = None,
        data_hash: str | None = None,
        threshold: float | None = None,
        output: ModelOutput | None = None,
        input_name: str = "features",
        codes: Mapping[str, tuple[str, ...]] | None = None,
        created: datetime | None = None,
    ) -> "Manifest":
        """The manifest of a version trained for the plan's feature service, with the sha256 of ``files``.

        Raises ``ModelError`` when the pipeline declares no model or a part is not allowed.
        """
        if plan.model is None:
            raise ModelError(
                f"pipeline {plan.pipeline!r} declares no model. Add model=Model(name=…) to its pipeline.py"
            )
        facts: dict[str, Any] = {
            "name": plan.model.name,
            "version": version,
            "created": created or datetime.now(UTC).replace(microsecond=0),
            "files": {name: facts_of(content) for name, content in sorted(files.items())},
            "input": {
                "name": input_name,
                "columns": [column.name for column in plan.service.columns],
                "codes": dict(codes or {}),
            },
            "output": output or ModelOutput(),
            "task": plan.model.task,
            "threshold": threshold,
            "feature_service": plan.service.name,
            "feature_service_hash": plan.service.hash,
            "metrics": dict(metrics or {}),
            "data_hash": data_hash,
        }
        try:
            return Manifest.model_validate(facts)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"]) or "manifest"
            raise ModelError(f"model {plan.model.name!r} {version}: {field}: {first['msg']}") from None


def facts_of(content: bytes) -> FileFacts:
    return FileFacts(sha256=digest_of(content), size=len(content))


def digest_of(content: bytes) -> str:
    """sha256, 64 hex digits."""
    return hashlib.sha256(content).hexdigest()


def check_file_name(name: str) -> None:
    """Raises ``ValueError`` for anything but a plain file name beside the manifest."""
    if not _FILE_NAME.fullmatch(name) or name == FILE:
        raise ValueError(f"{name!r} is no plain file name (letters, digits, '.', '_', '-'; no folders)")


def parse_version(version: str) -> tuple[Any, ...]:
    """A key that orders versions as semver.org does. Raises ``ValueError`` for anything else than
    MAJOR.MINOR.PATCH[-PRE].
    """
    found = _SEMVER.fullmatch(version)
    if not found:
        raise ValueError(f"version {version!r} is not MAJOR.MINOR.PATCH or MAJOR.MINOR.PATCH-PRE, such as 1.2.0")
    major, minor, patch, pre = found.groups()
    # a release follows its own previews; numbers in a preview come before words
    parts = tuple((0, int(p), "") if p.isdigit() else (1, 0, p) for p in pre.split(".")) if pre else ()
    return int(major), int(minor), int(patch), pre is None, parts
