"""Rendering with the classic networks: level by level, each on the picture the last one drew.

Multi-level WCT (Li et al. 2017, sec. 3.3) is the case of five levels, AdaIN (Huang & Belongie
2017) that of one. A level takes two passes over the tiles, its content's moments first, so that
tiled and untiled are the same picture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import unknown
from ..models.vgg_cascade import VggCascade, VggLevel
from ..norm import INSTANCE, TRANSFERS, Moments, transfer
from ..norm.moments import merge
from .detail import keep_detail_
from .regions import Layout, settle
from .render import smaller
from .rendering import Levels, Region, Steady, as_dtype
from .tiles import Tile, pad_to_stride, tiles

_WHOLE = 1_200_000
"""Pixels up to which a picture is rendered in one piece."""
_SIDE = 768
_STEP = 16
"""The stride of relu5_1, of which the others are divisors."""
_PRECISE = 32_000_000
"""Pixels up to which the picture between two levels is float32; float16 beyond."""

Change = Callable[[Tensor, Tile], Tensor]
"""What is done to a tile's features between encoder and decoder."""


@dataclass(frozen=True)
class CascadeRenderer:
    """A classic network on a device.

    Attributes:
        network: in evaluation mode and any precision; moments are float32 at least.
        device: where the network lies.
        side: of the tiles in pixels, rounded up to a multiple of 16; None tiles large pictures
            only.
    """

    network: VggCascade
    device: torch.device
    side: int | None = None

    @property
    def methods(self) -> tuple[str, ...]:
        """The maps that `render` knows, the network's own first."""
        own = self.network.method
        return (own, *(name for name in TRANSFERS if name != own))

    @property
    def detail(self) -> float:
        """The papers' recipes leave the lines as they are drawn."""
        return 0.0

    def measure(self, image: Tensor) -> Levels:
        """Return the full moments of a picture's features at every level.

        Args:
            image: (1, 3, H, W) uint8, or float in [0, 1].
        """
        picture, whole = self._padded(image), Layout((), False)
        levels = self.network.stages

        def work(side: int) -> Levels:
            passes = [_Pass(level, picture, whole, self.device, side) for level in levels]
            return tuple(each.measure(True)[0] for each in passes)

        return smaller(self._tile_side(image), work)

    def render(
        self,
        image: Tensor,
        regions: Sequence[Region],
        *,
        alpha: float = 1.0,
        method: str = "",
        steady: Steady | None = None,
        detail: float = 0.0,
    ) -> Tensor:
        """Draw a picture with the moments of one style, or of one in each region.

        Args:
            image: (1, 3, H, W) uint8, or float in [0, 1]; may lie on another device.
            regions: at least one; what no mask covers keeps its own features.
            alpha: share of the transformed features at every level, the rest are the level's own
                (both papers). Of what the levels cannot reconstruct of the picture, 1−alpha is
                added in the end, which the papers do not, so that 0 returns the picture itself.
            method: a name in `methods`; the network's own where empty.
            steady: changes the moments taken for the picture's own at a level, as the level before
                drew it; for a single region only.
            detail: the photo's share in the finest lines (see `style.detail`).

        Returns:
            (1, 3, H, W) of the dtype and device of `image`, float in [0, 1].

        Raises:
            InputError: an unknown method, moments or masks that do not fit, or too little memory
                even for small tiles.
        """
        method = method or self.network.method
        if method not in TRANSFERS:
            raise unknown("method", method, TRANSFERS)
        if alpha == 0:
            return image.clone()

        def work(side: int) -> Tensor:
            return self._render(image, regions, alpha, method, steady, side)

        drawn = smaller(self._tile_side(image), work)
        if detail:
            keep_detail_(drawn, image, detail)
        return drawn

    def _tile_side(self, image: Tensor) -> int:
        if self.side is not None:
            return -(-self.side // _STEP) * _STEP
        return _SIDE if image.shape[2] * image.shape[3] > _WHOLE else 0

    @property
    def _least(self) -> int:
        """The shortest side that the deepest level can pad by reflection."""
        return 2 * max(level.stride for level in self.network.stages)

    def _padded(self, image: Tensor) -> Tensor:
        dtype = torch.float32 if image.shape[2] * image.shape[3] <= _PRECISE else torch.float16
        return as_dtype(pad_to_stride(image, 1, self._least), dtype)

    def _render(
        self,
        image: Tensor,
        regions: Sequence[Region],
        alpha: float,
        method: str,
        steady: Steady | None,
        side: int,
    ) -> Tensor:
        layout = Layout.of([region.mask for region in regions], image, 1, self._least)
        photo = drawn = self._padded(image)
        for i, level in enumerate(self.network.stages):
            each = _Pass(level, drawn, layout, self.device, side)
            own = each.measure(method != "adain")
            if steady is not None:
                own = [steady(1 + i, part) for part in own]
            styles = [region.style[i].to(self.device) for region in regions]
            drawn = each.draw(each.transferred(styles, own, method, alpha))
        if alpha < 1:
            drawn += (1 - alpha) * (photo - self._reconstructed(photo, side))
        return as_dtype(drawn[..., : image.shape[2], : image.shape[3]].clamp_(0, 1), image.dtype)

    def _reconstructed(self, photo: Tensor, side: int) -> Tensor:
        for level in self.network.stages:
            each = _Pass(level, photo, Layout((), False), self.device, side)
            photo = each.draw(lambda features, _: features)
        return photo


class _Pass:
    """One level over one picture, tile by tile.

    Args:
        level: with the network's weights.
        picture: (1, 3, H, W) floating, as the level before drew it.
        layout: of the regions, over the picture.
        device: where the network lies.
        side: of the tiles; 0 for one piece.
    """

    def __init__(
        self, level: VggLevel, picture: Tensor, layout: Layout, device: torch.device, side: int
    ) -> None:
        self._level, self._picture, self._layout = level, picture, layout
        self._device, self._side = device, side
        self._kept: Tensor | None = None

    def measure(self, full: bool) -> list[Moments]:
        """Return the content's moments in each region, merged over the tiles."""
        parts: list[list[Moments]] = [[] for _ in range(self._layout.count)]
        for tile in self._tiles():
            features = self._inner(tile, self._encoded(tile))
            regions, maps = self._shares(tile)
            for i, region in enumerate(regions):
                weight = None if maps is None else self._inner(tile, maps[:, i : i + 1])
                parts[region].append(Moments.of(features, INSTANCE, full=full, weight=weight))
        measured = [merge(each) if each else None for each in parts]
        return settle(measured) if len(measured) > 1 else [merge(parts[0])]

    def transferred(
        self, styles: Sequence[Moments], own: Sequence[Moments], method: str, alpha: float
    ) -> Change:
        """Return what gives a tile's features the styles' moments, blended by their shares."""

        def change(features: Tensor, tile: Tile) -> Tensor:
            regions, maps = self._shares(tile)
            moved = [
                transfer(features, styles[region], method, own[region], alpha)
                if region < len(styles)
                else features  # of what no mask covers
                for region in regions
            ]
            if maps is None:
                return moved[0]
            return torch.stack(
                [part * maps[:, i : i + 1].to(part.dtype) for i, part in enumerate(moved)]
            ).sum(0)

        return change

    def draw(self, change: Change) -> Tensor:
        """Return the picture decoded of its changed features, of its own shape and dtype."""
        out = torch.empty_like(self._picture, memory_format=torch.contiguous_format)
        for tile in self._tiles():
            drawn = self._level.decode(change(self._encoded(tile), tile))
            top, bottom, left, right = tile.inner
            out[..., top:bottom, left:right] = self._inner(tile, drawn, 1)
        return out

    def _tiles(self) -> Iterator[Tile]:
        height, width = self._picture.shape[2:]
        return tiles(height, width, self._side or max(height, width), self._level.margin)

    def _encoded(self, tile: Tile) -> Tensor:
        """The features of a tile's outer part; a picture of a single piece is encoded once."""
        if self._kept is not None:
            return self._kept
        weight = self._level.encoder.input.weight
        image = tile.cut(self._picture).to(self._device, weight.dtype)
        features = self._level.encode(image.contiguous(memory_format=torch.channels_last))
        self._kept = None if self._side else features
        return features

    def _shares(self, tile: Tile) -> tuple[tuple[int, ...], Tensor | None]:
        """The regions in a tile, and how much of each stands in every cell of its outer part."""
        shares = self._layout.cut(tile, self._device)
        return shares.regions, shares.at(self._level.stride)

    def _inner(self, tile: Tile, x: Tensor, stride: int = 0) -> Tensor:
        """The inner part of what was computed of the outer one; cut-off cells count as whole."""
        stride = stride or self._level.stride
        above, before = tile.outer[0], tile.outer[2]
        top, bottom, left, right = tile.inner
        rows = slice((top - above) // stride, -(-(bottom - above) // stride))
        return x[..., rows, (left - before) // stride : -(-(right - before) // stride)]
