"""Rendering one picture of any size with a network and a style.

Two passes: the content's moments over all tiles, merged (Chan), then the tiles drawn with the
moments of the whole, so that tiled and untiled are the same picture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from ..errors import InputError
from ..models.adain_tiny import RECEPTIVE_FIELD, STRIDE, STRIDES, AdainTiny, Levels, moments
from ..norm import Moments, part_way
from .rendering import Region
from .stylize_options import METHODS
from .tiles import Tile, coverage, pad_to_stride, tiles

Result = TypeVar("Result")

_LEAST = 2 * STRIDE
_WHOLE = 2_000_000
"""Pixels up to which a picture is rendered in one piece."""
_SIDE, _LEAST_SIDE = 1024, 128
_KEPT = 32_000_000
"""Pixels up to which all features stay in memory between the passes; beyond, computed twice."""


@dataclass(frozen=True)
class TinyRenderer:
    """`AdainTiny` on a device: the `Renderer` of our own network.

    Attributes:
        network: in evaluation mode and any precision; moments are float32 at least.
        device: where the network lies.
        side: of the tiles in pixels, a multiple of 8; None tiles large pictures only.
    """

    network: AdainTiny
    device: torch.device
    side: int | None = None

    @property
    def methods(self) -> tuple[str, ...]:
        """Names of the maps that it draws with."""
        return METHODS

    def measure(self, image: Tensor) -> Levels:
        """Return the full moments of a picture's features at both levels; see `Renderer`."""
        side = self._tile_side(image)
        return _smaller(side, lambda side: self._measure(image, side, None, full=True))

    def render(
        self,
        image: Tensor,
        regions: Sequence[Region],
        *,
        alpha: float = 1.0,
        method: str = "adain",
        own: tuple[Moments, ...] | None = None,
    ) -> Tensor:
        """Draw a picture with a style's moments; see `Renderer`.

        Of what the network cannot reconstruct of the picture, 1−alpha is added back, so that
        strength 0 returns the picture itself; strengths below 1 draw every tile twice for it.
        """
        side = self._tile_side(image)
        style = _both(regions[0].style)
        known = None if own is None else _both(own)
        return _smaller(side, lambda side: self._render(image, style, alpha, method, known, side))

    def _tile_side(self, image: Tensor) -> int:
        if self.side is not None:
            return self.side
        return _SIDE if image.shape[2] * image.shape[3] > _WHOLE else 0

    def _render(
        self,
        image: Tensor,
        style: Levels,
        alpha: float,
        method: str,
        known: Levels | None,
        side: int,
    ) -> Tensor:
        height, width = image.shape[2:]
        padded = pad_to_stride(image, STRIDE, _LEAST)
        kept: dict[Tile, tuple[Tensor, Tensor]] = {}
        own = known or self._measure(image, side, kept, full=method != "adain")
        own, style = (_both([m.to(self.device) for m in part]) for part in (own, style))
        wanted = _part_way(own, style, alpha, method)
        out = torch.empty_like(padded, memory_format=torch.contiguous_format)
        for tile in _cover(padded, side):
            features = kept.pop(tile) if tile in kept else self._encode(tile.cut(padded))
            drawn = tile.crop(self._decode(features, wanted, own, method))
            if alpha < 1:
                same = tile.crop(self._decode(features, own, own, method))
                photo = as_dtype(tile.crop(tile.cut(padded)).to(self.device), torch.float32)
                drawn = drawn + (1 - alpha) * (photo - same)
            top, bottom, left, right = tile.inner
            out[..., top:bottom, left:right] = as_dtype(drawn.clamp(0, 1), image.dtype)
        return out[..., :height, :width]

    def _measure(
        self,
        image: Tensor,
        side: int,
        kept: dict[Tile, tuple[Tensor, Tensor]] | None,
        full: bool,
    ) -> Levels:
        """Merge the moments of all tiles over the true region; features that fit go to `kept`."""
        padded = pad_to_stride(image, STRIDE, _LEAST)
        fits = image.shape[2] * image.shape[3] <= _KEPT
        parts = []
        for tile in _cover(padded, side):
            features = self._encode(tile.cut(padded))
            inner = [tile.crop(x, stride) for x, stride in zip(features, STRIDES, strict=True)]
            parts.append(moments(inner, self._coverage(tile, image, padded), full))
            if fits and kept is not None:
                kept[tile] = features
        return _both([parts[0][i].merge(*(part[i] for part in parts[1:])) for i in (0, 1)])

    def _coverage(self, tile: Tile, image: Tensor, padded: Tensor) -> tuple[Tensor | None, ...]:
        if image.shape == padded.shape:
            return None, None
        true = (image.shape[2], image.shape[3])
        return tuple(coverage(true, tile.inner, stride).to(self.device) for stride in STRIDES)

    def _encode(self, image: Tensor) -> tuple[Tensor, Tensor]:
        return self.network.encode(image.to(self.device))

    def _decode(
        self, features: tuple[Tensor, Tensor], style: Levels, own: Levels, method: str
    ) -> Tensor:
        return self.network.decode(features, style, own, method).float()


def as_dtype(image: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert between uint8 0…255 and floating [0, 1]; values are rounded, not cut."""
    if image.dtype == dtype:
        return image
    if dtype == torch.uint8:
        return (image * 255).round_().to(dtype)
    return image.to(dtype) / 255 if image.dtype == torch.uint8 else image.to(dtype)


def _cover(padded: Tensor, side: int) -> Iterator[Tile]:
    height, width = padded.shape[2:]
    return tiles(height, width, side or max(height, width), RECEPTIVE_FIELD)


def _smaller(side: int, work: Callable[[int], Result]) -> Result:
    """Do the work with ever smaller tiles until it fits into the device's memory."""
    while True:
        try:
            with torch.inference_mode():
                return work(side)
        except torch.OutOfMemoryError as error:
            side = side // 2 if side else _SIDE
            if side < _LEAST_SIDE:
                raise InputError("out of memory on the device; use --device cpu") from error
        torch.cuda.empty_cache()


def _part_way(own: Levels, style: Levels, alpha: float, method: str) -> Levels:
    if alpha == 1:
        return style
    pairs = zip(own, style, strict=True)
    return _both([part_way(*pair, alpha, method) for pair in pairs])


def _both(levels: Sequence[Moments]) -> Levels:
    fine, coarse = levels
    return fine, coarse
