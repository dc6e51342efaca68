"""Where schemas and their ids come from: the committed lock, or a Confluent-compatible registry by URL.

An id that cannot be looked up *now* is a transient fault and stops the partition until it can; only an id that the
registry says does not exist makes a row bad. The two are different exceptions, so that nothing can confuse them.
"""

import json
import time
import warnings
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from pydantic import SecretStr

from penstock.schemas.compatibility import Incompatibility, IncompatibleSchema, check
from penstock.schemas.lock import SchemaLock
from penstock.settings import InvalidSettings, Settings

LEVEL = "FULL_TRANSITIVE"
_UNKNOWN_SUBJECT, _UNKNOWN_VERSION, _UNKNOWN_SCHEMA, _NO_LEVEL = 40401, 40402, 40403, 40408
TIMEOUT_S = 5.0
UNKNOWN_FOR_S = 10.0
"""Seconds until an id that the registry did not know is asked for again: garbage must not flood it with requests."""
_MOST_UNKNOWN = 10_000


class TransientLookupError(Exception):
    """The registry could not be asked. Try again: the rows are not to blame."""


class UnknownSchemaId(LookupError):
    """The registry answered that there is no such id."""


class Registry(Protocol):
    """Schemas by id, and ids by subject and schema. Every method may raise ``TransientLookupError``."""

    def schema(self, schema_id: int) -> dict[str, Any]:
        """The schema of an id. Raises ``UnknownSchemaId``."""
        ...

    def register(self, subject: str, schema: Mapping[str, Any]) -> int:
        """Adds a version (or finds it) and gives its id. Raises ``IncompatibleSchema``."""
        ...

    def id_of(self, subject: str, schema: Mapping[str, Any]) -> int | None:
        """The id of a registered schema; None where the subject does not have it."""
        ...

    def versions(self, subject: str) -> list[int]:
        """The versions of a subject, oldest first; empty where it is unknown."""
        ...


class LockRegistry:
    """The registry of the embedded default: a pipeline's lock file."""

    def __init__(self, lock: SchemaLock) -> None:
        self._lock = lock
        self._seen = self._size()

    def _size(self) -> int:
        path = self._lock.path
        return path.stat().st_size if path is not None and path.exists() else 0

    @classmethod
    def at(cls, path: Path | str) -> "LockRegistry":
        """The registry of the lock at ``path``."""
        return cls(SchemaLock.load(path))

    def schema(self, schema_id: int) -> dict[str, Any]:
        try:
            return self._lock.schema(schema_id)
        except KeyError:
            pass
        if self._lock.path is not None and self._size() != self._seen:
            # another process has appended since
            self._seen = self._size()
            self._lock = SchemaLock.load(self._lock.path)
        try:
            return self._lock.schema(schema_id)
        except KeyError as error:
            raise UnknownSchemaId(error.args[0]) from None

    def register(self, subject: str, schema: Mapping[str, Any]) -> int:
        return self._lock.append(subject, schema)

    def id_of(self, subject: str, schema: Mapping[str, Any]) -> int | None:
        return self._lock.id_of(subject, schema)

    def versions(self, subject: str) -> list[int]:
        return [entry.version for entry in self._lock.entries(subject)]


