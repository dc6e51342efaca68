"""The model registry: a folder or object store with ``NAME/VERSION/…`` below one fsspec URL.

A version is there when its ``manifest.json`` is there, and that is written last; after that the version never
changes. On a local disk the whole folder is written aside and renamed, so that two writers of one version cannot mix
their files.
"""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from uuid import uuid4

import fsspec
from fsspec.implementations.local import LocalFileSystem

from penstock.models import verification
from penstock.models.manifest import FILE, FileFacts, Manifest, ModelError, digest_of, facts_of, parse_version
from penstock.models.verification import VerifiedModel


class ModelRegistry:
    """Versions below ``url``, any fsspec URL or path (``var/models``, ``s3://bucket/models``)."""

    def __init__(self, url: str) -> None:
        self.url = url
        try:
            self._files, root = fsspec.core.url_to_fs(url)
        except (ValueError, ImportError) as error:
            raise ModelError(
                f"model registry {url!r}: {error}. Set PENSTOCK_MODELS_URL to a folder or fsspec URL"
            ) from None
        self._root = str(root).rstrip("/")

    def register(self, manifest: Manifest, files: Mapping[str, bytes]) -> Manifest:
        """Makes the version visible, all at once, and returns its manifest.

        The same version again is the former manifest and changes nothing. Raises ``ModelError`` when it exists with
        other files or facts, and when ``files`` are not those of the manifest.
        """
        _check_listed(manifest, {name: facts_of(content) for name, content in files.items()})
        verification.check_external(manifest, files)
        known = self._known(manifest)
        if known is not None:
            return known
        content = manifest.save()
        if isinstance(self._files, LocalFileSystem):
            self._place_folder(manifest, {**files, FILE: content})
        else:
            for name, data in files.items():
                self._files.pipe_file(self._path(manifest.name, manifest.version, name), data)
            self._files.pipe_file(self._path(manifest.name, manifest.version, FILE), content)
        return self._known(manifest) or manifest

    def there(self) -> bool:
        """Whether anything is where it should be; before the first version there need not be."""
        return bool(self._files.exists(self._root))

    def names(self) -> list[str]:
        """The models that have a version."""
        return [name for name in self._folders(self._root) if self.versions(name)]

    def versions(self, name: str) -> list[str]:
        """The model's versions, oldest number first."""
        found = []
        for version in self._folders(f"{self._root}/{name}"):
            try:
                parse_version(version)
            except ValueError:
                continue
            if self._files.exists(self._path(name, version, FILE)):
                found.append(version)
        return sorted(found, key=parse_version)

    def latest(self, name: str, service_hash: str | None = None) -> str | None:
        """The version with the largest number, of those trained for the features of ``service_hash`` if given; a
        preview (1.2.0-rc.1) only where there is no release. Raises ``ModelError``."""
        versions = self.versions(name)
        if service_hash is not None:
            versions = [v for v in versions if self.manifest(name, v)[0].feature_service_hash == service_hash]
        releases = [version for version in versions if "-" not in version]
        found = releases or versions
        return found[-1] if found else None

    def manifest(self, name: str, version: str) -> tuple[Manifest, str]:
        """The manifest and its digest; files are not looked at. Raises ``ModelError``."""
        where = self.where(name, version)
        try:
            content = self._read(name, version, FILE)
        except (FileNotFoundError, NotADirectoryError):
            known = ", ".join(self.versions(name)) or "none"
            raise ModelError(
                f"model {name} {version}: no {FILE} in {where}; versions there: {known}. "
                "Register it with `penstock model register` or set PENSTOCK_MODELS_URL to the registry that has it"
            ) from None
        manifest = Manifest.load(content, f"{where}/{FILE}")
        if (manifest.name, manifest.version) != (name, version):
            raise ModelError(f"{where}/{FILE} is the manifest of {manifest.label}. Move it to its own folder")
        return manifest, digest_of(content)

    def load(self, name: str, version: str) -> VerifiedModel:
        """The version with all its files in memory, checked against the manifest. Raises ``ModelError``."""
        manifest, digest = self.manifest(name, version)
        return verification.verify(
            manifest, digest, self.where(name, version), lambda file: self._read(name, version, file)
        )

    def where(self, name: str, version: str) -> str:
        """The version's folder, for people."""
        return f"{self.url.rstrip('/')}/{name}/{version}"

    def _known(self, manifest: Manifest) -> Manifest | None:
        if not self._files.exists(self._path(manifest.name, manifest.version, FILE)):
            return None
        known, _ = self.manifest(manifest.name, manifest.version)
        if known.same_but_for_time(manifest):
            return known
        changed = ", ".join(_differences(known, manifest))
        raise ModelError(
            f"model {manifest.label} is registered already in {self.where(manifest.name, manifest.version)} "
            f"with other {changed}. Versions never change: register this one under a new number"
        )

    def _place_folder(self, manifest: Manifest, files: Mapping[str, bytes]) -> None:
        folder = Path(self._root, manifest.name)
        # a dot keeps a half-written folder out of the list of versions
        aside = folder / f".{manifest.version}.{uuid4().hex[:8]}"
        try:
            aside.mkdir(parents=True)
            for name, content in files.items():
                with (aside / name).open("wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
            try:
                aside.rename(folder / manifest.version)
            except OSError:
                # another writer was faster, and what it wrote is compared by the caller; anything else is told
                if not (folder / manifest.version / FILE).exists():
                    raise
        except OSError as error:
            raise ModelError(
                f"model {manifest.label} cannot be written to {folder}: {error.strerror}. "
                "Make the folder writable and empty there"
            ) from None
        finally:
            shutil.rmtree(aside, ignore_errors=True)

    def _folders(self, path: str) -> list[str]:
        self._files.invalidate_cache(path)
        try:
            entries = self._files.ls(path, detail=True)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(str(e["name"]).rstrip("/").rsplit("/", 1)[-1] for e in entries if e["type"] == "directory")

    def _read(self, name: str, version: str, file: str) -> bytes:
        content: bytes = self._files.cat_file(self._path(name, version, file))
        return content

    def _path(self, name: str, version: str, file: str) -> str:
        # every part is checked, so that no name leads out of the registry
        if "/" in name or name.startswith(".") or not name:
            raise ModelError(f"{name!r} is no model's name. Use letters, digits and '_'")
        try:
            parse_version(version)
        except ValueError as error:
            raise ModelError(f"model {name}: {error}") from None
        return f"{self._root}/{name}/{version}/{file}"


def _check_listed(manifest: Manifest, files: dict[str, FileFacts]) -> None:
    for name in sorted(manifest.files.keys() | files.keys()):
        if manifest.files.get(name) != files.get(name):
            what = "is not in the manifest" if name not in manifest.files else "is not what the manifest says"
            what = "is in the manifest but was not given" if name not in files else what
            raise ModelError(f"model {manifest.label}: file {name!r} {what}. Write the manifest anew from the files")


def _differences(known: Manifest, new: Manifest) -> list[str]:
    fields = [f for f in Manifest.model_fields if f != "created" and getattr(known, f) != getattr(new, f)]
    if "files" in fields:
        names = sorted(n for n in known.files.keys() | new.files.keys() if known.files.get(n) != new.files.get(n))
        fields[fields.index("files")] = f"files ({', '.join(names)})"
    return fields
