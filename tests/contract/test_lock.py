"""uv.lock installs the same bytes from any index: versions and hashes of all that is declared, and no addresses."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "uv.lock").read_text()
LOCK = tomllib.loads(TEXT)
PACKAGES = {package["name"]: package for package in LOCK["package"]}
MEMBERS = [ROOT / "pyproject.toml", *sorted(ROOT.glob("services/*/pyproject.toml"))]


def test_the_lock_holds_no_address() -> None:
    assert "://" not in TEXT, "run: make lock"


def test_everything_from_an_index_has_hashes() -> None:
    bare = [
        name
        for name, package in PACKAGES.items()
        if "registry" in package["source"]
        and not all(
            f.get("hash", "").startswith("sha256:")
            for f in [*package.get("wheels", []), package.get("sdist", {"hash": "sha256:"})]
        )
    ]
    assert not bare


def test_every_declared_dependency_is_locked_with_its_bounds() -> None:
    for path in MEMBERS:
        project = tomllib.loads(path.read_text())["project"]
        locked = {
            one["name"]: one.get("specifier", "") for one in PACKAGES[project["name"]]["metadata"]["requires-dist"]
        }
        declared = list(project["dependencies"])
        for extra in project.get("optional-dependencies", {}).values():
            declared += extra
        for line in declared:
            name, bounds = re.fullmatch(r"([\w.-]+)(?:\[[^]]*\])?\s*([^;]*?)\s*(?:;.*)?", line).groups()  # type: ignore[union-attr]
            assert name in locked, f"{path}: {name} is not in the lock; run: make lock"
            assert sorted(locked[name].split(",")) == sorted(bounds.replace(" ", "").split(",")), (
                f"{path}: {line}; run: make lock"
            )
