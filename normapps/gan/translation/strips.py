"""A generator on a picture of any size: the two ends in strips, the quarter of it in one piece.

Instance statistics belong to the whole picture. So each layer of the ends is first measured strip
by strip, the moments merged (Chan et al. 1983), and then applied: in strips the picture is the same
as in one piece, and the ends, which at full resolution need most of the memory, need little.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from ...models.translator import LEAST, STRIDE, AdalinGenerator, Stage
from ...norm.moments import Moments

WHOLE = 2**20
"""Pixels up to which a picture is translated in one piece."""
STRIP = 2**19
"""Pixels of a strip."""
_MARGIN = 2
"""Quarter-resolution rows around a strip that its ends look at."""


@dataclass(frozen=True)
class Strip:
    """Rows first … last − 1 that are wanted, and those from above to below that they depend on.

    In rows of a quarter of the resolution.
    """

    first: int
    last: int
    above: int
    below: int

    def cut(self, x: Tensor, scale: int) -> Tensor:
        """Return the rows to compute from, of (N, C, H, W) at `scale` rows a quarter's row."""
        return x[:, :, self.above * scale : self.below * scale]

    def crop(self, x: Tensor, scale: int) -> Tensor:
        """Return the wanted rows of what was computed of `cut`."""
        start = (self.first - self.above) * scale
        return x[:, :, start : start + (self.last - self.first) * scale]


def translate(generator: AdalinGenerator, x: Tensor, rows: int | None = None) -> Tensor:
    """Translate one picture of any size; the same in strips as in one piece.

    What the stride lacks is added below and to the right by reflection, and taken off again.

    Args:
        generator: in evaluation mode, without gradients.
        x: (1, C, H, W) float in [−1, 1].
        rows: pixel rows of a strip, a multiple of 4; 0 takes the picture in one piece, None
            decides by its size.

    Returns:
        (1, C, H, W), clamped to [−1, 1].
    """
    height, width = x.shape[2:]
    padded = pad(x)
    if rows is None:
        is_small = padded.shape[2] * padded.shape[3] <= WHOLE
        rows = 0 if is_small else max(STRIDE, STRIP // padded.shape[3] // STRIDE * STRIDE)
    out = generator(padded) if not rows else _in_strips(generator, padded, rows // STRIDE)
    return out.clamp_(-1, 1)[:, :, :height, :width]


def pad(x: Tensor) -> Tensor:
    """Extend (N, C, H, W) below and to the right by reflection to what the generator takes.

    Reflects as often as it must: even a single pixel reaches the least side.
    """
    for axis in (2, 3):
        size = x.shape[axis]
        wanted = max(LEAST, -(-size // STRIDE) * STRIDE)
        if wanted != size:
            places = torch.arange(wanted, device=x.device) % max(1, 2 * (size - 1))
            x = x.index_select(axis, torch.minimum(places, (2 * (size - 1) - places).abs()))
    return x


def _in_strips(generator: AdalinGenerator, x: Tensor, rows: int) -> Tensor:
    strips = list(_cover(x.shape[2] // STRIDE, rows))
    features = generator.transform(_encode(generator, x, strips))
    decoder = [cast(Stage, each) for each in generator.decoder]
    known: list[Moments] = []
    for number, stage in enumerate(decoder):
        parts = _each(features, strips, 1, decoder[:number], known, stage.raw, 2 ** (number + 1))
        known.append(_merged(parts))
    out = torch.empty_like(x)
    drawn = _each(features, strips, 1, decoder, known, nn.Identity(), STRIDE, crop=False)
    for strip, wide in zip(strips, drawn, strict=True):
        picture = strip.crop(generator.draw(wide, strip.cut(x, STRIDE)), STRIDE)
        out[:, :, strip.first * STRIDE : strip.last * STRIDE] = picture
    return out


def _encode(generator: AdalinGenerator, x: Tensor, strips: list[Strip]) -> Tensor:
    """Return the features at a quarter of the resolution; only before them are there strips."""
    *outer, last = (cast(Stage, each) for each in generator.encoder)
    known: list[Moments] = []
    for number, stage in enumerate(outer):
        scale = STRIDE // 2**number
        known.append(_merged(_each(x, strips, STRIDE, outer[:number], known, stage.raw, scale)))
    parts = list(_each(x, strips, STRIDE, outer, known, last.raw, 1))
    features: Tensor = last.norm(torch.cat(parts, 2))
    return features


def _each(
    x: Tensor,
    strips: list[Strip],
    scale: int,
    stages: list[Stage],
    known: list[Moments],
    then: Callable[[Tensor], Tensor],
    out_scale: int,
    crop: bool = True,
) -> Iterator[Tensor]:
    """Yield of every strip what some stages, their moments known, and then a function make of it.

    Args:
        x: (1, C, H, W) whole, `scale` rows a quarter's row.
        strips: of x.
        scale: of x.
        stages, known: applied one after the other.
        then: applied at the end.
        out_scale: rows a quarter's row of what comes out.
        crop: yield the wanted rows only.
    """
    for strip in strips:
        part = strip.cut(x, scale)
        for stage, own in zip(stages, known, strict=True):
            part = stage(part, own)
        part = then(part)
        yield strip.crop(part, out_scale) if crop else part


def _merged(parts: Iterator[Tensor]) -> Moments:
    first, *others = [Moments.of(part) for part in parts]
    return first.merge(*others) if others else first


def _cover(height: int, rows: int) -> Iterator[Strip]:
    for first in range(0, height, rows):
        last = min(height, first + rows)
        yield Strip(first, last, max(0, first - _MARGIN), min(height, last + _MARGIN))
