"""What a stylized picture is judged by, in training and in evaluation.

The distances follow AdaIN (Huang & Belongie 2017, eq. 12-13) but are relative to the size of what
they compare with, so that every layer of VGG and every style weighs the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..norm import INSTANCE, Moments, standardize
from .detail import fine_detail, grey_of

LAYERS = ("relu1_1", "relu2_1", "relu3_1", "relu4_1")
"""Layers of VGG-19 in which style is compared; the last is that of the content."""


def content_distance(output: Tensor, content: Tensor) -> Tensor:
    """Mean squared distance of features (N, C, H, W) standardized a map; a scalar."""
    own, wanted = (standardize(x.float(), Moments.of(x, INSTANCE)) for x in (output, content))
    return F.mse_loss(own, wanted)


def style_distance(output: Sequence[Tensor], style: Sequence[Tensor]) -> Tensor:
    """Relative squared distance of means and deviations, averaged over layers: (N,).

    Args:
        output, style: features (N, C, H, W) a layer; spatial sizes may differ.
    """
    return torch.stack([_moment_distance(o, s) for o, s in zip(output, style, strict=True)]).mean(0)


def gram_distance(output: Sequence[Tensor], style: Sequence[Tensor]) -> Tensor:
    """Relative Frobenius distance of Gram matrices, averaged over layers: (N,)."""
    distances = []
    for o, s in zip(output, style, strict=True):
        want = gram(s)
        distances.append((gram(o) - want).norm(dim=(1, 2)) / want.norm(dim=(1, 2)))
    return torch.stack(distances).mean(0)


def structure_distance(output: Tensor, content: Tensor) -> Tensor:
    """Return 1 - SSIM of the greys (Wang et al. 2004, as `quality.ssim`), a scalar.

    VGG judges reduced pictures; this one sees hatching in flat regions and halos at hard edges.

    Args:
        output, content: (N, 3, H, W) in [0, 1], at least 11 pixels a side.
    """
    x, y = (grey_of(image.float()) for image in (output, content))
    blurred = _blur(torch.cat([x, y, x * x, y * y, x * y]))
    mean_x, mean_y, xx, yy, xy = blurred.chunk(5)
    light = (2 * mean_x * mean_y + 1e-4) / (mean_x.square() + mean_y.square() + 1e-4)
    spread = xx - mean_x.square() + yy - mean_y.square()
    return 1 - (light * (2 * (xy - mean_x * mean_y) + 9e-4) / (spread + 9e-4)).mean()


def gram(features: Tensor) -> Tensor:
    """Return E[xxᵀ] over positions of (N, C, H, W) features: (N, C, C) float32.

    The product is taken in the features' dtype.
    """
    x = features.flatten(2)
    return (x @ x.transpose(1, 2)).float() / x.shape[2]


def lattice(image: Tensor, period: int = 4) -> Tensor:
    """Share of fine detail that is explained by the pixel's position modulo `period`: (N,).

    Grey minus its 5×5 mean; the standard deviation of the period² cell means over that of the
    picture. Photographs have about .03; pixel-shuffle networks leave more, seen as a fine grid.

    Args:
        image: (N, 3, H, W) in [0, 1], at least 5 pixels a side.
    """
    grey = grey_of(image.float())
    fine = fine_detail(grey)
    h, w = (size - size % period for size in fine.shape[-2:])
    cells = F.pixel_unshuffle(fine[..., :h, :w], period).mean((2, 3))
    detail = fine.flatten(1).std(1, correction=0)
    return cells.std(1, correction=0) / (detail + 1e-4)


def _blur(maps: Tensor) -> Tensor:
    """Gaussian of 11x11 pixels and sigma 1.5 over (N, 1, H, W), where the window lies inside."""
    steps = torch.arange(-5.0, 6.0, device=maps.device)
    window = torch.exp(-steps.square() / (2 * 1.5**2))
    window = (window / window.sum()).view(1, 1, 1, 11)
    return F.conv2d(F.conv2d(maps, window), window.transpose(2, 3))


def _moment_distance(output: Tensor, style: Tensor) -> Tensor:
    got, want = Moments.of(output, INSTANCE), Moments.of(style, INSTANCE)
    pairs = ((got.mean, want.mean), (got.std(1e-5), want.std(1e-5)))
    distance = sum((a - b).square().sum(1) for a, b in pairs)
    size = sum(b.square().sum(1) for _, b in pairs)
    return torch.as_tensor(distance / size)
