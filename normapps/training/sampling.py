"""Which pictures a step trains on, and how they are augmented: the same whenever it comes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..data.augment import augment
from ..data.pool import Pool
from ..engine.distributed import World
from ..engine.loop import step_seed
from ..errors import InputError
from .options import FitOptions

Normalize = Callable[[Tensor], Tensor]
"""(n, C, H, W) uint8 to the network's floats, such as `Preprocessing.normalize`."""


class Order:
    """Which pictures of a set a step takes: one random order after the other, without a gap.

    Args:
        length: pictures in the set.
        batch_size: pictures a step and process.
        seed: of the orders.
    """

    def __init__(self, length: int, batch_size: int, seed: int) -> None:
        self.length, self.batch_size, self._seed = length, batch_size, seed
        self._known: dict[int, Tensor] = {}

    def rows(self, step: int, here: World) -> Tensor:
        """Return the positions (batch_size,) of a step in this process."""
        first = (step * here.size + here.rank) * self.batch_size
        places = torch.arange(first, first + self.batch_size)
        rounds = places // self.length
        parts = [self._order(int(turn))[places[rounds == turn] % self.length] for turn in
                 range(int(rounds[0]), int(rounds[-1]) + 1)]  # fmt: skip
        return torch.cat(parts)

    def _order(self, turn: int) -> Tensor:
        if turn not in self._known:
            generator = torch.Generator().manual_seed(step_seed(self._seed, turn))
            kept = {turn - 1: self._known[turn - 1]} if turn - 1 in self._known else {}
            self._known = {**kept, turn: torch.randperm(self.length, generator=generator)}
        return self._known[turn]


class LabelledFeed:
    """The batches of a run on one labelled set.

    Args:
        pool: pictures with class indices as the network's outputs.
        options: batch size, augmentation, seed.
        normalize: from bytes to the network's input.
        here: this process among all.
        device: where the batches are made.

    Raises:
        InputError: the pictures have no labels.
    """

    def __init__(
        self,
        pool: Pool,
        options: FitOptions,
        normalize: Normalize,
        here: World | None = None,
        device: torch.device | None = None,
    ) -> None:
        if pool.labels is None:
            raise InputError("the pictures have no labels; put them into a folder a class")
        self.pool, self.options = pool, options
        self._normalize, self._here = normalize, here or World()
        self._device = device or torch.device("cpu")
        self._order = Order(len(pool), options.batch_size, step_seed(options.seed, 0, 1))

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Return inputs (n, C, H, W) and class indices (n,) int64 of a step in this process."""
        generator = torch.Generator().manual_seed(
            step_seed(self.options.seed, step, self._here.rank)
        )
        images, labels = self.pool.batch(self._order.rows(step, self._here))
        if labels is None:
            raise InputError("the pictures have no labels; put them into a folder a class")
        images = augmented(images.to(self._device), generator, self.options)
        return self._normalize(images), labels.to(self._device)


def augmented(images: Tensor, generator: torch.Generator, options: FitOptions) -> Tensor:
    """Return pictures (n, C, H, W) uint8 changed as the options say."""
    return augment(
        images,
        generator,
        crop=options.crop,
        shift=options.shift,
        flip=options.flip,
        jitter=options.jitter,
    )
