"""Whether the files of a version are what its manifest says. The bytes that were hashed are the bytes that are
handed on; nothing is read a second time, so a file that changes after the check cannot reach ONNX Runtime.

Only sha256 is checked: it shows damage, mix-ups and edits of a file, not who wrote the manifest.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from penstock.models.manifest import MODEL_FILE, PROFILE_FILE, Manifest, ModelError, digest_of
from penstock.models.onnx_files import external_files

_MEND = "Restore the file or register a new version; this one is not served"


@dataclass(frozen=True, slots=True)
class VerifiedModel:
    """A version with all its files in memory. ``digest``: sha256 of the manifest's bytes."""

    manifest: Manifest
    digest: str
    files: Mapping[str, bytes]

    @property
    def model(self) -> bytes:
        """The ONNX model."""
        return self.files[MODEL_FILE]

    @property
    def external(self) -> dict[str, bytes]:
        """The files that hold weights of the model, by the name it knows them under."""
        return {name: self.files[name] for name in sorted(external_files(self.model))}

    @property
    def profile(self) -> bytes | None:
        """The reference profile, where the version has one."""
        return self.files.get(PROFILE_FILE)


def verify(manifest: Manifest, digest: str, where: str, read: Callable[[str], bytes]) -> VerifiedModel:
    """Reads every file of the manifest once, checks it and returns the bytes.

    ``read`` takes a file's name and raises ``FileNotFoundError``; ``where`` is the version's folder, for messages.
    Raises ``ModelError``.
    """
    files: dict[str, bytes] = {}
    for name, facts in manifest.files.items():
        try:
            content = read(name)
        except FileNotFoundError:
            raise ModelError(
                f"model {manifest.label}: file {name!r} of the manifest is not in {where}. {_MEND}"
            ) from None
        if len(content) != facts.size:
            raise ModelError(
                f"model {manifest.label}: {where}/{name} has {len(content)} bytes, "
                f"the manifest says {facts.size}. {_MEND}"
            )
        found = digest_of(content)
        if found != facts.sha256:
            raise ModelError(
                f"model {manifest.label}: {where}/{name} has sha256 {found}, the manifest says {facts.sha256}. {_MEND}"
            )
        files[name] = content
    check_external(manifest, files)
    return VerifiedModel(manifest, digest, files)


def check_external(manifest: Manifest, files: Mapping[str, bytes]) -> None:
    """Raises ``ModelError`` unless every file that the model reads weights from is listed in the manifest."""
    try:
        wanted = external_files(files[MODEL_FILE])
    except ValueError as error:
        raise ModelError(
            f"model {manifest.label}: {MODEL_FILE} is not an ONNX model: {error}. Export the model again"
        ) from None
    for name in sorted(wanted):
        if name not in manifest.files or name == MODEL_FILE:
            raise ModelError(
                f"model {manifest.label}: {MODEL_FILE} reads weights from {name!r}, which the manifest does not list. "
                "Register that file too, as a plain name beside the model"
            )
