"""Recovery: what gives a normalized activation its scale and shift back.

Affine and adaptive recoveries multiply and add per channel; only where the numbers come from
differs: a parameter, a condition, another image's moments.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import InputError, unknown
from .diagonal import scale_and_shift
from .moments import Moments, mix
from .operations import transport, transport_matrix
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
    return scale_and_shift(x.to(common), scale.to(common), shift.to(common)).to(x.dtype)


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


TRANSFERS = {"adain": "diagonal", "wct": "zca", "ot": "ot", "cholesky": "cholesky"}
"""How features get a style's moments, and the map of `transport` that does it."""

_RIDGES = {"adain": 1e-5}
_RIDGE = 1e-2
"""Of maps of the whole covariance: keeps directions in which the content hardly varies from being
blown up to the style's (they hold rounding and compression noise)."""


def transfer(
    content: Tensor,
    style: Moments,
    method: str = "adain",
    own: Moments | None = None,
    alpha: float = 1.0,
    eps: float | None = None,
) -> Tensor:
    """Give feature maps a style's moments by one of the four maps of style transfer.

    Args:
        content: (N, C, H, W) features.
        style: instance moments of C channels, for one style or for N; full but for `adain`.
        method: `adain` (Huang & Belongie 2017): means and variances; `wct` (Li et al. 2017): the
            covariance, whitened by Σc^-½ and coloured by Σs^½; `ot`: the covariance by the
            Gaussian optimal transport map, the least displacement; `cholesky`: by L_s L_c⁻¹.
        own: the content's instance moments where they are known; measured otherwise.
        alpha: strength: 0 gives the content, 1 the style's moments.
        eps: ridge on both covariances; by default 1e-5 for `adain` and 1e-2 for the others.

    Raises:
        InputError: an unknown method, or moments that do not fit or are diagonal.
    """
    if method not in TRANSFERS:
        raise unknown("method", method, TRANSFERS)
    own = Moments.of(content, INSTANCE, full=method != "adain") if own is None else own
    ridge = _RIDGES.get(method, _RIDGE) if eps is None else eps
    return transport(content, own, style, TRANSFERS[method], ridge, alpha)


def part_way(own: Moments, style: Moments, alpha: float, method: str = "adain") -> Moments:
    """Return the moments that features have after `transfer` with a strength.

    Args:
        own, style: of the content's features and those that they are to get, G=1 each.
        alpha: 0 gives `own`, 1 `style`.
        method: as in `transfer`. Features that `ot`, `cholesky` or `adain` give these moments are
            those that it makes at this strength; for `wct` they are near them.
    """
    if method == "adain":
        return mix((own.diagonal(), style.diagonal()), (1 - alpha, alpha), "std")
    matrix = transport_matrix(own, style, TRANSFERS[method], _RIDGE)
    step = torch.lerp(torch.eye(matrix.shape[-1]).to(matrix), matrix, alpha)
    cov = step @ torch.as_tensor(own.cov) @ step.transpose(1, 2)
    mean = torch.lerp(own.mean, style.mean, alpha)
    return Moments(own.count, mean, cov.diagonal(dim1=1, dim2=2).clone(), cov, own.partition)


def _channelwise(values: Tensor, x: Tensor) -> Tensor:
    n, c = x.shape[:2]
    rows = values.shape[0] if values.dim() == 2 else 1
    # a comparison of shapes would ask an exported N whether it equals C
    if values.dim() not in (1, 2) or values.shape[-1] != c or rows not in (1, n):
        raise InputError(f"recovery of {tuple(values.shape)}: must be ({c},) or ({n}, {c})")
    return values.reshape(-1, c, *[1] * (x.dim() - 2))
