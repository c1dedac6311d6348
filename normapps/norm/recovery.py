"""Recovery: what gives a normalized activation its scale and shift back.

Affine and adaptive recoveries multiply and add per channel; only where the numbers come from
differs: a parameter, a condition, another image's moments.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import InputError
from .moments import Moments
from .operations import transport
from .partition import INSTANCE


def affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """Return weight·x + bias per channel, in the dtype of x.

    Args:
        x: (N, C, *S).
        weight, bias: (C,), or (N, C) for a recovery of its own in each sample, or None.

    Raises:
        InputError: weight or bias do not fit x.
    """
    scale = None if weight is None else _channelwise(weight, x)
    shift = None if bias is None else _channelwise(bias, x)
    if scale is None:
        return x if shift is None else (x + shift).to(x.dtype)
    if shift is None:
        return (x * scale).to(x.dtype)
    common = torch.promote_types(x.dtype, scale.dtype)
    return torch.addcmul(shift.to(common), x.to(common), scale.to(common)).to(x.dtype)


def standardization(moments: Moments, eps: float = 1e-5) -> tuple[Tensor, Tensor]:
    """Return (G, D) scale and shift: scale·x + shift is x standardized by moments of G × D."""
    scale = (moments.var + eps).rsqrt()
    return scale, -moments.mean * scale


def recover(
    x: Tensor,
    standardization: tuple[Tensor, Tensor],
    weight: Tensor | None,
    bias: Tensor | None,
) -> Tensor:
    """Standardize and recover in one multiply-add, in the dtype of x.

    Args:
        x: (N, C, *S).
        standardization: scale and shift, (1, C) or (N, C) in float32 or better.
        weight, bias: of the recovery: (C,), (1, C), (N, C), or None.

    Raises:
        InputError: they do not fit x.
    """
    scale, shift = standardization
    if weight is not None:
        scale, shift = scale * weight, shift * weight
    return affine(x, scale, shift if bias is None else shift + bias)


def adain(
    content: Tensor,
    style: Moments,
    eps: float = 1e-5,
    own: Moments | None = None,
    alpha: float = 1.0,
) -> Tensor:
    """Replace the per-channel mean and variance of each content feature map.

    Huang & Belongie 2017, eq. 8. Differs from the paper's code: biased variance on both sides, so
    that a feature stylized with its own moments is unchanged. One multiply-add over the content.

    Args:
        content: (N, C, H, W) features.
        style: instance moments of C channels, for one style or for N.
        eps: added to both variances.
        own: the content's instance moments where they are known (from a whole picture of which
            `content` is a tile); measured otherwise.
        alpha: strength: 0 gives the content, 1 the style's moments.

    Raises:
        InputError: moments of another number of channels or images.
    """
    own = Moments.of(content, INSTANCE) if own is None else own
    return transport(content, own, style, "diagonal", eps, alpha)


def _channelwise(values: Tensor, x: Tensor) -> Tensor:
    n, c = x.shape[:2]
    rows = values.shape[0] if values.dim() == 2 else 1
    # a comparison of shapes would ask an exported N whether it equals C
    if values.dim() not in (1, 2) or values.shape[-1] != c or rows not in (1, n):
        raise InputError(f"recovery of {tuple(values.shape)}: must be ({c},) or ({n}, {c})")
    return values.reshape(-1, c, *[1] * (x.dim() - 2))
