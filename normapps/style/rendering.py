"""What the stylizer asks of a network, whichever it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ..norm import Moments

Levels = tuple[Moments, ...]
"""Instance moments (G=1) of each adaptive level of a network, in its own order."""

Steady = Callable[[int, Moments], Moments]
"""Called once a picture and level, in the order of the levels, with the level's number and the
moments measured on the content; what it returns stands for them, as a moving average over a video's
frames does. Again for the same picture where memory ran out and smaller tiles are tried."""


@dataclass(frozen=True)
class Region:
    """A part of the picture and the style that it gets.

    Attributes:
        style: moments at every level of the network.
        mask: (1, 1, H, W) uint8 or float in [0, 1], of the picture's size; None: the whole picture.
            Masks that overlap share in proportion; what all together leave is drawn with its own
            moments (see `style.regions`).
    """

    style: Levels
    mask: Tensor | None = None


class Renderer(Protocol):
    """A network on its device, which measures and draws pictures of any size."""

    @property
    def methods(self) -> tuple[str, ...]:
        """Names of `norm.TRANSFERS` that it draws with, the default first."""

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
    ) -> Tensor:
        """Draw a picture with the moments of one style, or of one in each region.

        Args:
            image: (1, 3, H, W) uint8, or float in [0, 1]; may lie on another device.
            regions: at least one.
            alpha: 0 returns the picture itself, 1 draws it with the style's moments.
            method: how features get the moments.
            steady: changes the moments taken for the picture's own; for a single region only.

        Returns:
            (1, 3, H, W) of the dtype and device of `image`, float in [0, 1].

        Raises:
            InputError: a method that the network does not draw with, masks that do not fit, or too
                little memory.
        """
