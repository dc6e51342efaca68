"""What the README says holds: its pipeline passes the shared checks, its commands and links exist."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import fastavro
import pytest
from confluent_kafka import Consumer, Producer

from penstock.cli.app import SUB_COMMANDS, load_command

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
OTHERS = ["CONTRIBUTING.md", "docs/architecture.md"]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def section(title: str) -> str:
    return README.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]


PIPELINE = section("A pipeline of your own in thirty lines")


def blocks(language: str) -> list[str]:
    return [text for kind, text in FENCE.findall(PIPELINE) if kind == language]


def commands(text: str) -> list[str]:
    """Commands of console blocks, without the prompt and the comment."""
    lines = [line for kind, block in FENCE.findall(text) if kind in ("console", "sh") for line in block.splitlines()]
    return [line.removeprefix("$ ").split("#")[0].strip() for line in lines]


@pytest.fixture
def sensors(tmp_path: Path) -> Path:
    """The folder that a reader has who copies the blocks into the files named above them."""
    names = re.findall(r"`(sensors/[\w.]+)`", PIPELINE)
    texts = [text for kind, text in FENCE.findall(PIPELINE) if kind in ("json", "python", "yaml")]
    assert len(names) == len(texts)
    (tmp_path / "sensors").mkdir()
    for name, text in zip(names, texts, strict=True):
        (tmp_path / name).write_text(text)
    return tmp_path


def run(command: str, folder: Path) -> str:
    words = [sys.executable, "-m", *command.split()]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def read_features(bootstrap: str, lock: Path, n: int) -> list[dict[str, Any]]:
    """The first ``n`` rows of sensors.features: five bytes of frame, then Avro by the id's line in the lock."""
    schemas = [json.loads(line)["schema"] for line in lock.read_text().splitlines()]
    reader = Consumer({"bootstrap.servers": bootstrap, "group.id": "reader", "auto.offset.reset": "earliest"})
    reader.subscribe(["sensors.features"])
    found: list[dict[str, Any]] = []
    deadline = time.monotonic() + 60
    try:
        while len(found) < n and time.monotonic() < deadline:
            for message in reader.consume(n, 0.2):
                assert message.error() is None, message.error()
                value = message.value() or b""
                schema = schemas[int.from_bytes(value[1:5], "big") - 1]
                found.append(dict(fastavro.schemaless_reader(io.BytesIO(value[5:]), schema, None)))  # type: ignore[arg-type]
    finally:
        reader.close()
    return found


def wait_for(log: Path, text: str) -> str:
    """The log, once ``text`` is in it."""
    deadline = time.monotonic() + 60
    while text not in log.read_text() and time.monotonic() < deadline:
        time.sleep(0.1)
    return log.read_text()


def test_the_pipeline_has_thirty_lines() -> None:
    assert sum(bool(line.strip()) for text in blocks("python") for line in text.splitlines()) <= 30


def test_the_pipeline_compiles_and_passes_the_checks_as_the_reader_calls_them(sensors: Path) -> None:
    plan, check, _ = commands(PIPELINE)
    assert "features.machine" in run(plan, sensors)
    assert (sensors / "sensors/schemas.lock").exists()
    last = run(check, sensors).splitlines()[-1]
    passed, of = re.fullmatch(r"(\d+) of (\d+) checks passed", last).groups()  # type: ignore[union-attr]
    assert passed == of
    assert int(of) > 10


@pytest.mark.kafka
def test_the_pipeline_runs_and_a_plain_client_reads_its_features(sensors: Path) -> None:
    *_, dev = commands(PIPELINE)
    words = [sys.executable, "-m", *dev.split(), "--json"]
    log = sensors / "dev.log"
    own = {name: value for name, value in os.environ.items() if name != "KAFKA_BOOTSTRAP_SERVERS"}
    with (
        log.open("w") as errors,
        subprocess.Popen(words, cwd=sensors, env=own, stdout=subprocess.PIPE, stderr=errors, text=True) as running,
    ):
        try:
            assert running.stdout is not None
            line = running.stdout.readline()
            assert line, log.read_text()
            assert "bootstrap" in line, line
            bootstrap = json.loads(line)["bootstrap"]
            producer = Producer({"bootstrap.servers": bootstrap})
            now = int(time.time() * 1000)
            for place, vibration in enumerate((1.0, 3.0, 8.0)):
                reading = {"at": now - 60_000 + place, "machine": "lathe", "vibration": vibration}
                producer.produce("sensors.raw", json.dumps(reading), key="lathe")
            assert producer.flush(30) == 0
            found = read_features(bootstrap, sensors / "sensors/schemas.lock", 3)
            missing = wait_for(log, "no version of wear")
        finally:
            running.send_signal(signal.SIGINT)
            running.wait(60)
    assert "Make one:  penstock model register FOLDER" in missing
    assert f"KAFKA_BOOTSTRAP_SERVERS={bootstrap} penstock model promote " in missing
    assert [(row["mean_1h"], row["readings_1d"]) for row in found] == [(1.0, 1), (2.0, 2), (4.0, 3)]


def test_every_command_exists() -> None:
    text = README + "".join((ROOT / other).read_text() for other in OTHERS)
    named = set(re.findall(r"(?:`|\$ )penstock (\w+)", text)) | set(re.findall(r"^penstock (\w+)", text, re.MULTILINE))
    assert named
    assert named <= SUB_COMMANDS.keys()
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:`|\$ |^)make (\w+)", text, re.MULTILINE)) <= targets


def test_the_commands_for_records_that_die_have_these_options() -> None:
    groups = {name: load_command(name).commands for name in ("dead", "quarantine")}
    shown = [command.split() for command in commands(section("When records die"))]
    for _, group, name, *words in shown:
        known = {option for parameter in groups[group][name].params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known, name
    assert {(group, name) for _, group, name, *_ in shown} == {
        (g, name) for g, names in groups.items() for name in names
    }


@pytest.mark.parametrize("name", ["README.md", *OTHERS])
def test_every_link_leads_somewhere(name: str) -> None:
    here = (ROOT / name).parent
    links = re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / name).read_text())
    assert links
    assert not [link for link in links if not (here / link).exists()]


def test_figures_come_from_the_bench() -> None:
    figures = section("Figures")
    assert figures.count("<!-- bench -->") == figures.count("<!-- /bench -->") == 1
    outside = re.sub(r"<!-- bench -->.*<!-- /bench -->", "", README, flags=re.DOTALL)
    assert not re.findall(r"\d[\d,.]* ?(?:k |M )?(?:events/s|rows/s|ms\b)", outside)
