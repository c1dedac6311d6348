"""Memorized batch normalization (Guo et al. 2018): the recent batches count too."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor, nn

from ...errors import InputError
from ..moments import Moments
from .base import Taxonomy
from .population import PopulationNorm
from .tracking import Tracked


class MemorizedNorm(PopulationNorm):
    """Standardize by the moments of the last k batches together, the present one among them.

    A batch that is a steps old weighs decayᵃ times its samples. The variance is that of the
    mixture, so it counts how far the batches' means lie apart. The gradient flows through the
    present batch's part. Inference uses what the last batch was normalized with.

    What is remembered was measured before the weights moved. Against that the paper shows each
    batch a second time after the step: see `double_forward`.

    The weights are ours: geometric in age, and counting samples, so that a small last batch does
    no harm.

    Args:
        num_features, eps, affine, bias, sync, process_group, layout, act, drop: see
            `PopulationNorm`.
        memory: k batches, the present one included; with 1, training is that of batch norm.
        decay: weight of a batch against the next one's, 0…1.

    Attributes:
        memory_count, memory_mean, memory_var: (k,), (k, C), (k, C), one row a batch; a count of 0
            where there has been none yet.
        replaces: put the next batch in the place of the latest.

    Raises:
        InputError: no channels, no memory, or a decay outside 0…1.
    """

    taxonomy: ClassVar = Taxonomy(
        "batch, recent ones",
        "standardize",
        "affine",
        "Guo et al. 2018",
        "2 passes, 4 to show each batch twice; inference 1, 0 when folded",
    )
    memory_count: Tensor
    memory_mean: Tensor
    memory_var: Tensor

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        affine: bool = True,
        *,
        memory: int = 8,
        decay: float = 0.9,
        **carried: Unpack[Tracked],
    ) -> None:
        if memory < 1:
            raise InputError(f"memory {memory}: must be at least 1, the present batch")
        if not 0 < decay <= 1:
            raise InputError(f"decay {decay}: must be above 0, at most 1")
        self._rows = memory
        super().__init__(num_features, eps, affine, **carried)
        self.memory, self.decay = memory, decay
        self.replaces = False

    def add_memory(self, place: dict[str, Any]) -> None:
        """Register the batches, of which there is none yet."""
        empty = torch.zeros(self._rows, self.num_features, **place)
        self.register_buffer("memory_count", empty[:, 0].clone())
        self.register_buffer("memory_mean", empty)
        self.register_buffer("memory_var", empty.clone())

    def moved(self, batch: Moments) -> Moments:
        """Return the moments of the batches together, with the present one's gradient."""
        index = torch.arange(self.memory, device=batch.mean.device)
        age = (self.num_batches_tracked - 1 - index) % self.memory
        rows = (age == 0).unsqueeze(1)
        count = torch.where(age == 0, batch.count.to(self.memory_count), self.memory_count)
        mean = torch.where(rows, batch.mean, self.memory_mean)
        var = torch.where(rows, batch.var, self.memory_var)
        self._keep(count, mean, var)
        weight = count * torch.pow(self.decay, age)
        share = (weight / weight.sum()).unsqueeze(1).to(batch.mean)
        whole = (share * mean).sum(0)
        spread = (share * (var + (mean - whole).square())).sum(0)
        return Moments(batch.count, whole[None], spread[None], None, batch.partition)

    def remember(self, measured: Moments) -> None:
        """Count a batch, unless it takes the place of the latest."""
        if not self.replaces:
            super().remember(measured)

    @torch.no_grad()
    def _keep(self, count: Tensor, mean: Tensor, var: Tensor) -> None:
        self.memory_count.copy_(count)
        self.memory_mean.copy_(mean)
        self.memory_var.copy_(var)


@contextmanager
def double_forward(model: nn.Module) -> Iterator[None]:
    """Let memorized layers put the next batch in the place of their latest, inside of the block.

    The paper's second forward pass: after the optimizer's step the same batch is shown once more,
    so that the memory holds what the new weights make of it. Parameters get no gradient.

    Args:
        model: a network in training, after at least one batch.

    Raises:
        InputError: no `MemorizedNorm` in the model.

    Example:
        >>> optimizer.step()
        >>> with double_forward(model):
        ...     model(images)
    """
    layers = [module for module in model.modules() if isinstance(module, MemorizedNorm)]
    if not layers:
        raise InputError(
            "no memorized norm in the model; convert_norm(model, 'memorized') makes it"
        )
    for layer in layers:
        layer.replaces = True
    try:
        with torch.no_grad():
            yield
    finally:
        for layer in layers:
            layer.replaces = False
