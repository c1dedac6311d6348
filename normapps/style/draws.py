"""Pairs of photographs and paintings for training, and what VGG-19 sees in them.

Most of a step's time goes into VGG. A picture therefore serves several steps, in another pair each
time, and VGG looks at it once: with 4 pairs a step, each picture in 4 steps, VGG has 10 instead of
16 passes (a pass back through it counted as one).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.sources import PictureSource
from ..errors import InputError
from ..models.vgg import Vgg19
from .losses import LAYERS
from .options import TrainOptions

_TRIES = 10
_SPREAD = 1.6
"""Crops show between the whole shorter side and 1/1.6 of it."""


@dataclass(frozen=True)
class Batch:
    """One step's pairs.

    Attributes:
        content, style: (N, 3, S, S) in [0, 1].
        shown: the content as the network gets it.
        wanted_content: VGG's features of the content at the last of `LAYERS`.
        wanted_style: its features of the style at all of them.
    """

    content: Tensor
    style: Tensor
    shown: Tensor
    wanted_content: Tensor
    wanted_style: list[Tensor]


@dataclass(frozen=True)
class _Seen:
    """New pictures, not paired yet, and VGG's features of them; fields as `Batch` has them."""

    content: Tensor
    style: Tensor
    wanted_content: Tensor
    wanted_style: list[Tensor]


class Draws:
    """The pairs of every step, which depend on the seed, the step and the process alone.

    Args:
        options: places, sizes, seed.
        vgg: the judge, in the precision in which it judges.
        show: of content and style, (N, 3, S, S) in [0, 1], makes what the network gets as content.
        rank: of this process.
        device: where pictures and features lie.

    Raises:
        InputError: a place that is missing or holds no picture.
    """

    def __init__(
        self,
        options: TrainOptions,
        vgg: Vgg19,
        show: Callable[[Tensor, Tensor], Tensor],
        rank: int = 0,
        device: torch.device | None = None,
    ) -> None:
        self._options, self._vgg, self._show, self._rank = options, vgg, show, rank
        self._device = device or torch.device("cpu")
        self._sources = sources(options)
        self._kept: dict[int, _Seen] = {}

    def batch(self, step: int) -> Batch:
        """Return the pairs of a step: 1/`reuse` of the pictures are new, the rest of steps before.

        Raises:
            InputError: ten pictures in a row cannot be read.

        Warns:
            UserWarning: naming a damaged picture, for which another one is drawn.
        """
        options = self._options
        new = options.batch_size // options.reuse
        numbers = range(step * new, step * new + options.batch_size, new)
        # always in parts of one size: a convolution of another batch size may round differently
        self._kept = {n: self._kept.get(n) or self._draw(n) for n in numbers}
        parts = list(self._kept.values())
        turn = int(np.random.default_rng([options.seed, step]).integers(options.batch_size))
        layers = zip(*(part.wanted_style for part in parts), strict=True)
        content = torch.cat([part.content for part in parts])
        style = torch.cat([part.style for part in parts]).roll(turn, 0)
        return Batch(
            content,
            style,
            self._show(content, style),
            torch.cat([part.wanted_content for part in parts]),
            [torch.cat(layer).roll(turn, 0) for layer in layers],
        )

    def _draw(self, number: int) -> _Seen:
        """Draw the new pairs of one step and let VGG look at them."""
        options = self._options
        # a seed sequence ignores trailing zeros, so rank 0 must not be one
        rng = np.random.default_rng([options.seed, number, 1 + self._rank])
        count, side = options.batch_size // options.reuse, options.crop * options.paint
        content, style = (
            as_tensor([_crop(source, rng, side) for _ in range(count)], self._device)
            for source in self._sources
        )
        with torch.no_grad():
            seen = look(self._vgg, torch.cat([content, style]), options.paint)
        return _Seen(content, style, seen[-1][:count], [layer[count:] for layer in seen])


def sources(options: TrainOptions) -> tuple[PictureSource, PictureSource]:
    """Open the photographs and the paintings that training may see."""
    contents, styles = (
        PictureSource(places, options.hold_out) for places in (options.contents, options.styles)
    )
    return contents, styles


def look(vgg: Vgg19, image: Tensor, scale: int = 1) -> list[Tensor]:
    """Return VGG's features at `LAYERS` of pictures that were painted `scale` times as large.

    Args:
        vgg: the judge.
        image: (N, 3, H, W) in [0, 1]; reduced by averaging squares of `scale` pixels.
        scale: how many times larger.
    """
    small = F.avg_pool2d(image, scale) if scale > 1 else image
    dtype = vgg.input.weight.dtype
    features: list[Tensor] = vgg(small.to(dtype, memory_format=torch.channels_last), LAYERS)
    return features


def as_tensor(squares: list[np.ndarray], device: torch.device) -> Tensor:
    """Stack squares (S, S, 3) uint8 as (N, 3, S, S) in [0, 1], channels_last."""
    stacked = torch.from_numpy(np.stack(squares)).to(device)
    return (stacked.permute(0, 3, 1, 2).float() / 255).contiguous(memory_format=torch.channels_last)


def _crop(source: PictureSource, rng: np.random.Generator, side: int) -> np.ndarray:
    """Crop a random picture; a damaged one is named in a warning and another one drawn."""
    for _ in range(_TRIES):
        try:
            return source.crop(int(rng.integers(len(source))), rng, side, _SPREAD)
        except InputError as error:
            warnings.warn(str(error), stacklevel=2)
    raise InputError(f"{_TRIES} pictures in a row cannot be read; check --contents and --styles")
