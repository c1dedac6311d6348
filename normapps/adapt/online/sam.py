"""Sharpness-aware minimization: the gradient where the loss near by is worst.

Foret et al., "Sharpness-Aware Minimization for Efficiently Improving Generalization", ICLR 2021.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def climbed(parameters: Sequence[nn.Parameter], norm: Tensor, rho: float) -> Iterator[None]:
    """Move parameters along their gradients by a distance, θ + ρ·g/‖g‖, and back at the end.

    They come back to the bit. A gradient that is to be taken there, forward and backward, is taken
    inside of the block.

    Args:
        parameters: those without a gradient stay.
        norm: ‖g‖ of all of them together, no axes.
        rho: ρ, the distance in the space of the parameters.
    """
    moved = [each for each in parameters if each.grad is not None]
    before = [each.detach().clone() for each in moved]
    with torch.no_grad():
        share = rho / (norm + 1e-12)
        for each in moved:
            each.addcmul_(each.grad, share.to(each))  # type: ignore[arg-type]
    try:
        yield
    finally:
        with torch.no_grad():
            for each, old in zip(moved, before, strict=True):
                each.copy_(old)
