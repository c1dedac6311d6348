"""The small network for digits: shapes, size, how it is opened, that it learns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from normapps.errors import InputError
from normapps.models.folder import load_model, save_model
from normapps.models.load import open_model
from normapps.models.small import small_cnn


@pytest.mark.parametrize(("channels", "side"), [(1, 8), (3, 28), (1, 33)])
def test_any_picture_of_eight_pixels_or_more_fits(channels: int, side: int) -> None:
    model = small_cnn(7, channels, width=4).eval()
    assert model(torch.zeros(2, channels, side, side)).shape == (2, 7)


def test_it_has_the_size_of_the_papers_networks_and_a_norm_a_convolution() -> None:
    model = small_cnn()
    kinds = [type(each) for each in model.modules()]
    assert kinds.count(nn.Conv2d) == kinds.count(nn.BatchNorm2d) == 5
    assert kinds.count(nn.MaxPool2d) == 2
    assert 100_000 < sum(each.numel() for each in model.parameters()) < 500_000


def test_it_opens_as_a_factory_with_its_preprocessing() -> None:
    opened = open_model("normapps.models.small:small_cnn", num_classes=4)
    assert opened.model(torch.zeros(1, 3, 28, 28)).shape == (1, 4)
    chosen = opened.preprocessing
    assert (chosen.size, chosen.resize, chosen.channels) == ((28, 28), (28, 28), 3)
    black = chosen.normalize(torch.zeros(3, 1, 1, dtype=torch.uint8))
    assert black.flatten().tolist() == [-1, -1, -1]


@pytest.mark.parametrize("channels", [1, 2])
def test_a_model_folder_of_it_opens_again(tmp_path: Path, channels: int) -> None:
    arguments = {"channels": channels, "width": 4, "size": 16}
    model = small_cnn(**arguments).eval()
    save_model(tmp_path / "m", model, builder="small-cnn", arguments=arguments)
    x = torch.randn(2, channels, 16, 16)
    assert torch.equal(load_model(tmp_path / "m")(x), model(x))
    chosen = open_model(tmp_path / "m").preprocessing
    assert (chosen.channels, chosen.size) == (channels, (16, 16))


@pytest.mark.parametrize("wrong", [{"num_classes": 0}, {"channels": 0}, {"size": 7}, {"width": 0}])
def test_numbers_out_of_range_are_named(wrong: dict[str, int]) -> None:
    with pytest.raises(InputError, match=f"{next(iter(wrong))} .: must be at least"):
        small_cnn(**wrong)


def test_it_learns_digits() -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.from_numpy(digits.images.astype(np.float32))[:, None] / 8 - 1
    labels = torch.from_numpy(digits.target)
    torch.manual_seed(0)
    model = small_cnn(channels=1, width=8)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9)
    for step in range(60):
        rows = torch.randint(1200, (64,), generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        F.cross_entropy(model(images[rows]), labels[rows]).backward()
        optimizer.step()
    with torch.no_grad():
        correct = model.eval()(images[1200:]).argmax(1) == labels[1200:]
    assert correct.float().mean() > 0.85


def test_its_stages_have_the_channels_and_sizes_that_it_tells() -> None:
    model = small_cnn(width=4)
    x = torch.zeros(2, 3, 16, 16)
    seen = {}
    for each in model.feature_info:
        stage = model.get_submodule(str(each["module"]))
        stage.register_forward_hook(lambda m, _, y, name=each["module"]: seen.update({name: y}))
    model(x)
    told = {
        each["module"]: (each["num_chs"], 16 // int(each["reduction"]))
        for each in model.feature_info
    }
    assert {name: (y.shape[1], y.shape[2]) for name, y in seen.items()} == told
