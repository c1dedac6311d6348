"""What the stylizer asks of a network, whichever it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..norm import Moments

Levels = tuple[Moments, ...]
"""Instance moments (G=1) of each adaptive level of a network, in its own order."""

Steady = Callable[[int, Moments], Moments]
"""Called once a picture and level, in the order of the levels, with the level's number (colours
have 0, a network's levels come after them) and the moments measured; what it returns stands for
them, as a moving average over a video's
frames does. Again for the same picture where memory ran out and smaller tiles are tried."""


@dataclass(frozen=True)
class Region:
    """A part of the picture and the style that it gets.

    Attributes:
        style: moments at every level of the network.
        mask: (1, 1, H, W) uint8 or float in [0, 1], of the picture's size; None: the whole picture.
            Masks that overlap share in proportion; what all together leave is drawn with its own
            moments (see `style.regions`).
        colors: full moments of RGB values in [0, 1] that the photo gets before our own network
            paints it, so that its maps need not turn colours; None: it keeps its own.
    """

    style: Levels
    mask: Tensor | None = None
    colors: Moments | None = None


class Renderer(Protocol):
    """A network on its device, which measures and draws pictures of any size."""

    @property
    def methods(self) -> tuple[str, ...]:
        """Names of `norm.TRANSFERS` that it draws with, the default first."""

    @property
    def detail(self) -> float:
        """The photo's share in the finest lines that the network is made for; see `detail`."""

    def measure(self, image: Tensor) -> Levels:
        """Return the full moments of a picture's features at every level.

        Args:
            image: (1, 3, H, W) uint8, or float in [0, 1].
        """

    def render(
        self,
        image: Tensor,
        regions: Sequence[Region],
        *,
        alpha: float = 1.0,
        method: str = "adain",
        steady: Steady | None = None,
        detail: float = 0.0,
    ) -> Tensor:
        """Draw a picture with the moments of one style, or of one in each region.

        Args:
            image: (1, 3, H, W) uint8, or float in [0, 1]; may lie on another device.
            regions: at least one.
            alpha: 0 returns the picture itself, 1 draws it with the style's moments.
            method: how features get the moments.
            steady: changes the moments taken for the picture's own; for a single region only.
            detail: the photo's share in the finest lines (see `style.detail`).

        Returns:
            (1, 3, H, W) of the dtype and device of `image`, float in [0, 1].

        Raises:
            InputError: a method that the network does not draw with, masks that do not fit, or too
                little memory.
        """


def as_dtype(image: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert between uint8 0…255 and floating [0, 1]; values are rounded, not cut."""
    if image.dtype == dtype:
        return image
    if dtype == torch.uint8:
        return (image * 255).round_().to(dtype)
    converted = image.to(dtype)
    return converted.div_(255) if image.dtype == torch.uint8 else converted
