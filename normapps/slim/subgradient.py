"""Subgradient L1 on scales: network slimming as published (Liu et al. 2017).

γ.grad += s·sign(γ) between the backward pass and the optimizer's step. Scales come near to 0 and
hop around it: none stays there. It is done by the optimizer itself, in a hook before its step, so
that it is added once a step however many backward passes were accumulated, is no part of the norm
that gradient clipping looks at, and is not divided by the scale of a GradScaler.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.optim import Optimizer

from .scales import Scales, groups_of


def l1_subgradient(x: Tensor) -> Tensor:
    """Return sign(x), 0 at 0: what autograd gives for |x|."""
    return x.sign()


@torch.no_grad()
def add_to_gradients(scales: Scales, extra: Tensor, optimizer: Optimizer) -> None:
    """Add to the gradients of the scales, as they are when the optimizer's step begins.

    An optimizer that unscales gradients itself (fused, under a GradScaler) finds the addition
    scaled as they are; one that maximizes finds it with the other sign. A scale to which no
    gradient came is left alone.

    Args:
        scales: which ones.
        extra: (C,) over all channels of `scales`.
        optimizer: about to step.
    """
    groups = groups_of(optimizer)
    scale = getattr(optimizer, "grad_scale", None)
    factor = 1.0 if scale is None else scale.to(scales.device)
    for layer, part in zip(scales.layers, scales.split(extra), strict=True):
        if layer.weight.grad is not None:
            sign = -1.0 if groups[id(layer.weight)].get("maximize") else 1.0
            layer.weight.grad.add_((part * factor * sign).to(layer.weight.grad))


class Subgradient:
    """s·Σ|γ| by its subgradient."""

    def __init__(self, scales: Scales, optimizer: Optimizer) -> None:
        self.scales, self.optimizer = scales, optimizer
        self.remainder: Tensor | None = None

    def before(self, strength: float) -> None:
        """Add s·sign(γ) to the gradients."""
        extra = strength * self.scales.costs * l1_subgradient(self._values())
        add_to_gradients(self.scales, extra, self.optimizer)

    def after(
        self, strength: float, moved: Mapping[int, bool], live: Tensor | float, most: int | None
    ) -> Tensor:
        """Return how many channels are 0; there is nothing left to do."""
        return self.scales.zeros()

    def penalty(self, strength: float) -> Tensor:
        """Return s·Σ w·|γ|, a scalar."""
        return strength * (self.scales.costs * self._values().abs()).sum()

    def _values(self) -> Tensor:
        return self.scales.read()[: self.scales.channels]
