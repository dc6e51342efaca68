"""A plan compiled only when something that it is made of has changed, because compiling imports feast, and that alone
takes longer than everything else a second start does.
"""

import hashlib
from importlib.util import find_spec
from pathlib import Path

import penstock
from penstock.local.steps import Step
from penstock.plan import Plan, PlanError

SOURCES = ("*.py", "*.avsc", "*.yaml", "*.lock")


class PlanFile:
    """The plan of ``source`` at ``path``, beside it the digest of what it was compiled from; a context manager that
    ends a compilation under way."""

    def __init__(self, source: str, path: Path, log_path: Path, *, extend_lock: bool = False) -> None:
        self._source, self._path, self._digest_path = source, path, path.with_suffix(".sha256")
        self._step: Step | None = None
        if self._known():
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        arguments = ["penstock", "plan", source, "--out", str(path), *(["--extend-lock"] if extend_lock else [])]
        self._step = Step(f"compiling {source}", arguments, log_path)

    @property
    def fresh(self) -> bool:
        """It has to be compiled first."""
        return self._step is not None

    def load(self) -> Plan:
        """Waits for the compilation. Raises ``StepFailed``."""
        if self._step is not None:
            self._step.wait()
            self._digest_path.write_text(digest(self._source))
        return Plan.load(self._path)

    def close(self) -> None:
        if self._step is not None:
            self._step.close()

    def _known(self) -> bool:
        try:
            if self._digest_path.read_text() != digest(self._source):
                return False
            Plan.load(self._path)
        except (OSError, PlanError):
            return False
        return True


def digest(source: str) -> str:
    """sha256 of everything that the plan of ``source`` may depend on: its folder, and penstock itself."""
    spec = find_spec(source.partition(":")[0])
    if spec is None or spec.origin is None:
        raise PlanError(f"{source!r}: no such module on the path. Run from the folder that holds it")
    found = hashlib.sha256(source.encode())
    package = Path(penstock.__file__).parent
    for folder in (Path(spec.origin).parent, package, package.parent / "schemas"):
        for pattern in SOURCES:
            for path in sorted(folder.rglob(pattern)):
                found.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes())
    return found.hexdigest()
