"""Preprocessing is timm's and torchvision's own, to the bit."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

import normapps.models  # noqa: F401  (guard)
from normapps.errors import InputError
from normapps.models.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing

timm = pytest.importorskip("timm")


def timm_transform(pixels: np.ndarray, **options: Any) -> Tensor:
    transform = timm.data.create_transform(is_training=False, **options)
    result: Tensor = transform(Image.fromarray(pixels))
    return result


def ours(
    size: tuple[int, int], crop_pct: float, mode: str, interpolation: str, **more: Any
) -> Preprocessing:
    resize = tuple(int(side / crop_pct) for side in size)
    return Preprocessing(size, resize, mode, interpolation, **more)


@pytest.mark.parametrize("crop_pct", [0.875, 1.0])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("photo", ["chelsea", "coffee", "astronaut"])
def test_it_is_timms_evaluation_transform(
    photos: dict[str, np.ndarray], photo: str, interpolation: str, crop_pct: float
) -> None:
    expected = timm_transform(
        photos[photo], input_size=(3, 224, 224), interpolation=interpolation, crop_pct=crop_pct
    )
    found = ours((224, 224), crop_pct, "center", interpolation).apply(photos[photo])
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


@pytest.mark.parametrize("mode", ["center", "squash", "border"])
@pytest.mark.parametrize("size", [(160, 160), (96, 130), (130, 96)])
@pytest.mark.parametrize("upright", [False, True])
def test_every_crop_mode_is_timms(
    chelsea: np.ndarray, mode: str, size: tuple[int, int], upright: bool
) -> None:
    photo = np.ascontiguousarray(chelsea.swapaxes(0, 1)) if upright else chelsea
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
    expected = timm_transform(
        photo, input_size=(3, *size), crop_mode=mode, crop_pct=0.9, mean=mean, std=std
    )
    found = ours(size, 0.9, mode, "bilinear", mean=mean, std=std).apply(photo)
    assert torch.equal(found, expected)


@given(
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    size=st.integers(1, 40),
    crop_pct=st.sampled_from([0.5, 0.875, 0.95, 1.0]),
    mode=st.sampled_from(["center", "squash"]),
    seed=st.integers(0, 9),
)
@settings(max_examples=60)
def test_pictures_of_any_size_go_through_as_in_timm(
    height: int, width: int, size: int, crop_pct: float, mode: str, seed: int
) -> None:
    if max(height, width) > 32 * min(height, width):
        return
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    expected = timm_transform(
        pixels, input_size=(3, size, size), interpolation="bicubic", crop_pct=crop_pct,
        crop_mode=mode,
    )  # fmt: skip
    assert torch.equal(ours((size, size), crop_pct, mode, "bicubic").apply(pixels), expected)


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "vit_b_32"])
def test_it_is_torchvisions_transform_of_the_default_weights(name: str, coffee: np.ndarray) -> None:
    from torchvision.models import get_model_weights

    weights = get_model_weights(name).DEFAULT
    source = {"builder": "torchvision", "arguments": {"name": name}}
    found = Preprocessing.of(nn.Identity(), source)
    assert torch.equal(found.apply(coffee), weights.transforms()(Image.fromarray(coffee)))
    assert found.origin == f"torchvision, weights {weights.name}"


@pytest.mark.parametrize("name", ["test_resnet", "resnet10t", "efficientnet_lite0"])
def test_it_is_what_a_timm_network_expects(name: str, coffee: np.ndarray) -> None:
    model = timm.create_model(name)
    config = timm.data.resolve_model_data_config(model)
    found = Preprocessing.of(model, {"builder": "timm", "arguments": {"name": name}})
    assert torch.equal(found.apply(coffee), timm_transform(coffee, **config))
    assert found == Preprocessing.of(model)


def test_a_converted_network_expects_what_its_base_does() -> None:
    base = {"builder": "torchvision", "arguments": {"name": "resnet50"}}
    source = {"builder": "converted", "arguments": {"base": base, "steps": []}}
    assert Preprocessing.of(nn.Identity(), source) == Preprocessing.of(nn.Identity(), base)
    assert Preprocessing.of(nn.Identity(), source).resize == (232, 232)


@pytest.mark.parametrize("name", ["fcn_resnet50", "r3d_18"])
def test_a_network_of_no_known_transform_gets_the_imagenet_standard_and_says_so(name: str) -> None:
    standard = Preprocessing.of(nn.Linear(2, 2))
    assert (standard.size, standard.resize) == ((224, 224), (256, 256))
    assert (standard.mean, standard.std) == (IMAGENET_MEAN, IMAGENET_STD)
    assert "(ImageNet standard)" in standard.describe()
    source = {"builder": "torchvision", "arguments": {"name": name}}
    assert Preprocessing.of(nn.Linear(2, 2), source) == standard


def test_a_grey_network_gets_luma(chelsea: np.ndarray) -> None:
    source = {"builder": "timm", "arguments": {"name": "test_resnet", "kwargs": {"in_chans": 1}}}
    model = timm.create_model("test_resnet", in_chans=1)
    found = Preprocessing.of(model, source)
    assert (found.channels, found.mean, found.std) == (1, (0.5,), (0.5,))
    x = found.apply(chelsea)
    assert x.shape == (1, 160, 160)
    grey = np.asarray(Image.fromarray(chelsea).convert("L"))
    rgb = Preprocessing.of(timm.create_model("test_resnet")).apply(np.dstack([grey] * 3))
    assert torch.equal(x, rgb[:1])
    assert Preprocessing.of(nn.Conv2d(1, 4, 3)).mean == (pytest.approx(sum(IMAGENET_MEAN) / 3),)
    with torch.no_grad():
        assert model.eval()(x[None]).shape == (1, 1000)


def test_the_halves_make_the_whole_and_batches_normalize_alike(chelsea: np.ndarray) -> None:
    chosen = Preprocessing((20, 30), (24, 36), interpolation="bicubic")
    cut = chosen.cut(chelsea)
    assert (cut.dtype, cut.shape) == (torch.uint8, (3, 20, 30))
    assert torch.equal(chosen.normalize(torch.stack([cut, cut]))[1], chosen.apply(chelsea))


@pytest.mark.parametrize("upright", [False, True])
def test_a_very_long_picture_costs_no_more_than_its_middle(upright: bool) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 2000, 3), np.uint8)
    pixels = np.ascontiguousarray(pixels.swapaxes(0, 1)) if upright else pixels
    expected = timm_transform(pixels, input_size=(3, 224, 224), interpolation="bicubic")
    assert torch.equal(ours((224, 224), 0.875, "center", "bicubic").apply(pixels), expected)
    thread = np.zeros((1, 60_000, 3), np.uint8)  # 12 GB if it were scaled as a whole
    assert Preprocessing().apply(thread).shape == (3, 224, 224)


def test_json_gives_the_same_back() -> None:
    chosen = Preprocessing((9, 10), (11, 12), "squash", "lanczos", (0.1,), (0.2,), 1, "mine")
    values = json.loads(json.dumps(chosen.to_json()))
    assert Preprocessing.from_json(values) == chosen
    assert Preprocessing.from_json({}) == Preprocessing()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"interpolation": "bicubik"}, "unknown interpolation 'bicubik'; did you mean 'bicubic'"),
        ({"mode": "centre"}, "unknown crop mode 'centre'; did you mean 'center'"),
        ({"mean": [0.5]}, "1 means and 3 deviations do not fit 3 channels"),
        ({"std": [0.5, 0.5, 0.0]}, "must be greater than 0"),
        ({"size": [0, 3]}, "two sides from 1 each"),
        ({"size": 224}, "is no preprocessing"),
        ({"sise": [1, 1]}, "unknown preprocessing value 'sise'; did you mean 'size'"),
    ],
)
def test_values_that_cannot_be_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        Preprocessing.from_json(values)
    assert "\n" not in str(caught.value)


def test_what_is_no_picture_is_refused(chelsea: np.ndarray) -> None:
    with pytest.raises(InputError, match=r"must be \(H, W, 3\) uint8"):
        Preprocessing().apply(chelsea.astype(np.float32))
    deep = Preprocessing(mean=(0.5,) * 4, std=(0.5,) * 4, channels=4)
    with pytest.raises(InputError, match="4 input channels takes no pictures"):
        deep.apply(chelsea)


def test_it_is_said_in_a_line() -> None:
    assert Preprocessing().describe() == (
        "224×224 RGB, the centre of a picture scaled to short side 256, bilinear, "
        "mean 0.485 0.456 0.406, std 0.229 0.224 0.225 (ImageNet standard)"
    )
    border = Preprocessing((8, 9), (10, 11), "border", mean=(0.5,), std=(1.0,), channels=1)
    assert border.describe() == (
        "8×9 grey, a picture fitted into 10×11 with a border, bilinear, "
        "mean 0.5, std 1 (ImageNet standard)"
    )


def test_a_network_of_one_channel_tells_it_without_its_source() -> None:
    grey = timm.create_model("test_resnet", in_chans=1)
    assert Preprocessing.of(grey).channels == 1
    assert len(Preprocessing.of(grey).mean) == 1
