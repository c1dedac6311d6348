"""Moments: the statistics of an activation as a value that can be merged, mixed and stored.

Always in float32 or better, two-pass, merged by Chan et al. 1983 with counts: the same numbers
come out of one process, many batches, many tiles or many machines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError, unknown
from .diagonal import mean_and_variance
from .matrix import covariance
from .partition import BATCH, INSTANCE, Partition
from .precision import without_autocast


@dataclass(frozen=True, eq=False)
class Moments:
    """Mean and biased variance (or covariance) of G groups of D dimensions.

    Attributes:
        count: (G,) number of samples behind each group, or their sum of weights.
        mean: (G, D).
        var: (G, D) biased variance.
        cov: (G, D, D) biased covariance, or None for diagonal moments.
        partition: the partition the groups came from.

    Raises:
        InputError: the tensors' shapes do not belong together.
    """

    count: Tensor
    mean: Tensor
    var: Tensor
    cov: Tensor | None = None
    partition: Partition = INSTANCE

    def __post_init__(self) -> None:
        shape = self.mean.shape
        square = None if self.cov is None else (*shape, shape[-1])
        if len(shape) != 2 or self.var.shape != shape or self.count.shape != shape[:1]:
            got = [tuple(x.shape) for x in (self.count, self.mean, self.var)]
            raise InputError(f"moments {got}: count, mean, var must be (G,), (G, D), (G, D)")
        if self.cov is not None and self.cov.shape != square:
            raise InputError(f"covariance {tuple(self.cov.shape)}: must be {square}")

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
            weight: (N, 1, *S) or (1, 1, *S) weights of positions (a soft region). What is below 0
                counts as 0, so that the undershoot of a resampled mask does no harm and a GPU
                need not be waited for. A group whose weights are all zero gets mean 0,
                variance 0, count 0.

        Raises:
            InputError: x is not floating or does not fit the partition, or `weight` not x.
        """
        if not x.is_floating_point():
            raise InputError(f"activation of {x.dtype}: must be a floating dtype")
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        share, total = None, None
        if weight is not None:
            share, total = _shares(weight, x, partition)
        groups, _, samples = partition.shape(x.shape)
        count = x.new_full((groups,), samples) if total is None else total
        if not full:
            return cls(count, *_diagonal(x, partition, share), None, partition)
        mean, cov = _full(x, partition, share)
        return cls(count, mean, _diagonal_of(cov), cov, partition)

    @property
    def is_full(self) -> bool:
        """Whether the covariance is known."""
        return self.cov is not None

    def std(self, eps: float = 0.0) -> Tensor:
        """Return sqrt(var + eps): (G, D), with gradient 0 where that is 0."""
        return (self.var + eps).clamp_min(torch.finfo(self.var.dtype).tiny).sqrt()

    def diagonal(self) -> Moments:
        """Return the same moments without the covariance."""
        return replace(self, cov=None)

    def to(self, *args: Any, **options: Any) -> Moments:
        """Move or cast every tensor, with the arguments of `Tensor.to`."""
        return self._each(lambda tensor: tensor.to(*args, **options))

    def detach(self) -> Moments:
        """Return the same moments cut off from the graph of gradients."""
        return self._each(Tensor.detach)

    def merge(self, *others: Moments) -> Moments:
        """Return the moments of all samples together (Chan et al. 1983), exact and in any order.

        `merge` does the same for any number of parts as they come, as of the tiles of a picture.

        Raises:
            InputError: partitions, shapes or kinds (diagonal, full) differ.
        """
        return reduce(_merge_two, others, self)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Moments:
        cov = None if self.cov is None else change(self.cov)
        return Moments(change(self.count), change(self.mean), change(self.var), cov, self.partition)


def merge(parts: Iterable[Moments]) -> Moments:
    """Return the moments of all samples of the parts together, taking one part at a time.

    Parts are merged in pairs of like size, pairs of pairs and so on: a stream of n parts keeps
    log₂ n moments in memory, and its rounding error does not grow with n.

    Raises:
        InputError: no parts, or parts of different partitions, shapes or kinds.
    """
    waiting: list[tuple[int, Moments]] = []
    for part in parts:
        level, whole = 0, part
        while waiting and waiting[-1][0] == level:
            whole = waiting.pop()[1].merge(whole)
            level += 1
        waiting.append((level, whole))
    if not waiting:
        raise InputError("no moments to merge: give at least one part")
    return reduce(Moments.merge, (whole for _, whole in reversed(waiting)))


