"""Pooling: moments of larger groups from instance moments, without a look at the activation."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import InputError
from .moments import Moments
from .partition import BATCH, INSTANCE, LAYER, Partition


def pool(instance: Moments, partition: Partition) -> Moments:
    """Return the batch or layer moments of an activation from its instance moments, exactly.

    The variance of a whole is the mean variance within its parts plus the variance between their
    means, each part weighing as much as its count.

    Args:
        instance: (N, C) moments by the partition `INSTANCE`; a covariance is left out.
        partition: `BATCH` gives (1, C) moments, `LAYER` (N, 1).

    Raises:
        InputError: moments of another partition, or another partition asked for.
    """
    if instance.partition != INSTANCE or partition not in (BATCH, LAYER):
        raise InputError(
            f"cannot pool '{instance.partition.kind}' moments to '{partition.kind}': only "
            "'instance' to 'batch' or 'layer'"
        )
    if partition == LAYER:
        channels = instance.mean.shape[1]
        mean, var = _pooled(instance, instance.mean.new_tensor(1 / channels), axis=1)
        return Moments(instance.count * channels, mean, var, None, LAYER)
    total = instance.count.sum(0, keepdim=True)
    share = (instance.count / torch.where(total > 0, total, 1)).unsqueeze(1)
    return Moments(total, *_pooled(instance, share, axis=0), None, BATCH)


def _pooled(parts: Moments, share: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Mean and variance of parts that lie along an axis and have shares of the whole."""
    mean = (parts.mean * share).sum(axis, keepdim=True)
    spread = parts.var + (parts.mean - mean).square()
    return mean, (spread * share).sum(axis, keepdim=True)
