"""``.ci/setup`` on machines that lack something, in a copy: a Python, its venv, a package index or a compiler. Each is
told in one line, with the mend. Python and uv are scripts that fail where such a machine's would.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CI = Path(__file__).parents[2] / ".ci"
TOOLS = ("sh", "dirname", "cmp", "rm", "cp", "mkdir", "chmod")
PYTHON = f"""#!/bin/sh
case "$*" in
    *sys.executable*) echo "$0" ;;
    *ensurepip*) [ -z "${{LACKS_VENV:-}}" ] ;;
    *"-m venv"*)
        mkdir -p .bootstrap/bin
        printf '#!/bin/sh\\nexit 1\\n' > .bootstrap/bin/python
        chmod +x .bootstrap/bin/python ;;
    *) exec {sys.executable} "$@" ;;
esac
"""
OLD = "#!/bin/sh\nexit 1\n"
UV = '#!/bin/sh\ncase "$*" in *sync*) echo "error: no wheel" >&2; exit 1 ;; esac\n'


class Machine:
    """A checkout, and a PATH with nothing on it but what ``.ci/setup`` calls."""

    def __init__(self, folder: Path) -> None:
        self.checkout, self.path = folder / "checkout", folder / "bin"
        (self.checkout / ".ci").mkdir(parents=True)
        for name in ("setup", "uv.txt"):
            shutil.copy(CI / name, self.checkout / ".ci")
        self.path.mkdir()
        for tool in TOOLS:
            found = shutil.which(tool)
            assert found is not None
            (self.path / tool).symlink_to(found)

    def install(self, name: str, script: str) -> Path:
        file = self.path / name if "/" not in name else self.checkout / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(script)
        file.chmod(0o755)
        return file

    def set_up(self, **environment: str) -> str:
        """Runs it, which has to fail; what it says."""
        done = subprocess.run(
            [self.checkout / ".ci/setup"],
            env={"PATH": str(self.path), **environment},
            cwd="/",
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 1, done
        assert done.stdout == ""
        return done.stderr


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_without_a_python_that_suits_it_says_which_do_and_how_to_get_one(machine: Machine) -> None:
    for candidate in ("python3", "python3.11"):
        machine.install(candidate, OLD)
    told = machine.set_up()
    assert told.startswith("make setup: no Python of 3.11, 3.12 or 3.13 on PATH. Install one (Debian, Ubuntu: apt ")
    assert told.endswith("or name it: make setup PYTHON=/path/to/python3.12\n")


def test_a_python_that_was_named_and_does_not_suit_is_told_though_another_would(machine: Machine) -> None:
    machine.install("python3", PYTHON)
    old = machine.install("old", OLD)
    assert machine.set_up(PYTHON=str(old)) == (
        f"make setup: PYTHON={old} is not a Python of 3.11, 3.12 or 3.13. Name one, or leave PYTHON unset.\n"
    )


def test_the_first_python_that_suits_is_taken_and_one_without_venv_names_its_package(machine: Machine) -> None:
    machine.install("python3", OLD)
    python = machine.install("python3.12", PYTHON)
    version = "{}.{}".format(*sys.version_info)
    assert machine.set_up(LACKS_VENV="yes") == (
        f"make setup: {python} comes without venv. Install it (Debian, Ubuntu: apt install python{version}-venv).\n"
    )


def test_without_a_package_index_it_says_where_one_is_set(machine: Machine) -> None:
    machine.install("python3", PYTHON)
    told = machine.set_up()
    assert told == (
        "make setup: pip could not install uv. Is there a way to a package index? (pip config, PIP_INDEX_URL,"
        " HTTPS_PROXY)\n"
    )
    # and it begins there again, not with half an installer
    assert machine.set_up() == told


@pytest.mark.parametrize(
    ("compiler", "said"),
    [
        (None, "and there is no C compiler to build it. Install one (Debian, Ubuntu: apt install build-essential"),
        ("cc", "the packages of uv.lock could not be installed; uv says why above."),
        ("clang", "the packages of uv.lock could not be installed; uv says why above."),
    ],
)
def test_packages_that_do_not_install_are_told_and_a_compiler_where_one_lacks(
    machine: Machine, compiler: str | None, said: str
) -> None:
    machine.install("python3", PYTHON)
    machine.install(".bootstrap/bin/uv", UV)
    shutil.copy(CI / "uv.txt", machine.checkout / ".bootstrap")
    if compiler is not None:
        machine.install(compiler, OLD)
    cause, told = machine.set_up().splitlines()
    assert cause == "error: no wheel"
    assert told.startswith("make setup: ")
    assert said in told