def mix(parts: Sequence[Moments], weights: Sequence[float], rule: str = "linear") -> Moments:
    """Mix moments by weights that are normalized to sum 1.

    Args:
        parts: moments of equal shape; the counts are added.
        weights: one non-negative number a part.
        rule: `linear` mixes means and (co)variances (Schneider et al. 2020); `pooled` adds the
            (co)variance between the means (the moments of the mixture distribution); `std` mixes
            means and standard deviations and drops the covariance, which for diagonal Gaussians
            is the Wasserstein barycentre and for AdaIN equals the weighted sum of the stylized
            features up to its eps. The covariance barycentre is `operations.barycenter`.

    Raises:
        InputError: no parts, parts or weights that do not fit, or an unknown rule.
    """
    if rule not in ("linear", "pooled", "std"):
        raise unknown("rule", rule, ("linear", "pooled", "std"))
    share = check_parts(parts, weights)
    mean = weighted_sum(share, [part.mean for part in parts])
    count = torch.stack([part.count for part in parts]).sum(0)
    if rule == "std":
        var = weighted_sum(share, [part.std() for part in parts]).square()
        return Moments(count, mean, var, None, parts[0].partition)
    var = weighted_sum(share, [part.var for part in parts])
    covs = [part.cov for part in parts if part.cov is not None]
    cov = weighted_sum(share, covs) if covs else None
    if rule == "pooled":
        shifts = [part.mean - mean for part in parts]
        var = var + weighted_sum(share, [s.square() for s in shifts])
        cov = None if cov is None else cov + weighted_sum(share, [_outer(s) for s in shifts])
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


def check_parts(parts: Sequence[Moments], weights: Sequence[float]) -> list[float]:
    """Return the weights scaled to sum 1, once parts and weights are found to fit together.

    Raises:
        InputError: they do not.
    """
    share = normalized_weights(weights, len(parts))
    for part in parts[1:]:
        _check_same(parts[0], part)
    return share


def weighted_sum(weights: Sequence[float], tensors: Sequence[Tensor]) -> Tensor:
    """Return Σᵢ weightᵢ·tensorᵢ of equally shaped tensors."""
    return torch.stack([weight * x for weight, x in zip(weights, tensors, strict=True)]).sum(0)


def _diagonal(x: Tensor, partition: Partition, share: Tensor | None) -> tuple[Tensor, Tensor]:
    """Mean and variance."""
    values, axes = partition.view(x)
    rows = partition.shape(x.shape)[:2]
    if share is None:
        mean, var = mean_and_variance(values, axes)
    else:
        share = partition.view(share.expand(x.shape))[0]
        mean = (values * share).sum(axes, keepdim=True)
        var = (values - mean).square_().mul(share).sum(axes)
    return mean.reshape(rows), var.reshape(rows)


def _full(x: Tensor, partition: Partition, share: Tensor | None) -> tuple[Tensor, Tensor]:
    """Mean and covariance."""
    if share is None:
        return covariance(x, partition)
    groups = partition.split(x)
    # one channel stands for all: a weight belongs to a position
    share = partition.split(share.expand(x.shape))[:, :1]
    mean = (groups * share).sum(2)
    centred = groups - mean.unsqueeze(2)
    with without_autocast(x):
        return mean, (centred * share) @ centred.transpose(1, 2)


def _shares(weight: Tensor, x: Tensor, partition: Partition) -> tuple[Tensor, Tensor]:
    """Return (N, 1, *S) weights that sum to 1 in each group of x, and the (G,) sums before."""
    wanted = (x.shape[0], 1, *x.shape[2:])
    if weight.shape not in (wanted, (1, *wanted[1:])):
        raise InputError(f"weight {tuple(weight.shape)}: must be {wanted}, or 1 instead of N")
    weight = weight.to(x.dtype).clamp_min(0).expand(wanted)
    # all channels weigh the same, so one is summed, by the partition that tells no channels apart
    one = _ONE_CHANNEL.get(partition.kind, partition)
    values, axes = one.view(weight)
    sums = values.sum(axes, keepdim=True)
    groups, _, samples = partition.shape(x.shape)
    channels = samples // one.shape(wanted)[2]
    share = values / (torch.where(sums > 0, sums, 1) * channels)
    total = sums.flatten() * channels
    return share.reshape(wanted), total.repeat_interleave(groups // total.shape[0])


_ONE_CHANNEL = {"layer": INSTANCE, "group": INSTANCE, "channel_group": BATCH}


def _diagonal_of(cov: Tensor) -> Tensor:
    """Return the variances as a tensor of their own, which a file can hold beside `cov`."""
    return cov.diagonal(dim1=1, dim2=2).clone()


def _merge_two(a: Moments, b: Moments) -> Moments:
    _check_same(a, b)
    count = a.count + b.count
    share = (b.count / torch.where(count > 0, count, 1)).unsqueeze(1)
    shift = b.mean - a.mean
    mean = a.mean + shift * share
    between = share * (1 - share)
    if a.cov is None or b.cov is None:
        var = a.var + (b.var - a.var) * share + shift.square() * between
        return Moments(count, mean, var, None, a.partition)
    cov = a.cov + (b.cov - a.cov) * share.unsqueeze(2) + _outer(shift) * between.unsqueeze(2)
    return Moments(count, mean, _diagonal_of(cov), cov, a.partition)


def _check_same(a: Moments, b: Moments) -> None:
    if a.partition != b.partition or a.mean.shape != b.mean.shape or a.is_full != b.is_full:
        raise InputError(
            f"moments do not fit together: {a.partition.kind} {tuple(a.mean.shape)}"
            f" full={a.is_full}, {b.partition.kind} {tuple(b.mean.shape)} full={b.is_full}"
        )


def _outer(shift: Tensor) -> Tensor:
    return shift.unsqueeze(2) * shift.unsqueeze(1)
