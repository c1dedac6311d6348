"""Batch norm by cheaper distances (Hoffer et al. 2018): the mean distance, or the largest k."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import ClassVar, Unpack

import torch
from torch import Tensor

from ...errors import InputError
from ..distributed import gather, is_joined
from ..moments import Moments
from ..partition import BATCH, Partition
from ..recovery import recover, standardization
from .base import NormLayer, Taxonomy
from .batch import BatchNorm
from .mean_only import batch_means
from .tracking import Tracked


class L1BatchNorm(BatchNorm):
    """Batch norm with s = √(π/2)·E|x−μ| for the standard deviation, which it is of a Gaussian.

    (x−μ)/√(s²+ε), then scale and shift. `running_var` keeps s², so that inference, folding and the
    state dict are batch norm's; of features that are not Gaussian it is no variance (of a Laplace
    distribution π/4 of it). `population.measure` measures s² too, and pools it as it does
    variances, which is exact for Gaussians.

    Differs from the norm_matters code: that averages 1/s, of which a momentum of 0.1 is the weight
    of the old, starts it at 0, and leaves γ and β without a start; ε stands beside s there.

    Its options are those of `BatchNorm`. `sync` is exact: one exchange for the means, one for the
    distances from them.
    """

    taxonomy: ClassVar = Taxonomy(
        "batch",
        "standardize (L1)",
        "affine",
        "Hoffer et al. 2018",
        "3 passes; inference 1, 0 when folded",
    )

    @classmethod
    def for_layout(cls, layout: str) -> type[NormLayer]:
        """Return the class itself: it is none of torch's."""
        return cls

    def normalize(self, x: Tensor) -> Tensor:
        """Normalize and recover (N, C, *S)."""
        if self.uses_population:
            return self._by_kernel(x, self.running_mean, self.running_var, False, 0.0)
        return recover(x, standardization(self.moments(x), self.eps), self.weight, self.bias)

    def measure(self, x: Tensor, partition: Partition) -> Moments:
        """Measure the mean and s² of this process's batch (N, C, *S)."""
        found = batch_means(x)
        return replace(found, var=self.spread(x, found.mean).square())

    def joined(self, measured: Moments, samples: int, x: Tensor) -> Moments:
        """Return the mean and s² of all processes, checked and in training remembered.

        Args:
            measured: this process's mean and s².
            samples: how many values a channel they are measured from.
            x: (N, C, *S), where N may be 0.

        Raises:
            InputError: too few samples, in all processes alike.
        """
        if self.sync and is_joined():
            measured = self._gathered(measured, x)
            samples = int(measured.count[0])
        self.check_samples(samples, x)
        if self.training and self.running_mean is not None:
            self.remember(measured.detach())
        return measured

    def _gathered(self, measured: Moments, x: Tensor) -> Moments:
        """The mean of all processes, and then s² about that."""
        whole = gather(measured, self.process_group)
        spread = self.spread(x, whole.mean) if len(x) else whole.mean * 0
        own = Moments(measured.count, spread, torch.zeros_like(spread), None, BATCH)
        return replace(whole, var=gather(own, self.process_group).mean.square())

    def pass_empty(self, x: Tensor) -> Tensor:
        """Return (0, C, *S) as it is; take part in what other processes measure."""
        if self.uses_population:
            return super().pass_empty(x)
        found = self.joined(self.no_moments(x), 0, x)
        return NormLayer.pass_empty(self, x + (found.mean + found.var).sum().to(x.dtype))

    def spread(self, x: Tensor, mean: Tensor) -> Tensor:
        """Return s of (N, C, *S) about means (1, C): (1, C), in the dtype of the means."""
        values, axes = BATCH.view(x.to(mean.dtype))
        distance = (values - BATCH.rows(mean, x.shape)).abs().mean(axes)
        return math.sqrt(math.pi / 2) * distance.reshape(mean.shape)


class TopKBatchNorm(L1BatchNorm):
    """`L1BatchNorm` with s from the mean of the k largest distances, as they are of a Gaussian.

    s = c·(mean of the k largest |x−μ| of n), with c = (k/n)/(2φ(t)) and t = Φ⁻¹(1−k/(2n)), the
    inverse of that mean in the limit of many samples (for k = 10 of 1000 within 0.5 %); with k = n
    that is √(π/2), as of L1.

    Differs from the norm_matters code, whose constant (1+√(π ln 4))/(2√(2 ln n)) does not know k:
    of 1000 Gaussian samples its s is 1.43σ for k = 1, 1.20σ for 10 and 0.33σ for all. Else as
    `L1BatchNorm`. With `sync`, the k largest of each process count, by its samples.

    Args:
        num_features: channels C.
        k: distances that count; all of them in a smaller batch.
        eps, momentum, affine, track_running_stats, bias, sync, process_group: see `BatchNorm`.
        layout, act, drop: see `NormLayer`.

    Raises:
        InputError: no channels, or k below 1.
    """

    taxonomy: ClassVar = Taxonomy(
        "batch",
        "standardize (top k)",
        "affine",
        "Hoffer et al. 2018",
        "3 passes and a selection of k; inference 1, 0 when folded",
    )

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        k: int = 10,
        **carried: Unpack[Tracked],
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, **carried)
        if k < 1:
            raise InputError(f"k {k}: must be at least 1")
        self.k = k

    def spread(self, x: Tensor, mean: Tensor) -> Tensor:
        """Return s of (N, C, *S) about means (1, C): (1, C), in the dtype of the means."""
        values = BATCH.split(x.to(mean.dtype)).squeeze(0)
        samples = values.shape[1]
        k = min(self.k, samples)
        largest = (values - mean.T).abs().topk(k, dim=1, sorted=False).values
        share = mean.new_full((), k / samples)
        return (largest.mean(1) * _inverse_tail_mean(share)).reshape(mean.shape)


def _inverse_tail_mean(share: Tensor) -> Tensor:
    """1/E[|z| where |z| is among its largest `share`] of standard normal z."""
    t: Tensor = torch.special.ndtri(share / 2)
    factor: Tensor = share * math.sqrt(math.pi / 2) * (t.square() / 2).exp()
    return factor
