"""Cutting a picture into tiles that together equal the whole, and padding it to the stride.

Loads no torch; what computes on tensors imports it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

Values = TypeVar("Values", "Tensor", np.ndarray)


@dataclass(frozen=True)
class Tile:
    """A square of the picture, `inner`, and the part around it that it depends on, `outer`.

    Both are (top, bottom, left, right) in pixels of the padded picture.
    """

    inner: tuple[int, int, int, int]
    outer: tuple[int, int, int, int]

    def cut(self, image: Values) -> Values:
        """Return the outer part of (N, C, H, W)."""
        top, bottom, left, right = self.outer
        return image[..., top:bottom, left:right]

    def crop(self, x: Values, stride: int = 1) -> Values:
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
    import torch

    for dim in (2, 3):
        index = reflection(image.shape[dim], stride, least)
        if len(index) != image.shape[dim]:
            image = image.index_select(dim, torch.from_numpy(index).to(image.device))
    return image


class Padded:
    """A picture extended by reflection, cut tile by tile: there is never a copy of the whole.

    Args:
        image: (N, C, H, W) of any dtype.
        stride: the sides become multiples of it.
        least: and at least so long.
    """

    def __init__(self, image: Tensor, stride: int, least: int) -> None:
        self._image = image
        self._rows, self._columns = (reflection(side, stride, least) for side in image.shape[2:])

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the padded picture."""
        return len(self._rows), len(self._columns)

    def cut(self, tile: Tile) -> Tensor:
        """Return the outer part of a tile: a view where it lies inside the true picture."""
        import torch

        top, bottom, left, right = tile.outer
        height, width = self._image.shape[2:]
        if bottom <= height and right <= width:
            return tile.cut(self._image)
        rows, columns = (
            torch.from_numpy(index).to(self._image.device)
            for index in (self._rows[top:bottom], self._columns[left:right])
        )
        return self._image[:, :, rows[:, None], columns]


def reflection(size: int, stride: int, least: int) -> np.ndarray:
    """Return which of `size` rows stands at each place of the padded side: (padded,) int64."""
    padded = max(least, -(-size // stride) * stride)
    index = np.arange(padded) % max(1, 2 * (size - 1))
    return np.minimum(index, 2 * (size - 1) - index) if size > 1 else np.zeros_like(index)


def coverage(true: tuple[int, int], inner: tuple[int, int, int, int], stride: int) -> Tensor:
    """Return what `cell_shares` does as (1, 1, h, w)."""
    import torch

    return torch.from_numpy(cell_shares(true, inner, stride))[None, None]


def cell_shares(true: tuple[int, int], inner: tuple[int, int, int, int], stride: int) -> np.ndarray:
    """Return the share of each stride×stride cell of a tile that lies in the true region.

    Args:
        true: height and width before padding.
        inner: the tile (top, bottom, left, right).
        stride: of the cells.

    Returns:
        (h, w) float32 in [0, 1].
    """
    spans = ((true[0], *inner[:2]), (true[1], *inner[2:]))
    rows, columns = (
        np.clip(size - np.arange(start, stop, stride), 0, stride).astype(np.float32) / stride
        for size, start, stop in spans
    )
    return rows[:, None] * columns
