"""Gate: a learnt weight between two normalizations that stays within 0 and 1."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..moments import Moments
from ..recovery import standardization


def unit_interval(gate: Tensor) -> Tensor:
    """Clamp to [0, 1], with a gradient for what lies outside wherever it leads back inside.

    The papers clamp the parameter itself after each optimizer step. Here the optimizer needs to
    know nothing: a parameter may overshoot by one step, counts as 0 or 1 then, and is pushed no
    further. With the plain gradient of a clamp it would never come back. What leads outside is
    cut in each backward pass, so before gradients are accumulated or averaged over processes.
    """
    clamp: Any = _UnitInterval.apply
    clamped: Tensor = clamp(gate)
    return clamped


def blend(
    first: Moments, second: Moments, gate: Tensor, eps: float = 1e-5
) -> tuple[Tensor, Tensor]:
    """Return the `standardization` gate·(by first) + (1 − gate)·(by second).

    Args:
        first, second: moments of C channels or of one, for one sample or for N.
        gate: (C,).
    """
    gate = gate.to(first.mean)
    pairs = zip(standardization(second, eps), standardization(first, eps), strict=True)
    scale, shift = (a * gate + b * (1 - gate) for b, a in pairs)  # exact at both ends
    return scale, shift


class _UnitInterval(torch.autograd.Function):
    @staticmethod
    def forward(gate: Tensor) -> Tensor:
        return gate.clamp(0, 1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (gate,) = ctx.saved_tensors
        leaving = ((gate > 1) & (grad < 0)) | ((gate < 0) & (grad > 0))
        return grad.masked_fill(leaving, 0)
