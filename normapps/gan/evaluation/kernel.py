"""Kernel distance: the squared maximum mean discrepancy under a cubic kernel.

Bińkowski et al. 2018, sec. 4: k(x, y) = (x·y/D + 1)³, the unbiased estimate, averaged over random
subsets. Unlike the Fréchet distance it has no bias by the number of pictures.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import InputError


def kernel_distance(
    real: Tensor, fake: Tensor, *, subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Return mean and standard deviation of the kernel distance over subsets, in float64.

    The mean estimates the distance without bias, so it can be slightly negative for sets that do
    not differ. Where a subset would be all of both sets there is one subset, with deviation 0.

    Args:
        real, fake: (N, D) and (M, D) features.
        subsets: how many are drawn.
        subset_size: pictures of each set in one, or as many as the smaller set has.
        seed: of the draws.

    Raises:
        InputError: unlike widths, fewer than two pictures, or no subset.
    """
    _check(real, fake, subsets, subset_size)
    size = min(subset_size, len(real), len(fake))
    if size == len(real) == len(fake):
        return float(_discrepancy(real.double(), fake.double())), 0.0
    draws = torch.Generator().manual_seed(seed)
    values = torch.stack(
        [_discrepancy(_draw(real, size, draws), _draw(fake, size, draws)) for _ in range(subsets)]
    )
    return float(values.mean()), float(values.std(correction=0))


def _discrepancy(x: Tensor, y: Tensor) -> Tensor:
    """The unbiased squared discrepancy of two sets of n; the diagonals of equal pairs stay out."""
    count = len(x)
    within = sum(kernel.sum() - kernel.trace() for kernel in (_kernel(x, x), _kernel(y, y)))
    return within / (count * (count - 1)) - 2 * _kernel(x, y).mean()


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1) ** 3


def _draw(x: Tensor, size: int, draws: torch.Generator) -> Tensor:
    return x[torch.randperm(len(x), generator=draws)[:size].to(x.device)].double()


def _check(real: Tensor, fake: Tensor, subsets: int, subset_size: int) -> None:
    if real.ndim != 2 or fake.ndim != 2 or real.shape[1] != fake.shape[1]:
        raise InputError(
            f"features are {tuple(real.shape)} and {tuple(fake.shape)}; they must be (N, D) and "
            "(M, D)"
        )
    if min(len(real), len(fake), subset_size) < 2 or subsets < 1:
        raise InputError(
            f"{len(real)} real and {len(fake)} drawn pictures, {subsets} subsets of {subset_size}: "
            "a kernel distance needs 2 pictures of each in 1 subset at least"
        )
