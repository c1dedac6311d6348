"""Random views of pictures: the strong augmentation that CoTTA's and RoTTA's teachers are asked by.

The transforms of both papers' code (Wang et al. 2022; Yuan et al. 2023): brightness, contrast,
saturation, hue and gamma in random order, rotation, shift and scale about edges that go on, blur,
mirror, noise. They differ in that every picture of a batch has draws of its own (there, the whole
batch has one), and that all draws come from the generator given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import InputError

Scale = tuple[Sequence[float], Sequence[float]]

# half the widths of the ranges at strength 1
_JITTER = {"brightness": 0.4, "contrast": 0.3, "saturation": 0.5, "hue": 0.06, "gamma": 0.3}
_DEGREES, _SHIFT, _ZOOM, _BLUR, _NOISE = 15.0, 0.125, 0.1, 0.5, 0.005


def random_view(
    x: Tensor, generator: torch.Generator, *, scale: Scale | None = None, strength: float = 1.0
) -> Tensor:
    """Return another view of each picture of a batch, in the same shape, scale and dtype.

    Args:
        x: (N, C, H, W) pictures as the network takes them.
        generator: where all draws come from; on the CPU, so that every device sees the same.
        scale: mean and std of the preprocessing, by channel, which bring x back to [0, 1]; None
            takes the batch's least and greatest value for 0 and 1.
        strength: 1 as published, 0.5 their `soft` (nearly), 0 returns x itself.

    Raises:
        InputError: x is no batch of pictures, or has other channels than the scale.
    """
    if x.dim() != 4:
        raise InputError(
            f"a batch {tuple(x.shape)} is no pictures (N, C, H, W), of which other views could be"
            " made: set strength=0"
        )
    if strength == 0:
        return x
    mean, std = _scale(x, scale)
    images = (x.float() * std + mean).clamp(0, 1)
    images = _lit(images, generator, strength)
    images = _blurred(_moved(images, generator, strength), generator, strength)
    noise = torch.randn(images.shape, generator=generator).to(images.device)
    images = (images + strength * _NOISE * noise).clamp(0, 1)
    return ((images - mean) / std).to(x.dtype)


def scale_of(
    model: nn.Module, mean: Sequence[float] | None = None, std: Sequence[float] | None = None
) -> Scale | None:
    """Return the mean and std of a network's preprocessing, for `random_view`.

    What is given, or what the model says of itself in `pretrained_cfg`, as timm's do; else None.

    Raises:
        InputError: only one of both is given.
    """
    if (mean is None) != (std is None):
        raise InputError("give mean and std, or neither")
    if mean is not None and std is not None:
        return tuple(mean), tuple(std)
    said = getattr(model, "pretrained_cfg", None)
    if isinstance(said, Mapping) and said.get("mean") and said.get("std"):
        return tuple(said["mean"]), tuple(said["std"])
    return None


def _scale(x: Tensor, scale: Scale | None) -> tuple[Tensor, Tensor]:
    if scale is None:
        low, high = x.detach().float().aminmax()
        span = high - low
        width = torch.where(span > 0, span, 1).reciprocal()
        return (-low * width).view(1, 1, 1, 1), width.view(1, 1, 1, 1)
    mean, std = (torch.tensor(each, dtype=torch.float32, device=x.device) for each in scale)
    if len({x.shape[1], len(mean), len(std)}) != 1:
        raise InputError(
            f"pictures of {x.shape[1]} channels, and a mean of {len(mean)} and a std of {len(std)}:"
            " give one number a channel"
        )
    return mean.view(1, -1, 1, 1), std.view(1, -1, 1, 1)


def _draw(count: int, generator: torch.Generator, like: Tensor) -> Tensor:
    """(count,) uniform in [−1, 1]."""
    return (2 * torch.rand(count, generator=generator) - 1).to(like)


def _lit(images: Tensor, generator: torch.Generator, strength: float) -> Tensor:
    """Jitter colours in an order drawn for the batch; hue and saturation need 3 channels."""
    names = list(_JITTER)
    for number in torch.randperm(len(names), generator=generator).tolist():
        name = names[number]
        draw = strength * _JITTER[name] * _draw(len(images), generator, images)
        if images.shape[1] == 3 or name in ("brightness", "contrast", "gamma"):
            images = _jitter(name)(images, draw).clamp(0, 1)
    return images


def _jitter(name: str) -> Callable[[Tensor, Tensor], Tensor]:
    from kornia import enhance

    def contrast(images: Tensor, draw: Tensor) -> Tensor:
        middle = images.mean((1, 2, 3), keepdim=True)
        return middle + (1 + draw.view(-1, 1, 1, 1)) * (images - middle)

    jitters: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "brightness": lambda images, draw: images * (1 + draw.view(-1, 1, 1, 1)),
        "contrast": contrast,
        "saturation": lambda images, draw: enhance.adjust_saturation(images, 1 + draw),
        "hue": lambda images, draw: enhance.adjust_hue(images, 2 * math.pi * draw),
        "gamma": lambda images, draw: enhance.adjust_gamma(images, 1 + draw),
    }
    return jitters[name]


def _moved(images: Tensor, generator: torch.Generator, strength: float) -> Tensor:
    """Rotate, scale, shift and mirror in one resampling, which runs from −1 to 1 a side."""
    count, ratio = len(images), images.shape[3] / images.shape[2]
    angle = math.radians(_DEGREES) * strength * _draw(count, generator, images)
    zoom = 1 + _ZOOM * strength * _draw(count, generator, images)
    mirror = torch.where(_draw(count, generator, images) < 0, -1.0, 1.0)
    theta = images.new_zeros(count, 2, 3)
    theta[:, 0, 0] = mirror * angle.cos() / zoom
    theta[:, 0, 1] = -angle.sin() / zoom / ratio
    theta[:, 1, 0] = mirror * angle.sin() / zoom * ratio
    theta[:, 1, 1] = angle.cos() / zoom
    for axis in (0, 1):
        theta[:, axis, 2] = 2 * _SHIFT * strength * _draw(count, generator, images)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def _blurred(images: Tensor, generator: torch.Generator, strength: float) -> Tensor:
    """Blur by 5 taps a side of a Gaussian with σ in (0, 0.5] pixels."""
    from kornia.filters import gaussian_blur2d

    share = (_draw(len(images), generator, images) + 1) / 2
    sigma = (0.001 + (strength * _BLUR - 0.001) * share).clamp_min(0.001)
    blurred: Tensor = gaussian_blur2d(images, (5, 5), sigma[:, None].repeat(1, 2), "replicate")
    return blurred
