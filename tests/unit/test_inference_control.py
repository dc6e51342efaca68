"""The watch of the control topic: what is in force serves, what cannot be loaded leaves the old one serving."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from penstock_inference.control import ChampionWatch
from penstock_inference.loaded import LoadedModel, load_model
from penstock_inference.stage import InferenceStage

from penstock.models.control import ControlMessage, InForce, Role
from penstock.models.control_topic import ControlUnavailable
from penstock.models.manifest import Manifest, ModelError
from penstock.models.verification import VerifiedModel
from penstock.telemetry import MODEL_FAILURES, MODEL_INFO
from tests.onnx_models import linear, plan


class Topic:
    """A control topic in memory that a test writes to while it is read."""

    def __init__(self) -> None:
        self.log: list[InForce] = []
        self.readers: list[Reader] = []
        self.fault: Exception | None = None

    def say(self, version: str | None, role: Role = "champion", model: str = "shop_model") -> None:
        message = ControlMessage(model=model, role=role, version=version)
        self.log.append(InForce(message=message, partition=0, offset=len(self.log)))

    def open(self) -> Any:
        if self.fault is not None:
            raise self.fault
        self.readers.append(Reader(self))
        return self.readers[-1]


class Reader:
    def __init__(self, topic: Topic) -> None:
        self._topic, self._at, self.caught_up, self.closed, self.fault = topic, 0, False, False, None

    fault: Exception | None

    def poll(self, wait_s: float) -> list[InForce]:
        if self.fault is not None:
            raise self.fault
        # one message at a time, so that following before the end is reached would show
        found = self._topic.log[self._at : self._at + 1]
        self._at += len(found)
        if not found:
            self.caught_up = True
            time.sleep(0.005)
        return found

    def close(self) -> None:
        self.closed = True


class Models:
    """Loads real sessions; versions in ``broken`` raise."""

    def __init__(self) -> None:
        self.broken: dict[str, Exception] = {}
        self.asked: list[str] = []

    def load(self, wanted: InForce) -> LoadedModel:
        version = wanted.message.version
        assert version is not None
        self.asked.append(version)
        if version in self.broken:
            raise self.broken[version]
        content = {"model.onnx": linear().SerializeToString()}
        verified = VerifiedModel(Manifest.of(plan(), version, content), "d" * 64, content)
        return load_model(plan(), verified, providers="cpu")


@pytest.fixture
def topic() -> Topic:
    return Topic()


@pytest.fixture
def models() -> Models:
    return Models()


@pytest.fixture
def watch(topic: Topic, models: Models) -> Iterator[ChampionWatch]:
    watching = ChampionWatch(plan(), topic.open, models.load, first_retry_s=0.02)
    yield watching
    watching.close()
    assert all(reader.closed for reader in topic.readers)


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not true():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.005)


def served(watch: ChampionWatch, stage: InferenceStage) -> str | None:
    for change in watch.news():
        change(stage)
    return stage.serving


def test_the_champion_in_force_at_the_end_of_the_topic_is_loaded_and_no_other(
    topic: Topic, models: Models, watch: ChampionWatch
) -> None:
    for version in ("1.0.0", "1.1.0", "1.2.0"):
        topic.say(version)
    stage = InferenceStage(plan())
    assert "was not read yet" in (watch.unready() or "")

    watch.start()
    until(lambda: watch.unready() is None)

    assert served(watch, stage) == "1.2.0"
    assert models.asked == ["1.2.0"]
    assert watch.news() == []


def test_a_worker_without_a_champion_waits_and_says_for_what(topic: Topic, watch: ChampionWatch) -> None:
    watch.start()
    until(lambda: "has no champion. Promote a version with `penstock model promote" in (watch.unready() or ""))

    topic.say("1.0.0")

    until(lambda: watch.unready() is None)


def test_a_new_champion_is_handed_over_while_the_old_one_serves(topic: Topic, watch: ChampionWatch) -> None:
    stage = InferenceStage(plan())
    topic.say("1.0.0")
    watch.start()
    until(lambda: served(watch, stage) == "1.0.0")

    topic.say("1.1.0")

    until(lambda: served(watch, stage) == "1.1.0")
    assert MODEL_INFO.labels("shop_model", "1.0.0", "champion", "CPUExecutionProvider")._value.get() == 0
    assert MODEL_INFO.labels("shop_model", "1.1.0", "champion", "CPUExecutionProvider")._value.get() == 1


def test_a_version_that_cannot_be_loaded_leaves_the_old_one_serving_and_is_tried_again(
    topic: Topic, models: Models, watch: ChampionWatch, caplog: pytest.LogCaptureFixture
) -> None:
    stage = InferenceStage(plan())
    topic.say("1.0.0")
    watch.start()
    until(lambda: served(watch, stage) == "1.0.0")
    failures = MODEL_FAILURES.labels("shop_model", "1.1.0", "load failed")
    before = failures._value.get()

    models.broken["1.1.0"] = ModelError("model shop_model 1.1.0: model.onnx has sha256 of something else")
    topic.say("1.1.0")
    until(lambda: models.asked.count("1.1.0") >= 2)

    assert served(watch, stage) == "1.0.0"
    assert watch.unready() is None
    assert failures._value.get() >= before + 2
    assert "sha256 of something else (1.0.0 goes on serving; tried again in" in caplog.text
    models.broken.clear()
    until(lambda: served(watch, stage) == "1.1.0")


def test_a_first_version_that_cannot_be_loaded_is_why_the_worker_is_not_ready(
    topic: Topic, models: Models, watch: ChampionWatch
) -> None:
    models.broken["1.0.0"] = OSError("the object store does not answer")
    topic.say("1.0.0")

    watch.start()

    until(lambda: "cannot be read: OSError: the object store does not answer" in (watch.unready() or ""))
    models.broken.clear()
    until(lambda: watch.unready() is None)


def test_canaries_and_other_models_change_nothing(
    topic: Topic, models: Models, watch: ChampionWatch, caplog: pytest.LogCaptureFixture
) -> None:
    stage = InferenceStage(plan())
    topic.say("1.0.0")
    topic.say("2.0.0", role="canary")
    topic.say("2.0.0", role="shadow")
    topic.say("3.0.0", model="other_model")

    with caplog.at_level("INFO"):
        watch.start()
        until(lambda: served(watch, stage) == "1.0.0")

    assert models.asked == ["1.0.0"]
    assert "canary 2.0.0 of shop_model is not served: this release has champions only" in caplog.text


def test_a_broker_that_is_away_is_why_the_worker_is_not_ready_until_it_is_back(
    topic: Topic, watch: ChampionWatch
) -> None:
    topic.fault = ControlUnavailable("shop.control cannot be read at 127.0.0.1:1")
    topic.say("1.0.0")

    watch.start()
    until(lambda: watch.unready() == "shop.control cannot be read at 127.0.0.1:1")

    topic.fault = None
    until(lambda: watch.unready() is None)


def test_after_a_fault_the_topic_is_read_again_and_what_serves_is_not_loaded_again(
    topic: Topic, models: Models, watch: ChampionWatch
) -> None:
    stage = InferenceStage(plan())
    topic.say("1.0.0")
    topic.say("1.1.0")
    watch.start()
    until(lambda: served(watch, stage) == "1.1.0")

    topic.readers[0].fault = RuntimeError("something nobody thought of")
    until(lambda: len(topic.readers) == 2 and topic.readers[1].caught_up)
    topic.say("1.2.0")
    until(lambda: served(watch, stage) == "1.2.0")

    assert models.asked == ["1.1.0", "1.2.0"]


def test_a_retired_champion_ends_the_worker_which_then_waits_for_another(topic: Topic, watch: ChampionWatch) -> None:
    stage = InferenceStage(plan())
    topic.say("1.0.0")
    watch.start()
    until(lambda: served(watch, stage) == "1.0.0")

    topic.say(None)
    until(lambda: watch.unready() is not None)

    with pytest.raises(SystemExit):
        served(watch, stage)


def test_closing_ends_the_thread(topic: Topic, models: Models) -> None:
    watch = ChampionWatch(plan(), topic.open, models.load)
    watch.start()
    until(lambda: bool(topic.readers))

    watch.close()

    assert "control" not in [thread.name for thread in threading.enumerate()]
