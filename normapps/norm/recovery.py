"""Recovery: what gives a normalized activation its scale and shift back.

Affine and adaptive recoveries multiply and add per channel; only where the numbers come from
differs: a parameter, a condition, another image's moments.
"""

from __future__ import annotations

from torch import Tensor

from .moments import Moments
from .operations import restore, standardize
from .partition import INSTANCE


def affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """Return weight·x + bias per channel.

    Args:
        x: (N, C, *S).
        weight, bias: (C,), or (N, C) for a recovery of its own in each sample, or None.
    """
    if weight is not None:
        x = x * _channelwise(weight, x.dim())
    return x if bias is None else x + _channelwise(bias, x.dim())


def adain(content: Tensor, style: Moments, eps: float = 1e-5, own: Moments | None = None) -> Tensor:
    """Replace the per-channel mean and variance of each content feature map.

    Huang & Belongie 2017, eq. 8. Differs from the paper's code: biased variance on both sides, so
    that a feature stylized with its own moments is unchanged.

    Args:
        content: (N, C, H, W) features.
        style: instance moments of C channels, for one style or for N.
        eps: added to both variances.
        own: the content's instance moments where they are known (from a whole picture of which
            `content` is a tile); measured otherwise.
    """
    own = Moments.of(content, INSTANCE) if own is None else own
    return restore(standardize(content, own, eps), style, eps)


def _channelwise(values: Tensor, dim: int) -> Tensor:
    values = values.unsqueeze(0) if values.dim() == 1 else values
    return values.view(*values.shape, *[1] * (dim - 2))
