"""Two domains in memory, and which squares of them a step sees."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...data.pool import Pool
from ...engine.distributed import World
from ...engine.loop import step_seed
from ...training.identity import pictures_told
from ...training.sampling import Order
from .options import TranslateOptions

_MARGIN = 8
"""Pictures are kept larger than a step's squares by one part in so many, to cut from."""


@dataclass(frozen=True)
class Domains:
    """Pictures as they are given, and as they are wanted, of one size a little above `size`."""

    source: Pool
    target: Pool

    def identity(self) -> dict[str, Any]:
        """Return what tells these pictures from others, JSON values."""
        source, target = pictures_told([], [self.source, self.target], ())
        return {"--source": source, "--target": target}


def read_domains(options: TranslateOptions, say: Callable[[str], object]) -> Domains:
    """Read both domains in colour, squares cut from the centre.

    Args:
        options: places, size, limits.
        say: told what was read and left out, a line each.

    Raises:
        InputError: pictures that cannot be used; the line names the place.
    """
    from ..data import read_pool

    pools = [
        read_pool(
            getattr(options, name),
            size=options.size + options.size // _MARGIN,
            channels=3,
            conditional=False,
            limit=options.limit,
            workers=options.workers,
            max_bytes=options.max_bytes,
            say=partial(_told_of, name, say),
        )
        for name in ("source", "target")
    ]
    return Domains(pools[0], pools[1])


def _told_of(name: str, say: Callable[[str], object], line: str) -> None:
    say(f"{name}: {line}")


class Squares:
    """The squares of one domain that a run sees, the same whenever a step comes.

    Args:
        pool: pictures (M, C, H, W) uint8 with sides of at least `size`.
        options: size, batch size, mirroring, seed.
        number: of the domain among those of the run.
        here: this process among all.
        device: where the batches are made.
    """

    def __init__(
        self,
        pool: Pool,
        options: TranslateOptions,
        number: int,
        here: World,
        device: torch.device,
    ) -> None:
        self._pool, self._options, self._here, self._device = pool, options, here, device
        self._seed = step_seed(options.seed, number, 1)
        self._order = Order(len(pool), options.batch_size, self._seed)

    def batch(self, step: int) -> Tensor:
        """Return (batch_size, C, size, size) floats in [−1, 1] of a step in this process."""
        generator = torch.Generator().manual_seed(step_seed(self._seed, step, self._here.rank))
        images, _ = self._pool.batch(self._order.rows(step, self._here))
        cut = random_squares(images, self._options.size, self._options.flip, generator)
        return to_floats(cut).to(self._device)

    def fixed(self, count: int) -> Tensor:
        """Return the centres of `count` pictures spread over the domain, as `batch` does."""
        rows = torch.linspace(0, len(self._pool) - 1, count).round().long()
        images, _ = self._pool.batch(rows)
        size = self._options.size
        top, left = ((side - size) // 2 for side in images.shape[2:])
        cut = images[..., top : top + size, left : left + size]
        return to_floats(cut).to(self._device)


def random_squares(images: Tensor, size: int, flip: float, generator: torch.Generator) -> Tensor:
    """Cut a square at a random place out of each picture, and mirror some.

    Args:
        images: (N, C, H, W) of any dtype, sides of at least `size`.
        size: side of the squares in pixels.
        flip: probability in [0, 1] of mirroring left and right.
        generator: where the draws come from.
    """
    n, _, height, width = images.shape
    draws = torch.rand(3, n, generator=generator)
    rows = (draws[0] * (height - size + 1)).long()[:, None] + torch.arange(size)
    columns = (draws[1] * (width - size + 1)).long()[:, None] + torch.arange(size)
    columns = torch.where((draws[2] < flip)[:, None], columns.flip(1), columns)
    squares = images[torch.arange(n)[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return squares.permute(0, 3, 1, 2)


def to_floats(images: Tensor) -> Tensor:
    """Bring bytes 0 … 255 to floats −1 … 1."""
    return images.float() / 127.5 - 1


def to_bytes(images: Tensor) -> Tensor:
    """Bring floats −1 … 1 to bytes 0 … 255, what lies outside clamped."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
