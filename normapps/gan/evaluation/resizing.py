"""Bringing pictures to the size that an extractor takes; a score is of its resizer, too.

Parmar et al. 2022 (clean-fid): with a filter that aliases, or rounding to bytes in between, the
same pictures score several points apart.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ...errors import unknown
from .options import RESIZERS


def resize(x: Tensor, size: tuple[int, int], resizer: str) -> Tensor:
    """Resize pictures, their values not rounded and not cut off; none that have the size already.

    Args:
        x: (N, C, H, W) uint8 or float.
        size: height and width, pixels.
        resizer: `bicubic` is Pillow's, antialiased, on float channels, as clean-fid resizes;
            `tf1` is the bilinear one of TensorFlow 1, whose pixels have no extent and which
            aliases: as every FID before 2021, and torch-fidelity still, resizes.

    Returns:
        (N, C, *size) float32 of the range of x; bicubic overshoots it at edges.

    Raises:
        InputError: another resizer.
    """
    if resizer not in RESIZERS:
        raise unknown("resizer", resizer, RESIZERS)
    x = x.float()
    if tuple(x.shape[2:]) == tuple(size):
        return x
    if resizer == "tf1":
        return _between(_between(x, size[1], 3), size[0], 2)
    return F.interpolate(x, size, mode="bicubic", align_corners=False, antialias=True)


def describe(resizer: str, given: tuple[int, int], size: tuple[int, int]) -> str:
    """Say in words what `resize` does to pictures of a size."""
    if tuple(given) == tuple(size):
        return f"none, {size[0]}×{size[1]}"
    words = {"bicubic": "bicubic, antialiased (as clean-fid)", "tf1": "bilinear of TensorFlow 1"}
    return f"{words[resizer]}, {given[0]}×{given[1]} to {size[0]}×{size[1]}"


def _between(x: Tensor, length: int, axis: int) -> Tensor:
    """Interpolate linearly along an axis, sample i at i·(old length)/(new length)."""
    old = x.shape[axis]
    # float32 as TensorFlow computes: places of other roundings are other pixels
    places = torch.arange(length, dtype=torch.float32, device=x.device) * (old / length)
    low = places.long()
    share = (places - low).reshape([-1 if each == axis else 1 for each in range(4)])
    before = x.index_select(axis, low)
    after = x.index_select(axis, (low + 1).clamp_max(old - 1))
    return before + (after - before) * share
