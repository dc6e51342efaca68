"""``.env.example`` is what a person copies: it must name every setting, with the default that is in force."""

from pathlib import Path

import pytest

from penstock.env_example import render
from penstock.settings import Settings

EXAMPLE = Path(__file__).parents[2] / ".env.example"


def assignments() -> dict[str, str]:
    """Every assignment of the file, the commented ones too."""
    lines = [line.removeprefix("# ") for line in EXAMPLE.read_text().splitlines()]
    return dict(line.split("=", 1) for line in lines if line.split("=")[0].startswith("PENSTOCK_"))


def test_the_example_is_what_the_settings_say() -> None:
    assert EXAMPLE.read_text() == render(), "run: python -m penstock.env_example > .env.example"


def test_every_setting_is_described() -> None:
    bare = [name for name, field in Settings.model_fields.items() if not field.description]
    assert not bare


def test_the_example_as_an_environment_gives_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    given = assignments()
    assert len(given) == len(Settings.model_fields)
    monkeypatch.delenv("KAFKA_BOOTSTRAP_SERVERS", raising=False)
    for name in given:
        monkeypatch.delenv(name, raising=False)
    defaults = Settings()
    for name, value in given.items():
        if value:
            monkeypatch.setenv(name, value)
    assert Settings() == defaults


def test_a_secret_is_not_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_SASL_PASSWORD", "hunter2")
    settings = Settings()
    assert settings.kafka()["sasl.password"] == "hunter2"
    assert "hunter2" not in f"{settings!r} {settings} {settings.model_dump()} {settings.model_dump_json()}"
