"""Moment exchange, MoEx (Li et al. 2021): features with the moments of another sample."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from ...errors import InputError
from ..moments import Moments
from ..operations import transport
from ..partition import POSITION, Partition

_OF_A_SAMPLE = ("position", "instance", "layer", "group")


def moment_exchange(
    x: Tensor, order: Tensor, partition: Partition = POSITION, eps: float = 1e-5
) -> Tensor:
    """Give each sample's features the moments of another: σ_B·(x−μ_A)/σ_A + μ_B (eq. 1).

    Differs from the authors' code: biased variances, so that a sample given its own moments stays
    as it is with few channels too, and none as E[x²] − E[x]².

    Args:
        x: (N, C, *S).
        order: (N,) integers: sample i gets the moments of sample order[i].
        partition: of each sample alone: `POSITION` (best in the paper), `INSTANCE`, `LAYER` or
            `groups(n)`.
        eps: added to the variances.

    Raises:
        InputError: another partition, or an order of another length.
    """
    if partition.kind not in _OF_A_SAMPLE:
        raise InputError(
            f"partition '{partition.kind}' has no moments of one sample to exchange; give one of "
            f"{', '.join(_OF_A_SAMPLE)}"
        )
    if order.shape != x.shape[:1]:
        raise InputError(f"order {tuple(order.shape)}: must be ({x.shape[0]},), a sample each")
    own = Moments.of(x, partition)
    mean, var = (
        each.unflatten(0, (x.shape[0], -1))[order].flatten(0, 1) for each in (own.mean, own.var)
    )
    return transport(x, own, replace(own, mean=mean, var=var), "diagonal", eps)


class MomentExchange(nn.Module):
    """`moment_exchange` with a random other sample in training, and the loss that goes with it.

    Put it behind a network's first stage, and train with `loss`. Inference leaves x as it is.

    Args:
        share: λ, weight of the sample's own label; 0.9 in the paper.
        probability: of exchanging at all, in each training step.
        partition, eps: see `moment_exchange`.
        generator: of the random numbers, on the CPU; torch's default one if None.

    Attributes:
        order: whose moments the samples of the last training step got; None if they kept theirs.

    Raises:
        InputError: a share or probability outside 0…1.

    Example:
        >>> exchange = MomentExchange()
        >>> network = nn.Sequential(stem, exchange, rest)
        >>> exchange.loss(F.cross_entropy, network(x), labels).backward()
    """

    order: Tensor | None

    def __init__(
        self,
        share: float = 0.9,
        probability: float = 0.5,
        partition: Partition = POSITION,
        eps: float = 1e-5,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("share", share), ("probability", probability)):
            if not 0 <= value <= 1:
                raise InputError(f"{name} {value}: must be in 0…1")
        self.share, self.probability = share, probability
        self.partition, self.eps, self.generator = partition, eps, generator
        self.order = None

    def forward(self, x: Tensor) -> Tensor:
        """Exchange the moments of (N, C, *S) in training."""
        self.order = None
        if not self.training or len(x) == 0 or not self._is_drawn():
            return x
        self.order = torch.randperm(len(x), generator=self.generator).to(x.device)
        return moment_exchange(x, self.order, self.partition, self.eps)

    def loss(
        self, criterion: Callable[[Tensor, Tensor], Tensor], output: Tensor, target: Tensor
    ) -> Tensor:
        """Return λ·criterion(output, own target) + (1−λ)·criterion(output, the other's) (eq. 2).

        Args:
            criterion: of outputs and targets.
            output: (N, ...) of the last forward pass.
            target: (N, ...).
        """
        own = criterion(output, target)
        if self.order is None:
            return own
        return self.share * own + (1 - self.share) * criterion(output, target[self.order])

    def extra_repr(self) -> str:
        """Return what `print(layer)` shows in the brackets."""
        return f"share={self.share}, probability={self.probability}, {self.partition.kind}"

    def _is_drawn(self) -> bool:
        return float(torch.rand((), generator=self.generator)) < self.probability
