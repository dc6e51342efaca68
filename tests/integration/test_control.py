"""Who serves, through a real broker: promoted by the command, read back by all, followed by the watch of a worker."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from confluent_kafka import Producer
from penstock_inference.control import ChampionWatch, champion_watch
from penstock_inference.stage import InferenceStage
from typer.testing import CliRunner

from penstock.cli.app import app
from penstock.local.ports import free_port
from penstock.local.resolve import BrokerHandle
from penstock.models.control import ControlCodec, ControlMessage
from penstock.models.control_topic import ControlReader, ControlUnavailable, promote, publish, read_control
from penstock.models.manifest import FILE, Manifest, ModelError
from penstock.models.registry import ModelRegistry
from penstock.plan import Plan
from penstock.settings import Settings
from tests.conftest import CommittedReader, TopicFactory
from tests.onnx_models import baskets, batch, linear, plan

pytestmark = pytest.mark.kafka


@pytest.fixture
def settings(broker: BrokerHandle, tmp_path: Path) -> Settings:
    return Settings(bootstrap_servers=broker.bootstrap, models_url=str(tmp_path / "models"), providers="cpu")


@pytest.fixture
def shop(topic_factory: TopicFactory, kafka_topic_prefix: str) -> Plan:
    """A plan with a control topic of its own."""
    topic_factory("control", partitions=3, cleanup_policy="compact")
    return plan(pipeline=kafka_topic_prefix)


def register(settings: Settings, for_plan: Plan, version: str, weight: float = 1.0) -> Manifest:
    content = {"model.onnx": linear((weight, 0.0, 0.0)).SerializeToString()}
    return ModelRegistry(settings.models_url).register(Manifest.of(for_plan, version, content), content)


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.01)


@pytest.fixture
def watch(settings: Settings, shop: Plan) -> Iterator[ChampionWatch]:
    watching = champion_watch(shop, "inference", settings)
    yield watching
    watching.close()


def served(watch: ChampionWatch, stage: InferenceStage) -> str | None:
    for change in watch.news():
        change(stage)
    return stage.serving


def test_what_was_published_last_is_in_force(settings: Settings, shop: Plan, read_committed: CommittedReader) -> None:
    assert read_control(settings, shop) == []

    publish(settings, shop, "shop_model", "1.0.0", author="ann", reason="first")
    second = publish(settings, shop, "shop_model", "1.1.0", author="bob", digest="d" * 64)
    canary = publish(settings, shop, "shop_model", "2.0.0", "canary")

    assert read_control(settings, shop) == [canary, second]
    keys = [(message.key(), message.partition()) for message in read_committed(shop.topic("control").name)]
    assert sorted(key for key, _ in keys) == [b"shop_model/canary"] + [b"shop_model/champion"] * 2
    assert len({partition for key, partition in keys if key == b"shop_model/champion"}) == 1


def test_a_champion_is_promoted_loaded_and_replaced_between_two_batches(
    settings: Settings, shop: Plan, watch: ChampionWatch
) -> None:
    register(settings, shop, "1.0.0")
    register(settings, shop, "1.1.0", weight=-1.0)
    stage, rows = InferenceStage(shop), batch(**baskets())
    watch.start()
    until(lambda: "has no champion" in (watch.unready() or ""))

    first = promote(settings, shop, "1.0.0", "ann", "first")
    until(lambda: served(watch, stage) == "1.0.0")
    before = stage.process(rows).outputs[0].rows
    second = promote(settings, shop, "1.1.0", "ann", "better")
    until(lambda: served(watch, stage) == "1.1.0")
    after = stage.process(rows).outputs[0].rows

    assert set(before.column("control_offset").to_pylist()) == {first.offset}
    assert set(after.column("control_offset").to_pylist()) == {second.offset}
    assert set(after.column("digest").to_pylist()) == {second.message.digest}
    assert before.column("score").to_pylist() == pytest.approx([1 - s for s in after.column("score").to_pylist()])


def test_a_version_that_was_tampered_with_never_serves(settings: Settings, shop: Plan, watch: ChampionWatch) -> None:
    register(settings, shop, "1.0.0")
    promote(settings, shop, "1.0.0")
    Path(settings.models_url, "shop_model", "1.0.0", "model.onnx").write_bytes(
        linear((9.0, 0.0, 0.0)).SerializeToString()
    )

    watch.start()

    until(lambda: "model.onnx has" in (watch.unready() or ""))
    assert watch.news() == []


def test_a_registry_with_another_version_of_the_same_number_never_serves(
    settings: Settings, shop: Plan, watch: ChampionWatch
) -> None:
    register(settings, shop, "1.0.0", weight=2.0)
    publish(settings, shop, "shop_model", "1.0.0", digest="e" * 64)

    watch.start()

    until(lambda: "the control message means eeee" in (watch.unready() or ""))


def test_a_message_of_an_aborted_transaction_is_nobodys_champion(settings: Settings, shop: Plan) -> None:
    message = ControlMessage(model="shop_model", role="champion", version="6.6.6")
    producer = Producer({**settings.kafka(), "transactional.id": uuid4().hex})
    producer.init_transactions(30)
    producer.begin_transaction()
    producer.produce(shop.topic("control").name, ControlCodec(shop).encode(message), message.key)
    producer.flush(30)
    producer.abort_transaction(30)

    assert read_control(settings, shop) == []


def test_foreign_bytes_on_the_topic_are_passed_over(
    settings: Settings, shop: Plan, caplog: pytest.LogCaptureFixture
) -> None:
    producer = Producer(settings.kafka())
    producer.produce(shop.topic("control").name, b"not avro", b"shop_model/champion")
    producer.produce(shop.topic("control").name, None, b"nonsense")
    producer.flush(30)
    said = publish(settings, shop, "shop_model", "1.0.0")

    assert read_control(settings, shop) == [said]
    assert "is ignored: no control message: bad magic" in caplog.text
    assert "a tombstone under the key b'nonsense', which is not MODEL/ROLE" in caplog.text


def test_a_tombstone_retires_the_role_of_its_key(settings: Settings, shop: Plan) -> None:
    publish(settings, shop, "shop_model", "1.0.0")
    producer = Producer({**settings.kafka(), "partitioner": "murmur2_random"})
    producer.produce(shop.topic("control").name, None, b"shop_model/champion")
    producer.flush(30)

    (champion,) = read_control(settings, shop)
    assert (champion.message.role, champion.message.version) == ("champion", None)


def test_a_missing_topic_and_a_missing_broker_are_told_with_the_mend(settings: Settings) -> None:
    with pytest.raises(ControlUnavailable, match="Make the pipeline's topics with `penstock topics`"):
        ControlReader(settings, plan(pipeline=f"t{uuid4().hex}"))

    nowhere = settings.model_copy(update={"bootstrap_servers": f"127.0.0.1:{free_port()}"})
    with pytest.raises(ControlUnavailable, match="Start the broker or set PENSTOCK_BOOTSTRAP_SERVERS"):
        ControlReader(nowhere, plan(), timeout=1.0)


def test_a_version_for_other_features_is_not_promoted(settings: Settings, shop: Plan) -> None:
    register(settings, shop.model_copy(update={"service": shop.service.model_copy(update={"hash": "0ther"})}), "1.0.0")

    with pytest.raises(ModelError, match=r"with hash 0ther, the plan .* has 'basket' with hash feedc0de"):
        promote(settings, shop, "1.0.0")
    assert read_control(settings, shop) == []


def test_the_commands_lead_from_a_folder_to_a_champion(
    settings: Settings, shop: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PENSTOCK_BOOTSTRAP_SERVERS", settings.bootstrap_servers)
    monkeypatch.setenv("PENSTOCK_MODELS_URL", settings.models_url)
    plan_file = tmp_path / "plan.json"
    shop.save(plan_file)
    content = {"model.onnx": linear().SerializeToString()}
    manifest = Manifest.of(shop, "1.0.0", content, metrics={"auc": 0.75})
    folder = tmp_path / "made"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(content["model.onnx"])
    (folder / FILE).write_bytes(manifest.save())

    def command(*words: str, code: int = 0) -> Any:
        result = CliRunner().invoke(app, ["model", *words, "--json"])
        assert result.exit_code == code, result.output
        return json.loads(result.stdout)

    assert command("status", str(plan_file), code=1) == []
    registered = command("register", str(folder))
    assert command("list") == {"shop_model": ["1.0.0"]}
    assert command("show", "shop_model", "1.0.0")["metrics"] == {"auc": 0.75}
    assert command("verify", "shop_model", "1.0.0")["digest"] == registered["digest"]
    assert "versions there: 1.0.0" in command("promote", str(plan_file), "2.0.0", code=1)["error"]
    command("promote", str(plan_file), "1.0.0", "--author", "ann", "--reason", "first")

    (champion,) = command("status", str(plan_file))
    assert (champion["version"], champion["author"], champion["digest"]) == ("1.0.0", "ann", registered["digest"])

    told = CliRunner().invoke(app, ["model", "status", str(plan_file)])
    assert told.output.startswith("champion: shop_model 1.0.0, message 0, ")
    shown = CliRunner().invoke(app, ["model", "show", "shop_model", "1.0.0"])
    assert "metric   auc 0.75" in shown.output
    Path(settings.models_url, "shop_model", "1.0.0", "model.onnx").write_bytes(b"")
    assert "has 0 bytes" in command("verify", "shop_model", "1.0.0", code=1)["error"]
