"""What a stranger gets who installs the wheels: `penstock new` and `penstock check` work in a folder of their own that
has a `services/` package, with nothing of this checkout in reach.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MEMBERS = [".", "services/ingest", "services/features", "services/inference", "services/monitor"]
PACKAGES = ["penstock", "penstock_ingest", "penstock_features", "penstock_inference", "penstock_monitor"]


def find_uv() -> str:
    """uv as it runs this test, on the path, or where `make setup` puts it."""
    own = ROOT / ".bootstrap" / "bin" / "uv"
    for found in (os.environ.get("UV"), shutil.which("uv"), str(own) if own.exists() else None):
        if found:
            return found
    pytest.fail("uv is not on the path, so no wheels can be built. `make setup` brings it; by hand: pip install uv")


def run(*command: str, cwd: Path, **environment: str) -> str:
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PENSTOCK_", "VIRTUAL_ENV"))
    }
    done = subprocess.run(
        command, cwd=cwd, env={**kept, **environment}, capture_output=True, text=True, check=False, timeout=280
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("wheels")
    for member in MEMBERS:
        run(find_uv(), "build", "--wheel", "-q", "-o", str(folder), member, cwd=ROOT)
    return sorted(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheels: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of an environment that holds the wheels and what they say they need, in the lock's versions."""
    home = tmp_path_factory.mktemp("environment") / "venv"
    run(find_uv(), "venv", "-q", "--python", sys.executable, str(home), cwd=ROOT)
    python, versions, names = str(home / "bin" / "python"), str(home / "versions.txt"), [str(wheel) for wheel in wheels]
    export = ["--frozen", "--no-hashes", "--no-emit-workspace", "--all-groups", "-q", "-o", versions]
    run(find_uv(), "export", *export, cwd=ROOT)
    run(find_uv(), "pip", "install", "-q", "--python", python, "-c", versions, *names, cwd=home)
    return home / "bin"


@pytest.fixture
def workplace(tmp_path: Path) -> Iterator[Path]:
    """A folder of someone else, with a package called services."""
    (tmp_path / "services").mkdir()
    (tmp_path / "services" / "__init__.py").write_text("OURS = False\n")
    return tmp_path


def test_every_member_is_a_wheel_with_the_shared_schemas_and_the_template(wheels: list[Path]) -> None:
    assert [wheel.name.partition("-")[0] for wheel in wheels] == sorted(PACKAGES)
    listed = run(sys.executable, "-m", "zipfile", "-l", str(wheels[0]), cwd=ROOT)
    for name in ("schemas/shared/prediction.avsc", "schemas/shared/alert.avsc", "cli/template/event.avsc.tmpl"):
        assert f"penstock/{name}" in listed
    assert "pipelines/" not in listed


def test_the_installed_packages_are_the_wheels_and_services_is_the_users(installed: Path, workplace: Path) -> None:
    files = ", ".join(f"{package}.__file__" for package in PACKAGES)
    code = f"import services, {', '.join(PACKAGES)}; print(services.__file__, {files})"
    services, *ours = run(str(installed / "python"), "-c", code, cwd=workplace).split()
    assert services == str(workplace / "services" / "__init__.py")
    assert all(file.startswith(str(installed.parent)) for file in ours)


@pytest.mark.timeout(600)
def test_a_pipeline_made_anywhere_passes_its_checks(installed: Path, workplace: Path) -> None:
    cache = str(workplace / "numba")
    made = run(str(installed / "penstock"), "new", "shop", cwd=workplace)
    assert "next:\n  penstock check shop.pipeline:pipeline\n  penstock model train shop.pipeline:pipeline " in made
    checked = run(str(installed / "penstock"), "check", "shop.pipeline:pipeline", cwd=workplace, NUMBA_CACHE_DIR=cache)
    assert "failed" not in checked
    assert "features.customer" in checked
    planned = run(str(installed / "penstock"), "plan", "shop.pipeline:pipeline", cwd=workplace)
    assert (workplace / "var" / "shop" / "plan.json").exists()
    assert "shop.events → shop.view.customer_orders, shop.features" in planned
