"""Regions: shares of styles at every position, cut tile by tile, and moments that small ones bear.

Every region has moments of its own; features moved to each style's moments are blended by the
shares at that level, and so is the decoder's modulation, so that no seam can arise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError
from ..norm import Moments
from ..norm.moments import merge
from .masks import Mask, fit_masks
from .rendering import Levels, Region
from .tiles import Padded, Tile

_ROUNDING = 2.1 / 255
"""By how much a mask, having been resampled, makes several miss 1: just over two levels."""


@dataclass(frozen=True)
class Shares:
    """Which regions a tile holds, and how much of each stands where.

    Attributes:
        regions: numbers of the regions that have a share in the tile, in order.
        maps: (1, len(regions), h, w) float32 that sum to 1 at every pixel of the tile's outer
            part; None where a single region has it all.
    """

    regions: tuple[int, ...]
    maps: Tensor | None

    def at(self, stride: int) -> Tensor | None:
        """Return the maps at 1/stride resolution (see `reduced`)."""
        return None if self.maps is None else reduced(self.maps, stride)


@dataclass(frozen=True)
class Layout:
    """The masks of a picture.

    Attributes:
        masks: padded as the picture is, (1, 1, H, W) uint8 or float in [0, 1] each.
        has_rest: whether they leave something, which then is one more region, the last.
    """

    masks: tuple[Padded, ...]
    has_rest: bool

    @classmethod
    def of(cls, masks: Sequence[Tensor | None], image: Tensor, stride: int, least: int) -> Layout:
        """Lay masks over a picture that is padded to multiples of `stride`, at least `least`.

        Args:
            masks: of all regions; a single one may be None, the whole picture.
            image: (1, 3, H, W).
            stride, least: as the picture is padded.

        Raises:
            InputError: a mask of another size than the picture, or one None of several.
        """
        if len(masks) == 1 and masks[0] is None:
            return cls((), False)
        given = [_checked(mask, image) for mask in masks]
        padded = tuple(Padded(mask, stride, least) for mask in given)
        return cls(padded, not _cover(given))

    @property
    def count(self) -> int:
        """How many regions there are."""
        return max(1, len(self.masks) + self.has_rest)

    def cut(self, tile: Tile, device: torch.device) -> Shares:
        """Return the shares of every region in the outer part of a tile.

        Masks that overlap share in proportion; ones that miss 1 by rounding are scaled to it.
        """
        if self.count == 1:
            return Shares((0,), None)
        parts = [mask.cut(tile) for mask in self.masks]
        present = [i for i, part in enumerate(parts) if part.any()]
        if not present:
            return Shares((len(self.masks),), None)
        maps = _shares([_unit(parts[i]) for i in present], len(self.masks))
        if maps[:, -1].any():
            present.append(len(self.masks))
        else:
            maps = maps[:, :-1]
        return Shares(tuple(present), maps.to(device) if len(present) > 1 else None)


def reduced(maps: Tensor, stride: int) -> Tensor:
    """Return the means of stride×stride cells; a cell that the edge cuts off has what it has."""
    return F.avg_pool2d(maps, stride, ceil_mode=True)


def lay(parts: Sequence[tuple[Levels, Mask | None]], image: Tensor) -> list[Region]:
    """Fit the masks of styles to a picture.

    Args:
        parts: a style's moments and where it goes, at least one. A single style without a mask
            goes everywhere; of several, one may have none and gets what the others leave.
        image: (1, 3, H, W).

    Raises:
        InputError: no style, or masks that do not fit (see `masks.fit_masks`).
    """
    if not parts:
        raise InputError("no style given; give at least one")
    if len(parts) == 1 and parts[0][1] is None:
        return [Region(parts[0][0])]
    height, width = image.shape[2:]
    fitted = fit_masks([mask for _, mask in parts], width, height)
    masks = [torch.from_numpy(values)[None, None] for values in fitted]
    return [Region(levels, mask) for (levels, _), mask in zip(parts, masks, strict=True)]


def settle(own: Sequence[Moments | None]) -> list[Moments]:
    """Give small regions some of the whole picture's moments.

    A region of n cells in D channels takes the share (D / (n + D))² from the whole: next to
    nothing where its own moments are well known, nearly all of it where they are of a few cells,
    along which nothing varies and by which nothing should be divided.

    Args:
        own: moments of regions that together are the picture, weights as counts; None: empty.

    Returns:
        One for each region, with count 1.
    """
    known = [part for part in own if part is not None]
    whole = merge(known)
    return [_settled(whole if part is None else part, whole) for part in own]


def _settled(part: Moments, whole: Moments) -> Moments:
    dimensions = part.mean.shape[1]
    share = (dimensions / (part.count + dimensions)).square()
    return replace(part, count=1 - share).merge(replace(whole, count=share))


@torch.inference_mode()  # in which `drawn` may have been made
def keep_uncovered(drawn: Tensor, photo: Tensor, masks: Sequence[Tensor], rows: int = 64) -> None:
    """Give what no mask covers back to the photo, in place, a band of rows at a time.

    Args:
        drawn: (1, 3, H, W), changed; uint8, or float in [0, 1].
        photo: of the same shape and dtype.
        masks: (1, 1, H, W) uint8 or float in [0, 1].
        rows: of a band.
    """
    for top in range(0, drawn.shape[2] if masks else 0, rows):
        band = slice(top, top + rows)
        cover = _cover_of([_unit(mask[..., band, :].to(drawn.device)) for mask in masks])
        if cover.min() < 1:
            before, after = (x[..., band, :].to(cover.dtype) for x in (photo.to(drawn), drawn))
            mixed = torch.lerp(before, after, cover)
            drawn[..., band, :] = mixed if drawn.is_floating_point() else mixed.round_().to(drawn)


def _shares(masks: Sequence[Tensor], total: int) -> Tensor:
    """Scale masks, some of `total`, to a sum of 1 at most; what is missing comes last."""
    maps = torch.cat(list(masks), 1)
    covered = maps.sum(1, keepdim=True)
    full = covered >= 1 - _ROUNDING * total
    maps = maps / torch.where(full, covered, 1)
    return torch.cat([maps, torch.where(full, 0, 1 - covered)], 1)


def _cover_of(masks: Sequence[Tensor]) -> Tensor:
    """(1, 1, H, W) how much of a pixel masks cover together, 1 where all but rounding."""
    covered = torch.cat(list(masks), 1).sum(1, keepdim=True)
    return torch.where(covered >= 1 - _ROUNDING * len(masks), 1, covered)


def _cover(masks: Sequence[Tensor], rows: int = 64) -> bool:
    """Whether masks leave nothing of a picture, looked at by bands."""
    bands = (slice(top, top + rows) for top in range(0, masks[0].shape[2], rows))
    return all(
        bool((_cover_of([_unit(mask[..., band, :]) for mask in masks]) == 1).all())
        for band in bands
    )


def _unit(mask: Tensor) -> Tensor:
    """Return a mask as float32 in [0, 1]."""
    return mask.float() / 255 if mask.dtype == torch.uint8 else mask.float()


def _checked(mask: Tensor | None, image: Tensor) -> Tensor:
    wanted = (1, 1, *image.shape[2:])
    if mask is None or mask.shape != wanted:
        got = "none" if mask is None else str(tuple(mask.shape))
        raise InputError(f"mask {got}: must be {wanted}, as the picture is, for each of several")
    return mask
