"""Cutting a picture into tiles that together equal the whole, and padding it to the stride."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tile:
    """A square of the picture, `inner`, and the part around it that it depends on, `outer`.

    Both are (top, bottom, left, right) in pixels of the padded picture.
    """

    inner: tuple[int, int, int, int]
    outer: tuple[int, int, int, int]

    def cut(self, image: Tensor) -> Tensor:
        """Return the outer part of (N, C, H, W)."""
        top, bottom, left, right = self.outer
        return image[..., top:bottom, left:right]

    def crop(self, x: Tensor, stride: int = 1) -> Tensor:
        """Return the inner part of what was computed of the outer one, at 1/stride resolution."""
        top, bottom, left, right = (edge // stride for edge in self.inner)
        above, before = self.outer[0] // stride, self.outer[2] // stride
        return x[..., top - above : bottom - above, left - before : right - before]


def tiles(height: int, width: int, side: int, margin: int) -> Iterator[Tile]:
    """Yield the tiles of a picture, row by row.

    Args:
        height, width: of the padded picture.
        side: of the inner squares; like `margin` a multiple of the network's stride.
        margin: how far an output pixel looks.
    """
    for top in range(0, height, side):
        for left in range(0, width, side):
            bottom, right = min(top + side, height), min(left + side, width)
            outer = (
                max(0, top - margin),
                min(height, bottom + margin),
                max(0, left - margin),
                min(width, right + margin),
            )
            yield Tile((top, bottom, left, right), outer)


def pad_to_stride(image: Tensor, stride: int, least: int) -> Tensor:
    """Extend (N, C, H, W) to the right and below by reflection, to multiples of `stride`.

    Reflects as often as it must, so that even a single pixel reaches `least`.
    """
    for dim in (2, 3):
        size = image.shape[dim]
        padded = max(least, -(-size // stride) * stride)
        if padded != size:
            image = image.index_select(dim, _reflection(size, padded, image.device))
    return image


def coverage(true: tuple[int, int], inner: tuple[int, int, int, int], stride: int) -> Tensor:
    """Return the share of each stride×stride cell of a tile that lies in the true region.

    Args:
        true: height and width before padding.
        inner: the tile (top, bottom, left, right).
        stride: of the cells.

    Returns:
        (1, 1, h, w) float32 in [0, 1].
    """
    spans = ((true[0], *inner[:2]), (true[1], *inner[2:]))
    rows, columns = (
        ((size - torch.arange(start, stop, stride)).clamp(0, stride) / stride)
        for size, start, stop in spans
    )
    return (rows[:, None] * columns)[None, None]


def _reflection(size: int, padded: int, device: torch.device) -> Tensor:
    if size == 1:
        return torch.zeros(padded, dtype=torch.long, device=device)
    period = 2 * (size - 1)
    index = torch.arange(padded, device=device) % period
    return torch.where(index < size, index, period - index)
