"""What a step trains on: a batch of each domain, the same whenever the step comes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...data.appearance import fourier_transfer, match_histogram
from ...data.pool import Pool
from ...engine.distributed import World
from ...engine.loop import step_seed
from ...errors import InputError
from ...training.sampling import Normalize, Order, augmented
from .options import RecipeOptions


@dataclass(frozen=True)
class JointBatch:
    """One step's pictures, normalized: (n, C, H, W) of each domain.

    Attributes:
        sources: of each source.
        labels: (n,) int64 class indices of each source.
        targets: of each target.
        again: the same pictures of each target, augmented differently; () unless asked for.
    """

    sources: tuple[Tensor, ...]
    labels: tuple[Tensor, ...]
    targets: tuple[Tensor, ...] = ()
    again: tuple[Tensor, ...] = ()


class Feed:
    """The batches of a run.

    Args:
        sources: labelled pictures, class indices as the network's outputs.
        targets: pictures; their labels are not looked at.
        options: batch size, augmentation, seed.
        normalize: from bytes to the network's input.
        looks: where the source pictures' looks come from, with `options.appearance`.
        views: how differently augmented versions of a target's batch there are, 1 or 2.
        here: this process among all.
        device: where the batches are made.

    Raises:
        InputError: a source without labels, or pictures of different sizes.
    """

    def __init__(
        self,
        sources: Sequence[Pool],
        targets: Sequence[Pool],
        options: RecipeOptions,
        normalize: Normalize,
        *,
        looks: Sequence[Pool] = (),
        views: int = 1,
        here: World | None = None,
        device: torch.device | None = None,
    ) -> None:
        _check(sources, targets)
        if options.appearance != "none" and not looks:
            raise InputError(f"--appearance {options.appearance}: needs target pictures")
        self.looks = tuple(looks)
        self.sources, self.targets = tuple(sources), tuple(targets)
        self.options, self.views = options, views
        self._normalize, self._here = normalize, here or World()
        self._device = device or torch.device("cpu")
        self._orders = [
            Order(len(pool), options.batch_size, step_seed(options.seed, number, 1))
            for number, pool in enumerate((*sources, *targets))
        ]

    def batch(self, step: int) -> JointBatch:
        """Return the batch of a step."""
        seed = step_seed(self.options.seed, step, self._here.rank)
        generator = torch.Generator().manual_seed(seed)
        chosen = [
            pool.batch(order.rows(step, self._here))
            for pool, order in zip((*self.sources, *self.targets), self._orders, strict=True)
        ]
        split = len(self.sources)
        images = [found for found, _ in chosen]
        images[:split] = self._restyled(images[:split], step)
        labels = tuple(each.to(self._device) for _, each in chosen[:split] if each is not None)
        first = [self._augmented(each, generator) for each in images]
        again = [self._augmented(each, generator) for each in images[split:]]
        return JointBatch(
            tuple(first[:split]),
            labels,
            tuple(first[split:]),
            tuple(again) if self.views > 1 else (),
        )

    def _restyled(self, images: list[Tensor], step: int) -> list[Tensor]:
        """Give each source picture the look of some picture of a target."""
        if self.options.appearance == "none":
            return images
        rng = np.random.default_rng([self.options.seed, step, 1 + self._here.rank])
        return [torch.stack([self._in_style(each, rng) for each in batch]) for batch in images]

    def _in_style(self, image: Tensor, rng: np.random.Generator) -> Tensor:
        pool = self.looks[int(rng.integers(len(self.looks)))]
        reference = pool.images[int(rng.integers(len(pool)))]
        given, wanted = (each.permute(1, 2, 0).numpy() for each in (image, reference))
        if self.options.appearance == "fda":
            found = fourier_transfer(given, wanted, self.options.fda_beta)
        else:
            found = match_histogram(given, wanted)
        return torch.from_numpy(found).permute(2, 0, 1).contiguous()

    def _augmented(self, images: Tensor, generator: torch.Generator) -> Tensor:
        changed = augmented(images.to(self._device), generator, self.options)
        return self._normalize(changed)


def _check(sources: Sequence[Pool], targets: Sequence[Pool]) -> None:
    if not sources:
        raise InputError("no source; training needs labelled pictures")
    for number, pool in enumerate(sources):
        if pool.labels is None:
            raise InputError(
                f"source {number} has no labels; put its pictures into a folder a class"
            )
    shapes = {tuple(pool.images.shape[1:]) for pool in (*sources, *targets)}
    if len(shapes) > 1:
        raise InputError(
            f"pictures of {' and '.join(map(str, sorted(shapes)))}: bring all to one shape"
        )
