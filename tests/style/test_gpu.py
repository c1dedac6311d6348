"""What only a CUDA device can show: the same pictures as the CPU's, in every precision."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from normapps.models.folder import load_model
from normapps.models.vgg import Vgg19
from normapps.style.options import TrainOptions
from normapps.style.stylizer import Stylizer
from normapps.style.training import train

pytestmark = pytest.mark.gpu
DEVICE = "cuda"


def tensor(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255


def paint(
    pixels: np.ndarray, painting: np.ndarray, device: str = DEVICE, dtype: str = "float32"
) -> Tensor:
    stylizer = Stylizer.load("adain-tiny", device=device, dtype=dtype)
    style = stylizer.style(tensor(painting))
    out = stylizer(tensor(pixels), style)
    assert out.shape == (3, *pixels.shape[:2])
    return out.cpu()


@pytest.mark.parametrize("size", [(200, 299), (1400, 1600)])
def test_a_picture_is_that_of_the_cpu(photos: dict[str, np.ndarray], size: tuple[int, int]) -> None:
    photo = np.array(Image.fromarray(photos["china"]).resize(size[::-1]))
    want = paint(photo, photos["coffee"], device="cpu")
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        got = paint(photo, photos["coffee"])
    assert want.std() > 0.05
    assert (got - want).abs().max() < 1e-3


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_lower_precision_cannot_be_seen(photos: dict[str, np.ndarray], dtype: str) -> None:
    want = paint(photos["rocket"], photos["coffee"], device="cpu")
    difference = (paint(photos["rocket"], photos["coffee"], dtype=dtype).float() - want).abs()
    assert difference.mean() < {"float32": 0.001, "float16": 0.002, "bfloat16": 0.01}[dtype]
    assert difference.max() < {"float32": 0.02, "float16": 0.04, "bfloat16": 0.2}[dtype]


@pytest.mark.parametrize("compile", [False, True])
def test_a_replayed_picture_is_that_of_the_first_call(
    photos: dict[str, np.ndarray], compile: bool
) -> None:
    stylizer = Stylizer.load("adain-tiny", device=DEVICE, dtype="float32", compile=compile)
    style = stylizer.style(tensor(photos["coffee"]))
    shown = [tensor(photos[name][:200, :304]).to(DEVICE) for name in ("china", "rocket")]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        got = [[stylizer(x, style) for x in shown] for _ in range(3)]
    first, *later = got
    assert (first[0] - first[1]).abs().max() > 0.1
    for again in later:
        for one, other in zip(first, again, strict=True):
            assert (one - other).abs().max() < 1e-3


@pytest.mark.parametrize("method", ["adain", "cholesky"])
def test_a_picture_on_the_device_is_painted_without_waiting(
    photos: dict[str, np.ndarray], method: str
) -> None:
    stylizer = Stylizer.load("adain-tiny", device=DEVICE)
    style = stylizer.style(tensor(photos["coffee"]))
    photo = tensor(photos["china"][:200, :304]).to(DEVICE)
    for _ in range(3):
        stylizer(photo, style, method=method)
    torch.cuda.set_sync_debug_mode("error")
    try:
        stylizer(photo, style, method=method)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_style_measured_on_the_gpu_serves_the_cpu(photos: dict[str, np.ndarray]) -> None:
    here, there = (Stylizer.load("adain-tiny", device=device) for device in (DEVICE, "cpu"))
    one, other = (stylizer.style(tensor(photos["coffee"])) for stylizer in (here, there))
    for a, b in zip(one.levels, other.levels, strict=True):
        assert a.mean.device.type == "cpu"
        assert torch.allclose(a.mean, b.mean, atol=1e-2 * b.mean.abs().max().item())
        assert torch.allclose(a.std(), b.std(), atol=1e-2 * b.std().max().item())
    assert there(tensor(photos["chelsea"]), one).shape == (3, 300, 451)


def test_training_takes_a_step_and_goes_on(
    tmp_path: Path, photos: dict[str, np.ndarray], random_vgg: Vgg19
) -> None:
    for kind, names in (("contents", ("china", "rocket")), ("styles", ("coffee", "flower"))):
        (tmp_path / kind).mkdir()
        for name in names:
            Image.fromarray(photos[name]).save(tmp_path / kind / f"{name}.png")
    state = {}
    for i, conv in enumerate(random_vgg.convs.values()):
        state |= {f"features.{i}.{key}": value for key, value in conv.state_dict().items()}
    save_file(state, tmp_path / "vgg.safetensors")
    options = TrainOptions(
        contents=(str(tmp_path / "contents"),), styles=(str(tmp_path / "styles"),), hold_out=0,
        vgg=str(tmp_path / "vgg.safetensors"), steps=2, batch_size=2, crop=64, width=8, deep=8,
        hidden=4, device=DEVICE, stop_after=1,
    )  # fmt: skip
    for steps in (1, 2):
        folder = train(options, tmp_path / "run")
        lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
        assert len(lines) == steps
        assert np.isfinite(json.loads(lines[-1])["total"])
    weights = load_model(folder).state_dict().values()
    assert all(torch.isfinite(weight).all() for weight in weights)
