"""CIFAR's networks: published sizes and weights, forward passes against plain functions."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from normapps.errors import InputError
from normapps.models import cifar
from normapps.models.folder import load_model, save_model
from normapps.models.load import open_model

FACTORIES = ("vgg16_bn", "vgg19_bn", "resnet20", "resnet56", "densenet40")


@pytest.mark.parametrize(
    ("name", "parameters", "norms"),
    [
        # 20.04 M (Liu et al. 2017, table 1); 0.27 and 0.85 M (He et al. 2016, table 6);
        # 1.0 M (Huang et al. 2017, table 2), which is 1,019,722 in the authors' code
        ("vgg19_bn", 20_035_018, 16),
        ("vgg16_bn", 14_724_042, 13),
        ("resnet20", 269_722, 19),
        ("resnet56", 853_018, 55),
        ("densenet40", 1_019_722, 39),
    ],
)
def test_it_has_the_published_number_of_parameters(name: str, parameters: int, norms: int) -> None:
    model = getattr(cifar, name)()
    assert sum(each.numel() for each in model.parameters()) == parameters
    assert sum(isinstance(each, nn.BatchNorm2d) for each in model.modules()) == norms


@pytest.mark.parametrize("name", FACTORIES)
def test_it_opens_as_a_factory_with_its_preprocessing(name: str) -> None:
    opened = open_model(f"normapps.models.cifar:{name}", num_classes=7)
    with torch.no_grad():
        assert opened.model(torch.zeros(2, 3, 32, 32)).shape == (2, 7)
    chosen = opened.preprocessing
    assert (chosen.size, chosen.resize, chosen.mean[0]) == ((32, 32), (32, 32), 0.485)


@pytest.mark.parametrize(
    ("make", "builder", "arguments"),
    [
        (cifar.cifar_vgg, "cifar-vgg", {"depth": 16, "num_classes": 3}),
        (cifar.cifar_resnet, "cifar-resnet", {"depth": 8, "shortcut": "B"}),
        (cifar.cifar_densenet, "cifar-densenet", {"depth": 7, "growth": 5, "num_classes": 2}),
    ],
)
def test_a_model_folder_of_it_opens_again(
    tmp_path: Path, make: Callable[..., nn.Module], builder: str, arguments: dict[str, int]
) -> None:
    model = _random(make(**arguments)).float()
    save_model(tmp_path / "m", model, builder=builder, arguments=arguments)
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(load_model(tmp_path / "m")(x), model(x))
    assert open_model(tmp_path / "m").preprocessing.size == (32, 32)


@pytest.mark.parametrize("shortcut", ["A", "B"])
@pytest.mark.parametrize("side", [32, 17])
def test_resnet_computes_what_the_paper_says(shortcut: str, side: int) -> None:
    model = _random(cifar.cifar_resnet(14, 5, shortcut))
    x = torch.randn(2, 3, side, side, dtype=torch.float64)
    state = model.state_dict()
    y = F.relu(_norm(F.conv2d(x, state["conv1.weight"], padding=1), state, "bn1"))
    for stage in (1, 2, 3):
        for index in (0, 1):
            stride = 2 if stage > 1 and index == 0 else 1
            y = _basic_block(y, state, f"layer{stage}.{index}", stride)
    wanted = y.mean((2, 3)) @ state["linear.weight"].T + state["linear.bias"]
    torch.testing.assert_close(model(x), wanted, rtol=1e-10, atol=1e-10)


def test_densenet_computes_what_the_paper_says() -> None:
    model = _random(cifar.cifar_densenet(10, 4, 5))
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    state = model.state_dict()
    y = F.conv2d(x, state["features.0.weight"], padding=1)
    for place in (1, 2, None, 4, 5, None, 7, 8):
        if place is None:
            continue
        if place in (4, 7):
            name = f"features.{place - 1}"
            y = F.conv2d(F.relu(_norm(y, state, f"{name}.0")), state[f"{name}.2.weight"])
            y = (y[..., ::2, ::2] + y[..., 1::2, ::2] + y[..., ::2, 1::2] + y[..., 1::2, 1::2]) / 4
        inner = F.relu(_norm(y, state, f"features.{place}.norm"))
        y = torch.cat((y, F.conv2d(inner, state[f"features.{place}.conv.weight"], padding=1)), 1)
    y = F.relu(_norm(y, state, "features.9")).mean((2, 3))
    wanted = y @ state["classifier.weight"].T + state["classifier.bias"]
    torch.testing.assert_close(model(x), wanted, rtol=1e-10, atol=1e-10)


def test_vgg_halves_four_times_and_begins_with_scales_of_one_half() -> None:
    model = cifar.vgg19_bn()
    with torch.no_grad():
        assert model.features(torch.zeros(1, 3, 32, 32)).shape == (1, 512, 2, 2)
    norms = [each for each in model.modules() if isinstance(each, nn.BatchNorm2d)]
    assert all((each.weight == 0.5).all() for each in norms)
    assert sum(each.num_features for each in norms) == 5504  # as in the paper's code


@pytest.mark.parametrize(
    ("make", "wrong", "line"),
    [
        (cifar.cifar_vgg, {"depth": 11}, "depth 11: must be one of 16, 19"),
        (cifar.cifar_vgg, {"num_classes": 0}, "num_classes 0: must be at least 1"),
        (cifar.cifar_resnet, {"depth": 18}, "depth 18: must be 6n"),
        (cifar.cifar_resnet, {"shortcut": "C"}, "shortcut 'C': must be A or B"),
        (cifar.cifar_densenet, {"depth": 41}, "depth 41: must be 3n"),
        (cifar.cifar_densenet, {"growth": 0}, "growth 0: must be at least 1"),
    ],
)
def test_arguments_that_make_no_network_are_named(
    make: Callable[..., nn.Module], wrong: dict[str, int], line: str
) -> None:
    with pytest.raises(InputError, match=line):
        make(**wrong)


@pytest.mark.shared
@pytest.mark.parametrize(("name", "file"), [("resnet20", "12fca82f"), ("resnet56", "4bfd9763")])
def test_the_published_weights_fit_and_recognize(shared_dir: Path, name: str, file: str) -> None:
    place = shared_dir / "weights" / "cifar_resnets" / f"{name}-{file}.th"
    opened = open_model(f"normapps.models.cifar:{name}", checkpoint=place)
    images, labels = _some_pictures(shared_dir / "data" / "cifar10_jpeg.tar.xz", 20)
    assert len(images) == 200
    with torch.no_grad():
        found = opened.model(opened.preprocessing.normalize(images)).argmax(1)
    # the pictures have lost detail in JPEG, and with it these weights ten points
    assert (found == labels).double().mean() > 0.7


def _some_pictures(place: Path, each: int) -> tuple[Tensor, Tensor]:
    """The first `each` pictures of every class of the test set, as bytes."""
    found, classes = [], []
    with tarfile.open(place, "r|xz") as archive:
        for member in archive:
            part, *rest = member.name.split("/")
            if part != "test" and found:
                break
            if part == "test" and member.isfile() and classes.count(rest[0]) < each:
                data = archive.extractfile(member)
                assert data is not None
                found.append(np.asarray(Image.open(io.BytesIO(data.read()))))
                classes.append(rest[0])
    names = sorted(set(classes))
    images = torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2)
    return images, torch.tensor([names.index(name) for name in classes])


def _random(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for name, value in model.double().state_dict().items():
        if value.is_floating_point():
            drawn = torch.randn(value.shape, generator=generator, dtype=value.dtype)
            value.copy_(drawn.abs() + 0.5 if name.endswith("running_var") else 0.3 * drawn)
    return model.eval()


def _norm(x: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    parts = ("running_mean", "running_var", "weight", "bias")
    mean, var, gamma, beta = (state[f"{name}.{part}"][:, None, None] for part in parts)
    return (x - mean) / (var + 1e-5).sqrt() * gamma + beta


def _basic_block(x: Tensor, state: dict[str, Tensor], name: str, stride: int) -> Tensor:
    y = F.conv2d(x, state[f"{name}.conv1.weight"], stride=stride, padding=1)
    y = F.conv2d(F.relu(_norm(y, state, f"{name}.bn1")), state[f"{name}.conv2.weight"], padding=1)
    past = x
    if f"{name}.shortcut.0.weight" in state:
        past = F.conv2d(x, state[f"{name}.shortcut.0.weight"], stride=stride)
        past = _norm(past, state, f"{name}.shortcut.1")
    elif stride > 1:
        past = torch.zeros_like(y)
        before = (y.shape[1] - x.shape[1]) // 2
        past[:, before : before + x.shape[1]] = x[:, :, ::2, ::2]
    return F.relu(_norm(y, state, f"{name}.bn2") + past)
