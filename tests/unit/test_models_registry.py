"""The model registry: versions appear whole, never change, and what was verified is what is loaded."""

import threading
from pathlib import Path

import onnx
import pytest
from onnx import helper

from penstock.models.manifest import Manifest, ModelError, parse_version
from penstock.models.onnx_files import _NESTED as walked
from penstock.models.onnx_files import external_files
from penstock.models.registry import ModelRegistry
from tests.onnx_models import external, linear, plan


def files(weight: float = 1.0) -> dict[str, bytes]:
    return {"model.onnx": linear((weight, 0.5, -1.0)).SerializeToString(), "profile.json": b"{}"}


def registered(url: str, version: str = "1.0.0", weight: float = 1.0) -> Manifest:
    content = files(weight)
    return ModelRegistry(url).register(Manifest.of(plan(), version, content, metrics={"auc": 0.9}), content)


@pytest.fixture(params=["disk", "object store"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "models") if request.param == "disk" else f"memory://{tmp_path.name}/models"


def test_a_registered_version_is_loaded_with_all_its_files(url: str) -> None:
    manifest = registered(url)

    loaded = ModelRegistry(url).load("shop_model", "1.0.0")

    assert loaded.manifest == manifest
    assert loaded.files == files()
    assert loaded.profile == b"{}"
    assert len(loaded.digest) == 64


def test_versions_are_in_the_order_of_their_numbers_and_the_latest_is_a_release(url: str) -> None:
    for number, version in enumerate(["1.10.0", "1.9.0", "2.0.0-rc.1", "1.9.0-rc.2", "1.9.0-rc.10"]):
        registered(url, version, weight=float(number))

    registry = ModelRegistry(url)

    assert registry.versions("shop_model") == ["1.9.0-rc.2", "1.9.0-rc.10", "1.9.0", "1.10.0", "2.0.0-rc.1"]
    assert registry.latest("shop_model") == "1.10.0"
    assert registry.names() == ["shop_model"]
    assert registry.latest("nobody") is None


def test_the_same_version_again_changes_nothing(url: str) -> None:
    first = registered(url)
    digest = ModelRegistry(url).load("shop_model", "1.0.0").digest

    assert registered(url) == first
    assert ModelRegistry(url).load("shop_model", "1.0.0").digest == digest


def test_a_version_is_never_registered_again_with_other_bytes(url: str) -> None:
    registered(url)

    with pytest.raises(
        ModelError, match=r"shop_model 1\.0\.0 is registered already .* files \(model\.onnx\).* new number"
    ):
        registered(url, weight=2.0)

    assert ModelRegistry(url).load("shop_model", "1.0.0").files == files()


def test_a_version_without_its_manifest_is_not_there(tmp_path: Path) -> None:
    registered(str(tmp_path))
    (tmp_path / "shop_model" / "1.0.0" / "manifest.json").unlink()

    assert ModelRegistry(str(tmp_path)).versions("shop_model") == []
    with pytest.raises(ModelError, match=r"shop_model 1\.0\.0: no manifest\.json"):
        ModelRegistry(str(tmp_path)).load("shop_model", "1.0.0")


def test_of_two_writers_of_one_version_one_wins_and_its_files_are_whole(tmp_path: Path) -> None:
    outcomes: list[str] = []
    barrier = threading.Barrier(4)

    def write(weight: float) -> None:
        barrier.wait()
        try:
            registered(str(tmp_path), weight=weight)
            outcomes.append("in")
        except ModelError:
            outcomes.append("refused")

    writers = [threading.Thread(target=write, args=(float(weight),)) for weight in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()

    assert sorted(outcomes) == ["in", "refused", "refused", "refused"]
    ModelRegistry(str(tmp_path)).load("shop_model", "1.0.0")
    assert [entry.name for entry in (tmp_path / "shop_model").iterdir()] == ["1.0.0"]


@pytest.mark.parametrize("change", ["flipped", "shorter", "gone"])
def test_a_file_that_is_not_as_it_was_registered_is_refused_by_name(tmp_path: Path, change: str) -> None:
    registered(str(tmp_path))
    path = tmp_path / "shop_model" / "1.0.0" / "model.onnx"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    if change == "gone":
        path.unlink()
    else:
        path.write_bytes(content if change == "flipped" else content[:-1])

    with pytest.raises(ModelError, match=r"model shop_model 1\.0\.0: .*model\.onnx.* Restore the file or register"):
        ModelRegistry(str(tmp_path)).load("shop_model", "1.0.0")


def test_a_manifest_in_another_versions_folder_is_refused(tmp_path: Path) -> None:
    registered(str(tmp_path))
    (tmp_path / "shop_model" / "1.0.0").rename(tmp_path / "shop_model" / "1.0.1")

    with pytest.raises(ModelError, match=r"is the manifest of shop_model 1\.0\.0"):
        ModelRegistry(str(tmp_path)).load("shop_model", "1.0.1")


@pytest.mark.parametrize("name", ["../model.bin", "/etc/passwd", "weights/part.bin", "..", "manifest.json", "a\\b", ""])
def test_a_manifest_lists_plain_file_names_only(name: str) -> None:
    with pytest.raises(ModelError, match="no plain file name"):
        Manifest.of(plan(), "1.0.0", {**files(), name: b"x"})


@pytest.mark.parametrize("name", ["../shop_model", "", ".hidden"])
def test_a_models_name_leads_nowhere_else(tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelError, match="is no model's name"):
        ModelRegistry(str(tmp_path)).load(name, "1.0.0")


@pytest.mark.parametrize("version", ["1.0", "v1.0.0", "01.0.0", "1.0.0/..", "../1.0.0", "1.0.0-", ""])
def test_a_version_is_three_numbers(tmp_path: Path, version: str) -> None:
    with pytest.raises(ValueError, match=r"MAJOR\.MINOR\.PATCH"):
        parse_version(version)
    with pytest.raises(ModelError, match=r"MAJOR\.MINOR\.PATCH"):
        ModelRegistry(str(tmp_path)).load("shop_model", version)


def test_files_beyond_the_manifest_are_refused(tmp_path: Path) -> None:
    manifest = Manifest.of(plan(), "1.0.0", files())

    with pytest.raises(ModelError, match=r"'extra\.bin' is not in the manifest"):
        ModelRegistry(str(tmp_path)).register(manifest, {**files(), "extra.bin": b"x"})
    with pytest.raises(ModelError, match=r"'profile\.json' is in the manifest but was not given"):
        ModelRegistry(str(tmp_path)).register(manifest, {"model.onnx": files()["model.onnx"]})


def test_weights_in_a_listed_file_come_with_the_model(tmp_path: Path) -> None:
    proto, weights = external("weights.bin")
    content = {"model.onnx": proto.SerializeToString(), "weights.bin": weights}
    ModelRegistry(str(tmp_path)).register(Manifest.of(plan(), "1.0.0", content), content)

    assert ModelRegistry(str(tmp_path)).load("shop_model", "1.0.0").external == {"weights.bin": weights}


@pytest.mark.parametrize("location", ["weights.bin", "../../secret", "/etc/hostname", "model.onnx"])
def test_weights_in_a_file_that_is_not_listed_are_refused(tmp_path: Path, location: str) -> None:
    proto, _ = external(location)
    content = {"model.onnx": proto.SerializeToString()}

    with pytest.raises(ModelError, match=f"reads weights from '{location}', which the manifest does not list"):
        ModelRegistry(str(tmp_path)).register(Manifest.of(plan(), "1.0.0", content), content)


def test_weights_are_also_found_in_the_branches_of_a_model() -> None:
    tensor, _ = external("hidden.bin")
    branch = helper.make_graph(
        [helper.make_node("Constant", [], ["c"], value=tensor.graph.initializer[0])], "branch", [], []
    )
    proto = linear()
    proto.graph.node.append(helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch))

    assert external_files(proto.SerializeToString()) == {"hidden.bin"}


@pytest.mark.parametrize("content", [b"not a model", b"\x3a\xff\xff\xff\xff\x0f", b"\xff" * 20])
def test_bytes_that_are_no_model_are_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(ModelError, match=r"model\.onnx is not an ONNX model"):
        ModelRegistry(str(tmp_path)).register(
            Manifest.of(plan(), "1.0.0", {"model.onnx": content}), {"model.onnx": content}
        )


def test_every_way_to_a_tensor_that_onnx_knows_is_walked() -> None:
    messages = {
        "Model": onnx.ModelProto,
        "Training": onnx.TrainingInfoProto,
        "Function": onnx.FunctionProto,
        "Graph": onnx.GraphProto,
        "Node": onnx.NodeProto,
        "Attribute": onnx.AttributeProto,
        "SparseTensor": onnx.SparseTensorProto,
        "Tensor": onnx.TensorProto,
    }
    ours = {proto.DESCRIPTOR.name: name for name, proto in messages.items()}
    for name, proto in messages.items():
        ways = {
            field.number: ours[field.message_type.name]
            for field in proto.DESCRIPTOR.fields
            if field.message_type is not None and field.message_type.name in ours
        }
        if name == "Tensor":
            ways[onnx.TensorProto.EXTERNAL_DATA_FIELD_NUMBER] = "External"
        assert walked[name] == ways, name
