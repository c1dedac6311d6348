"""Small networks whose every number a test can compute by hand."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def with_moment(values: list[float], samples: int = 12, seed: int = 0) -> Tensor:
    """Return (samples, d) float64 vectors whose E[xxᵀ] has just these eigenvalues."""
    generator = torch.Generator().manual_seed(seed)
    width = len(values)
    tall = torch.randn(samples, width, generator=generator, dtype=torch.float64)
    square = torch.randn(width, width, generator=generator, dtype=torch.float64)
    u, q = torch.linalg.qr(tall)[0], torch.linalg.qr(square)[0]
    roots = torch.tensor(values, dtype=torch.float64).sqrt()
    return samples**0.5 * (u * roots) @ q.T


def two_layers(seed: int = 0) -> nn.Sequential:
    """Return linear – ReLU in place – linear, 5 → 4 → 3, in float64."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(5, 4), nn.ReLU(inplace=True), nn.Linear(4, 3)).double()


def normalized(norm: nn.Module, *, bias: bool = False, seed: int = 0) -> nn.Sequential:
    """Return conv – norm of 8 channels – ReLU – pooling – linear, 3 → 8 → 4."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, bias=bias),
            norm,
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, 4),
        )


def pictures(count: int, side: int = 8, seed: int = 1) -> Tensor:
    """Return (count, 3, side, side) float32 noise."""
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))
