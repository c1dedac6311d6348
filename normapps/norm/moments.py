"""Moments: the statistics of an activation as a value that can be merged, mixed and stored.

Always in float32 or better, two-pass, merged by Chan et al. 1983 with counts: the same numbers
come out of one process, many batches, many tiles or many machines.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce

import torch
from torch import Tensor

from ..errors import InputError
from .partition import INSTANCE, Partition


@dataclass(frozen=True)
class Moments:
    """Mean and biased variance (or covariance) of G groups of D dimensions.

    Attributes:
        count: (G,) number of samples behind each group, or their sum of weights.
        mean: (G, D).
        var: (G, D) biased variance.
        cov: (G, D, D) biased covariance, or None for diagonal moments.
        partition: the partition the groups came from.
    """

    count: Tensor
    mean: Tensor
    var: Tensor
    cov: Tensor | None = None
    partition: Partition = INSTANCE

    @classmethod
    def of(
        cls,
        x: Tensor,
        partition: Partition = INSTANCE,
        *,
        full: bool = False,
        weight: Tensor | None = None,
    ) -> Moments:
        """Measure an activation.

        Args:
            x: (N, C, *S), any floating dtype; half precision is measured in float32.
            partition: which elements share statistics.
            full: measure the covariance too.
            weight: (N, 1, *S) non-negative weights of positions (a soft region). A group whose
                weights are all zero gets mean 0, variance 0, count 0.
        """
        values = partition.split(_at_least_float32(x))
        if weight is None:
            return cls._plain(values, partition, full)
        spread = weight.to(values.dtype).expand(x.shape)
        return cls._weighted(values, partition.split(spread), partition, full)

    @classmethod
    def _plain(cls, values: Tensor, partition: Partition, full: bool) -> Moments:
        samples = values.shape[2]
        count = values.new_full((values.shape[0],), samples)
        if not full:
            var, mean = torch.var_mean(values, dim=2, correction=0)
            return cls(count, mean, var, None, partition)
        mean = values.mean(2)
        centred = values - mean.unsqueeze(2)
        cov = centred @ centred.transpose(1, 2) / samples
        return cls(count, mean, cov.diagonal(dim1=1, dim2=2), cov, partition)

    @classmethod
    def _weighted(cls, values: Tensor, weight: Tensor, partition: Partition, full: bool) -> Moments:
        if bool((weight < 0).any()):
            raise InputError("weights of a region must not be negative")
        total = weight.sum(2)
        norm = weight / total.clamp_min(torch.finfo(total.dtype).tiny).unsqueeze(2)
        mean = (values * norm).sum(2)
        centred = values - mean.unsqueeze(2)
        if not full:
            return cls(total[:, 0], mean, (centred.square() * norm).sum(2), None, partition)
        cov = (centred * norm) @ centred.transpose(1, 2)
        return cls(total[:, 0], mean, cov.diagonal(dim1=1, dim2=2), cov, partition)

    @property
    def is_full(self) -> bool:
        """Whether the covariance is known."""
        return self.cov is not None

    def std(self, eps: float = 0.0) -> Tensor:
        """Return sqrt(var + eps): (G, D)."""
        return (self.var + eps).sqrt()

    def diagonal(self) -> Moments:
        """Return the same moments without the covariance."""
        return replace(self, cov=None)

    def to(self, *args: torch.device | torch.dtype | str) -> Moments:
        """Move or cast every tensor, with the arguments of `Tensor.to`."""
        cov = None if self.cov is None else self.cov.to(*args)
        return replace(
            self,
            count=self.count.to(*args),
            mean=self.mean.to(*args),
            var=self.var.to(*args),
            cov=cov,
        )

    def merge(self, *others: Moments) -> Moments:
        """Return the moments of all samples together (Chan et al. 1983), exact and in any order.

        Raises:
            InputError: partitions, shapes or kinds (diagonal, full) differ.
        """
        return reduce(_merge_two, others, self)


def mix(parts: Sequence[Moments], weights: Sequence[float], rule: str = "linear") -> Moments:
    """Mix moments by weights that are normalized to sum 1.

    Args:
        parts: moments of equal shape.
        weights: one non-negative number a part.
        rule: `linear` mixes means and variances (Schneider et al. 2020); `pooled` adds the
            variance between the means (the moments of the mixture distribution); `std` mixes
            means and standard deviations, which for diagonal Gaussians is the Wasserstein
            barycentre and for AdaIN equals the weighted sum of the stylized features. The
            covariance barycentre is `operations.barycenter`.

    Raises:
        InputError: no parts, weights that do not fit, or an unknown rule.
    """
    if rule not in ("linear", "pooled", "std"):
        raise InputError(f"unknown rule '{rule}'; known: linear, pooled, std")
    share = normalized_weights(weights, len(parts))
    for part in parts[1:]:
        _check_same(parts[0], part)
    full = all(part.is_full for part in parts) and rule != "std"
    mean = _weighted_sum(share, [part.mean for part in parts])
    count = torch.stack([part.count for part in parts]).sum(0)
    if rule == "std":
        var = _weighted_sum(share, [part.std() for part in parts]).square()
        return Moments(count, mean, var, None, parts[0].partition)
    var = _weighted_sum(share, [part.var for part in parts])
    cov = _weighted_sum(share, [p.cov for p in parts if p.cov is not None]) if full else None
    if rule == "pooled":
        shifts = [part.mean - mean for part in parts]
        var = var + _weighted_sum(share, [s.square() for s in shifts])
        if cov is not None:
            cov = cov + _weighted_sum(share, [_outer(s) for s in shifts])
    return Moments(count, mean, var, cov, parts[0].partition)


def normalized_weights(weights: Sequence[float], parts: int) -> list[float]:
    """Scale weights to sum 1.

    Raises:
        InputError: another number than `parts`, a negative one, or a sum of 0.
    """
    if parts == 0 or len(weights) != parts:
        raise InputError(f"{len(weights)} weights for {parts} parts: give one weight a part")
    total = float(sum(weights))
    if min(weights) < 0 or not 0 < total < float("inf"):
        raise InputError(f"weights {list(weights)}: must be non-negative with a positive sum")
    return [weight / total for weight in weights]


def _merge_two(a: Moments, b: Moments) -> Moments:
    _check_same(a, b)
    count = a.count + b.count
    share = (b.count / count.clamp_min(torch.finfo(count.dtype).tiny)).unsqueeze(1)
    shift = b.mean - a.mean
    mean = a.mean + shift * share
    between = share * (1 - share)
    var = a.var + (b.var - a.var) * share + shift.square() * between
    if a.cov is None or b.cov is None:
        return Moments(count, mean, var, None, a.partition)
    cov = a.cov + (b.cov - a.cov) * share.unsqueeze(2) + _outer(shift) * between.unsqueeze(2)
    return Moments(count, mean, cov.diagonal(dim1=1, dim2=2), cov, a.partition)


def _check_same(a: Moments, b: Moments) -> None:
    if a.partition != b.partition or a.mean.shape != b.mean.shape or a.is_full != b.is_full:
        raise InputError(
            f"moments do not fit together: {a.partition.kind} {tuple(a.mean.shape)} full={a.is_full}"
            f" and {b.partition.kind} {tuple(b.mean.shape)} full={b.is_full}"
        )


def _weighted_sum(weights: Sequence[float], tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack([weight * x for weight, x in zip(weights, tensors, strict=True)]).sum(0)


def _outer(shift: Tensor) -> Tensor:
    return shift.unsqueeze(2) * shift.unsqueeze(1)


def _at_least_float32(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
