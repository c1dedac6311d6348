"""Gradient normalization of a discriminator (Wu et al. 2021, GN-GAN, eq. 11)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class GradientNormalized(nn.Module):
    """f̂(x) = f(x)/(‖∇f(x)‖ + |f(x)|) for every sample, in [−1, 1].

    Where f is piecewise linear (convolutions, ReLU), ‖∇f̂‖ = (‖∇f‖/(‖∇f‖ + |f|))² ≤ 1; between the
    pieces f̂ jumps, so that it is not 1-Lipschitz. Where f and its gradient are both 0, where the
    paper's code gives NaN, f̂ is 0 with a gradient of 0.

    Training differentiates twice, which `torch.compile` does not: leave it uncompiled. Not for
    `torch.inference_mode`, since the value itself needs a gradient; `torch.no_grad` is fine.

    Args:
        network: f, called as `network(x)` or `network(x, y)` → logits (N,); must treat samples
            apart (no batch norm).
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Return f̂ (N,), in float32 or better, of pictures (N, C, H, W) and labels (N,)."""
        keeps_graph = torch.is_grad_enabled()
        with torch.enable_grad():
            x = x if x.requires_grad and keeps_graph else x.detach().requires_grad_()
            logits: Tensor = self.network(x) if y is None else self.network(x, y)
            (slope,) = torch.autograd.grad(logits.sum(), x, create_graph=keeps_graph)
            out = gradient_normalized(logits, slope)
        return out if keeps_graph else out.detach()


def gradient_normalized(logits: Tensor, gradient: Tensor) -> Tensor:
    """Return f/(‖∇f‖ + |f|), and 0 where that is 0/0.

    Args:
        logits: f, (N,).
        gradient: ∇f, (N, *S).
    """
    exact = torch.promote_types(logits.dtype, torch.float32)
    logits, squares = logits.to(exact), gradient.to(exact).flatten(1).square().sum(1)
    is_flat = squares == 0
    # the root's slope at 0 is infinite: a flat sample's norm is the constant 0
    norm = (squares + is_flat).sqrt() * ~is_flat
    below = norm + logits.abs()
    return logits / (below + (below == 0))
