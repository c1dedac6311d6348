"""Polarization of scales (Zhuang et al. 2020): some go to 0, the others stay away from it.

R(γ) = t·Σ|γ| − Σ|γ − γ̄|, with γ̄ the mean over all of the network's scales, 0 ≤ γ ≤ 1. L1 alone
shrinks what is kept as much as what goes; here a scale above the mean is pulled down by t − 1
and one below it by t + 1. Its gradient is added as `subgradient` does, and after the step γ is
clamped to [0, 1], where those at 0 are exactly 0 and stay so until the loss wants them.

Differs from the paper's code in that the gradient at γ = 0 is that of γ itself, t, and not
t·sign(0): on [0, 1] that is what |γ| is.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..errors import InputError
from .scales import Scales
from .subgradient import add_to_gradients


def polarization(x: Tensor, costs: Tensor, t: float = 1.2) -> Tensor:
    """Return Σ w·(t·|x| − |x − x̄|), a scalar.

    Args:
        x: (C,) scales of the whole network, in [0, 1].
        costs: (C,) weights w; a channel of weight 0 does not count in the mean x̄ either.
        t: how much is to go: more, the greater.
    """
    return (costs * (t * x.abs() - (x - _mean(x, costs)).abs())).sum()


def polarization_gradient(x: Tensor, costs: Tensor, t: float = 1.2) -> Tensor:
    """Return the gradient of `polarization` (C,), through the mean too, one-sided at 0."""
    side = costs * (x - _mean(x, costs)).sign()
    counted = costs != 0
    return costs * t - side + counted * (side.sum() / counted.sum())


class Polarization:
    """Polarization of the scales of a model."""

    def __init__(self, scales: Scales, optimizer: Optimizer, t: float = 1.2) -> None:
        if not t > 0:
            raise InputError(f"t {t}: must be greater than 0")
        self.scales, self.optimizer, self.t = scales, optimizer, t
        self.remainder: Tensor | None = None
        self._check()

    def before(self, strength: float) -> None:
        """Add the gradient of the penalty to the gradients."""
        extra = strength * polarization_gradient(self._values(), self.scales.costs, self.t)
        add_to_gradients(self.scales, extra, self.optimizer)

    def after(
        self, strength: float, moved: Mapping[int, bool], live: Tensor | float, most: int | None
    ) -> Tensor:
        """Clamp the scales to [0, 1]; return how many channels are 0."""
        values = self.scales.read()
        clamped = torch.where(self.scales.chosen, values.clamp(0, 1), values)
        self.scales.write(clamped)
        return self.scales.zeros()

    def penalty(self, strength: float) -> Tensor:
        """Return the strength times `polarization`, a scalar."""
        return strength * polarization(self._values(), self.scales.costs, self.t)

    def _values(self) -> Tensor:
        return self.scales.read()[: self.scales.channels]

    def _check(self) -> None:
        chosen = self.scales.split(self.scales.chosen[: self.scales.channels])
        for layer, taken, values in zip(
            self.scales.layers, chosen, self.scales.split(self._values()), strict=True
        ):
            outside = taken & ((values < 0) | (values > 1))
            if bool(outside.any()):
                channel = int(outside.nonzero()[0])
                raise InputError(
                    f"layer '{layer.name}': scale {channel} is {float(values[channel]):.4g},"
                    " polarization keeps them in [0, 1]: train from scratch, or take"
                    " kind='proximal'"
                )


def _mean(x: Tensor, costs: Tensor) -> Tensor:
    counted = costs != 0
    return (x * counted).sum() / counted.sum()
