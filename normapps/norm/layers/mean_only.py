"""Mean-only batch normalization (Salimans & Kingma 2016): centring, and the scale left alone."""

from __future__ import annotations

from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor

from ...errors import InputError
from ..moments import Moments
from ..partition import BATCH, Partition
from ..recovery import recover
from .base import AffineNorm, Recovery, Taxonomy, place_of
from .tracking import Tracking


class MeanOnlyBatchNorm(Tracking, AffineNorm):
    """γ·(x−μ) + β with the batch's mean of each channel, at inference the running one.

    Meant for layers whose weights are normalized (`normalize_weights_`): those fix the scale, and
    so in the paper there is a β but no γ (`affine`).

    Differs from the norm_matters code in `momentum`, which is torch's, the weight of the new
    (theirs: of the old), and in that γ and β have a start.

    Args:
        num_features: channels C.
        momentum: weight of a batch in the running mean; None averages all batches.
        affine, bias: have `weight`, and `bias`.
        sync, process_group: measure the batch of all processes together; see `Tracking`.
        layout, act, drop: see `NormLayer`.
    """

    taxonomy: ClassVar = Taxonomy(
        "batch",
        "centre",
        "affine",
        "Salimans & Kingma 2016",
        "2 passes; inference 1, 0 when folded",
    )

    def __init__(
        self,
        num_features: int,
        momentum: float | None = 0.1,
        affine: bool = True,
        *,
        sync: bool = False,
        process_group: Any = None,
        **carried: Unpack[Recovery],
    ) -> None:
        super().__init__(num_features, 0.0, affine, **carried)
        self.track(momentum, sync, process_group)
        self.track_variance(place_of(carried))
        self.running_var = None

    def normalize(self, x: Tensor) -> Tensor:
        """Normalize and recover (N, C, *S)."""
        mean = self.moments(x).mean
        return recover(x, (torch.ones_like(mean), -mean), self.weight, self.bias)

    def measure(self, x: Tensor, partition: Partition) -> Moments:
        """Measure the means of this process's batch (N, C, *S)."""
        return batch_means(x)

    def population(self) -> Moments:
        """Return the running means in float32 or better, with variance 0.

        Raises:
            InputError: the layer tracks none.
        """
        if self.running_mean is None:
            raise InputError(f"{type(self).__name__} tracks no population")
        mean = self.running_mean.to(torch.promote_types(self.running_mean.dtype, torch.float32))
        return Moments(mean.new_zeros(1), mean[None], torch.zeros_like(mean[None]), None, BATCH)


def batch_means(x: Tensor) -> Moments:
    """Return the means of (N, C, *S) by the partition `BATCH`, the variances left out: as 0."""
    values, axes = BATCH.view(x.to(torch.promote_types(x.dtype, torch.float32)))
    mean = values.mean(axes).reshape(1, -1)
    count = mean.new_full((1,), x.numel() // x.shape[1])
    return Moments(count, mean, torch.zeros_like(mean), None, BATCH)
