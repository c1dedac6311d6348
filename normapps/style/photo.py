"""The photo-real mode: a painting's colours, place by place, and every edge where the photo has it.

The picture is painted small. In windows that overlap, the optimal transport between the Gaussians
of the photo's colours and of the painted ones gives an affine map of colours; the maps, blended
from window to window, act on the photo at its own size. So strokes leave their colours, contrast
and light, but no trace of their own: a straight line stays one, at any size.

Local affine maps of colours are what photo-real transfer is held to by Luan et al. 2017; they are
fitted there, and in guided filters (He et al. 2013), by regression. Transport needs no painted
edge to lie where the photo's is, and keeps the contrast that regression loses where it does not
(`docs/photo-mode.md` compares them, and the Haar skips of Yoo et al. 2019).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.images import fitted_size
from ..norm import INSTANCE, Moments, transport_matrix
from .color import bands, blend_regions, into_gamut, rows_of
from .rendering import as_dtype

Draw = Callable[[Tensor, Sequence[Tensor | None]], Tensor]
"""Stylizes a picture (1, 3, H, W) with masks of its size, one a region, None for the whole."""

WORKED = 512
"""Long side in pixels at which the picture is painted."""

_WINDOW = 0.2
"""Side of a window, of the long side; maps change from place to place at that scale."""

_STEPS = 3
"""Windows that begin within the side of one."""

_WHOLE = 0.05
"""Share of the whole region's moments in each window's; a window without a pixel has them alone."""

_RIDGE = 1e-3
"""Keeps what varies little, such as a sky, from getting all the strokes' contrast."""


def draw_photo(image: Tensor, masks: Sequence[Tensor | None], draw: Draw) -> Tensor:
    """Stylize a picture as if it had been photographed so.

    Args:
        image: (1, 3, H, W) uint8, or float in [0, 1].
        masks: of the regions, (1, 1, H, W) uint8 or float in [0, 1], which share in proportion
            where they overlap; None for a single region, the whole. What none covers stays.
        draw: paints the picture, reduced to long side `WORKED`, with the masks reduced alike; what
            it does not change stays unchanged.

    Returns:
        (1, 3, H, W) of the dtype and device of `image`, float in [0, 1]. Memory does not grow with
        the picture, but for the result.
    """
    small = _reduced(image)
    shares = [None if mask is None else _reduced(mask) for mask in masks]
    painted = as_dtype(draw(small, shares), torch.float32).to(image.device)
    photo = as_dtype(small, torch.float32)
    fields = [ColorField.fit(photo, painted, mask) for mask in shares]
    out = torch.empty_like(image)
    for band in bands(image):
        part = rows_of(image, band, image)
        weights = [None if mask is None else rows_of(mask, band, image) for mask in masks]
        moved = [into_gamut(field.apply(part, band, image.shape[2])) for field in fields]
        out[..., band, :] = as_dtype(blend_regions(moved, weights, part), image.dtype)
    return out


@dataclass(frozen=True)
class ColorField:
    """Affine maps of colours on a lattice over a picture of any size, blended in between.

    Attributes:
        maps: (12, rows, columns): of each map the matrix, row by row, then the shift.
        margin: (above, before): where the first row and column of the lattice lie, as shares of
            the picture's height and width; the last ones as far from the other edges.
    """

    maps: Tensor
    margin: tuple[float, float]

    @classmethod
    def fit(cls, photo: Tensor, painted: Tensor, mask: Tensor | None = None) -> ColorField:
        """Take the optimal transport of colours from a photo to a painted one, in windows.

        Args:
            photo, painted: (1, 3, H, W) float32 in [0, 1].
            mask: (1, 1, H, W) weights of the pixels, uint8 or float in [0, 1]; None: all alike.
        """
        height, width = photo.shape[2:]
        side = max(1, round(_WINDOW * max(height, width)))
        sides = (min(side, height), min(side, width))
        shares = torch.ones_like(photo[:, :1]) if mask is None else as_dtype(mask, photo.dtype)
        starts = [_starts(*each) for each in zip((height, width), sides, strict=True)]
        own, wanted = (_local(x, shares.to(x), starts, sides) for x in (photo, painted))
        matrix = transport_matrix(own, wanted, "ot", _RIDGE)
        shift = wanted.mean - (matrix @ own.mean[..., None])[..., 0]
        maps = torch.cat([matrix.flatten(1), shift], 1).T
        margin = (sides[0] / 2 / height, sides[1] / 2 / width)
        return cls(maps.reshape(12, len(starts[0]), len(starts[1])), margin)

    def apply(self, photo: Tensor, band: slice, height: int) -> Tensor:
        """Map the colours of some rows of a picture.

        Args:
            photo: (1, 3, h, W) float, the rows.
            band: which they are of the picture's.
            height: of the picture.

        Returns:
            (1, 3, h, W), not clamped.
        """
        maps, width = self.maps.to(photo), photo.shape[3]
        down = _hats(torch.arange(band.start, band.stop), height, maps.shape[1], self.margin[0])
        along = _hats(torch.arange(width), width, maps.shape[2], self.margin[1])
        here = down.to(photo) @ maps @ along.to(photo).T
        moved: Tensor = (here[:9].unflatten(0, (3, 3)) * photo[0]).sum(1) + here[9:]
        return moved[None]


def _reduced(image: Tensor) -> Tensor:
    """Bring the long side down to `WORKED`, antialiased, in the dtype of the picture or mask."""
    height, width = image.shape[2:]
    if max(height, width) <= WORKED:
        return image
    width, height = fitted_size(width, height, WORKED)
    return F.interpolate(image, (height, width), mode="bilinear", antialias=True)


def _starts(size: int, side: int) -> list[int]:
    """Where the windows of a side of the picture begin, evenly, from edge to edge."""
    count = 1 + -(-_STEPS * (size - side) // side)
    return [round(float(start)) for start in torch.linspace(0, size - side, count)]


def _local(x: Tensor, shares: Tensor, starts: list[list[int]], sides: tuple[int, int]) -> Moments:
    """Measure the moments of windows, one a group, each with some of the whole's."""
    down, along = (torch.hann_window(side + 2, periodic=False)[1:-1].to(x) for side in sides)
    window = down[:, None] * along
    colors, weights = (_windows(each, starts, sides) for each in (x, shares))
    parts = Moments.of(colors, INSTANCE, full=True, weight=weights * window)
    whole = Moments.of(x, INSTANCE, full=True, weight=shares)
    groups = len(colors)
    some = Moments(
        (_WHOLE * window.sum()).expand(groups),
        whole.mean.expand(groups, -1),
        whole.var.expand(groups, -1),
        torch.as_tensor(whole.cov).expand(groups, -1, -1),
    )
    return parts.merge(some)


def _windows(x: Tensor, starts: list[list[int]], sides: tuple[int, int]) -> Tensor:
    """Cut (1, C, H, W) into overlapping windows, row by row: (windows, C, *sides)."""
    (height, width), (rows, columns) = sides, starts
    cut = [x[..., top : top + height, left : left + width] for top in rows for left in columns]
    return torch.cat(cut)


def _hats(positions: Tensor, size: int, points: int, margin: float) -> Tensor:
    """Weights of a lattice's points at pixels, linear in between: (pixels, points)."""
    share = (positions + 0.5) / size
    place = (share - margin) / max(1e-9, 1 - 2 * margin) * (points - 1)
    return (1 - (place.clamp(0, points - 1)[:, None] - torch.arange(points)).abs()).clamp_min(0)
