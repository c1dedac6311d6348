"""How good a trained network is: right and wrong answers, picture by picture."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..data.pool import Pool
from ..engine.device import evaluating
from ..errors import InputError
from ..measure.accuracy import accuracy, paired_difference
from ..measure.interval import Estimate
from ..models.outputs import logits_of
from .sampling import Normalize


@dataclass(frozen=True)
class PoolBatches:
    """A pool as batches of a network's inputs, mixed, as often as they are asked for.

    Args:
        pool: the pictures.
        normalize: from bytes to inputs.
        batch_size: pictures a batch; the last has fewer.
        device: where the batches are made.
        seed: of the order; None takes the pool's own.
    """

    pool: Pool
    normalize: Normalize
    batch_size: int
    device: torch.device
    seed: int | None = None

    def __iter__(self) -> Iterator[Tensor]:
        order = torch.arange(len(self.pool))
        if self.seed is not None:
            generator = torch.Generator().manual_seed(self.seed)
            order = torch.randperm(len(self.pool), generator=generator)
        for rows in order.split(self.batch_size):
            images, _ = self.pool.batch(rows)
            yield self.normalize(images.to(self.device))


def right_answers(model: nn.Module, batches: PoolBatches) -> Tensor:
    """Return which of a labelled pool's pictures a network gets right, (M,) bool on the CPU.

    Raises:
        InputError: the pool has no labels.
    """
    labels = batches.pool.labels
    if labels is None:
        raise InputError("the pictures have no labels to compare answers with")
    with evaluating(model):
        answers = [logits_of(model(x)).argmax(1).cpu() for x in batches]
    return torch.cat(answers) == labels


@dataclass(frozen=True)
class Score:
    """What a network gets right on a set of pictures, beside another one where there is one.

    Attributes:
        name: the set's.
        right: (M,) bool.
        before: the other network's, of the same pictures; None without.
    """

    name: str
    right: Tensor
    before: Tensor | None = None

    @property
    def accuracy(self) -> Estimate:
        """The share of right answers with its interval."""
        return accuracy(int(self.right.sum()), len(self.right))

    @property
    def baseline(self) -> Estimate | None:
        """The other network's share."""
        if self.before is None:
            return None
        return accuracy(int(self.before.sum()), len(self.before))

    @property
    def difference(self) -> Estimate | None:
        """By how much the share grew, on the same pictures."""
        return None if self.before is None else paired_difference(self.before, self.right)