class ConfluentRegistry:
    """A registry by URL that speaks Confluent's API (Confluent, Apicurio, Redpanda, Karapace). Needs the extra
    ``registry``.

    Ids are remembered, since an id never changes its schema. ``client``: more of the client's own settings.
    """

    def __init__(self, url: str, user: str | None = None, password: SecretStr | None = None, **client: str) -> None:
        try:
            # authlib, which the client imports, warns of the httpx that the client wants, whatever the filters say
            with warnings.catch_warnings(record=True):
                from confluent_kafka.schema_registry import SchemaRegistryClient
        except ImportError as error:
            raise ImportError("a schema registry by URL needs more: install penstock[registry].") from error
        conf: dict[str, Any] = {"url": url, "timeout": TIMEOUT_S, "max.retries": 1, **client}
        if user is not None:
            conf["basic.auth.user.info"] = f"{user}:{password.get_secret_value() if password else ''}"
        self.url = url
        self._client = SchemaRegistryClient(conf)
        # its connections stay open otherwise
        self._close = weakref.finalize(self, self._client.close)
        self._schemas: dict[int, dict[str, Any]] = {}
        self._unknown: dict[int, float] = {}

    @classmethod
    def from_settings(cls, settings: Settings) -> "ConfluentRegistry":
        """The registry that ``PENSTOCK_SCHEMA_REGISTRY_URL`` names. Raises ``InvalidSettings`` where it names none."""
        if not settings.schema_registry_url:
            raise InvalidSettings("no schema registry is set. Set PENSTOCK_SCHEMA_REGISTRY_URL.")
        return cls(
            settings.schema_registry_url,
            settings.schema_registry_user,
            settings.schema_registry_password,
            **{name: value for name, value in settings.kafka().items() if name.startswith("ssl.")},
        )

    def close(self) -> None:
        """Closes the connections; done anyway when the registry is let go."""
        self._close()

    def schema(self, schema_id: int) -> dict[str, Any]:
        known = self._schemas.get(schema_id)
        if known is not None:
            return known
        if self._unknown.get(schema_id, 0.0) > time.monotonic():
            raise UnknownSchemaId(f"schema id {schema_id} is not in the registry {self.url}.")
        try:
            with self._asking(f"schema id {schema_id}"):
                known = _parsed(self._client.get_schema(schema_id))
        except UnknownSchemaId:
            if len(self._unknown) >= _MOST_UNKNOWN:
                self._unknown.clear()
            self._unknown[schema_id] = time.monotonic() + UNKNOWN_FOR_S
            raise
        self._schemas[schema_id] = known
        return known

    def register(self, subject: str, schema: Mapping[str, Any]) -> int:
        known = self.id_of(subject, schema)
        if known is not None:
            return known
        versions = self.versions(subject)
        with self._asking(f"subject {subject!r}"):
            before = [_parsed(self._client.get_version(subject, v).schema) for v in versions]
        # ours names the field and the mend; the registry's own check comes second, for those who register otherwise
        found = check(schema, before)
        if found:
            raise IncompatibleSchema(subject, len(versions) + 1, found)
        with self._asking(f"subject {subject!r}", subject, len(versions) + 1):
            schema_id = self._client.register_schema(subject, _text(schema))
            self._client.set_compatibility(subject, LEVEL)
        return int(schema_id)

    def id_of(self, subject: str, schema: Mapping[str, Any]) -> int | None:
        for version in self.versions(subject):
            with self._asking(f"subject {subject!r}"):
                found = self._client.get_version(subject, version)
            if _parsed(found.schema) == schema:
                return int(found.schema_id)
        return None

    def versions(self, subject: str) -> list[int]:
        try:
            with self._asking(f"subject {subject!r}"):
                return sorted(self._client.get_versions(subject))
        except UnknownSchemaId:
            return []

    def level(self, subject: str) -> str | None:
        """The compatibility level in force for a subject, its own or the registry's; None where it is not told.
        Raises ``TransientLookupError``."""
        for asked in (subject, None):
            try:
                with self._asking(f"the compatibility level of {asked or 'all subjects'}"):
                    return str(self._client.get_compatibility(asked))
            except UnknownSchemaId:
                continue
        return None

    @contextmanager
    def _asking(self, what: str, subject: str = "", version: int = 0) -> Iterator[None]:
        from confluent_kafka.schema_registry.error import SchemaRegistryError
        from httpx import HTTPError

        try:
            yield
        except SchemaRegistryError as error:
            if error.http_status_code == 404 and error.error_code in (
                404,
                _UNKNOWN_SUBJECT,
                _UNKNOWN_VERSION,
                _UNKNOWN_SCHEMA,
                _NO_LEVEL,
            ):
                raise UnknownSchemaId(f"{what} is not in the registry {self.url}.") from None
            if error.http_status_code == 409:
                refusal = Incompatibility("", str(error.error_message), LEVEL, version - 1)
                raise IncompatibleSchema(subject, version, [refusal]) from None
            raise TransientLookupError(
                f"the registry {self.url} answered {error.http_status_code} for {what}: {error.error_message}"
            ) from None
        except (HTTPError, OSError) as error:
            raise TransientLookupError(
                f"the registry {self.url} could not be asked for {what}: {error}. Start it, or set "
                "PENSTOCK_SCHEMA_REGISTRY_URL to where it is"
            ) from None


def _text(schema: Mapping[str, Any]) -> Any:
    from confluent_kafka.schema_registry import Schema

    return Schema(json.dumps(schema), "AVRO")


def _parsed(schema: Any) -> dict[str, Any]:
    return json.loads(schema.schema_str)  # type: ignore[no-any-return]
