"""Operations on an activation and its moments: centre, scale, standardize, whiten, transport.

Each takes an activation (N, C, *S) and `Moments` whose partition says how they apply. Moments of
one group (G=1) of an instance partition apply to every sample. Computation is in the dtype of the
moments (float32 or better), the result in that of the activation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from ..errors import InputError, unknown
from .moments import Moments, normalized_weights
from .partition import INSTANCE
from .symmetric import cholesky, inverse_sqrt, sqrt

Method = TypeVar("Method")


def center(x: Tensor, moments: Moments) -> Tensor:
    """Subtract the mean."""
    return _rowwise(x, moments, torch.ones_like(moments.mean), -moments.mean)


def scale(x: Tensor, moments: Moments, eps: float = 1e-5) -> Tensor:
    """Divide by the root mean square sqrt(mean² + var + eps), without centring (RMS norm)."""
    rms = (moments.mean.square() + moments.var + eps).rsqrt()
    return _rowwise(x, moments, rms, torch.zeros_like(rms))


def standardize(x: Tensor, moments: Moments, eps: float = 1e-5) -> Tensor:
    """Subtract the mean and divide by sqrt(var + eps)."""
    factor = (moments.var + eps).rsqrt()
    return _rowwise(x, moments, factor, -moments.mean * factor)


def restore(x: Tensor, moments: Moments, eps: float = 1e-5) -> Tensor:
    """Undo `standardize`: multiply by sqrt(var + eps) and add the mean."""
    return _rowwise(x, moments, moments.std(eps), moments.mean)


def whiten(x: Tensor, moments: Moments, method: str = "zca", eps: float = 1e-5) -> Tensor:
    """Centre, then multiply by a W with W(Σ+εI)Wᵀ = I.

    Args:
        x: (N, C, *S).
        moments: full moments.
        method: `zca` W=Σ^-½, `pca` W=Λ^-½Uᵀ, `cholesky` W=L⁻¹ (solved, never formed).
        eps: ridge added to Σ.
    """
    matrix = _choose(WHITENING, "whitening", method)(_ridged(moments, eps))
    return _matrixwise(x, moments, matrix, None)


def color(x: Tensor, moments: Moments, method: str = "zca", eps: float = 1e-5) -> Tensor:
    """Undo `whiten` of the same method: multiply by W⁻¹ and add the mean."""
    matrix = _choose(COLORING, "coloring", method)(_ridged(moments, eps))
    identity = Moments(
        moments.count, torch.zeros_like(moments.mean), moments.var, None, moments.partition
    )
    return _matrixwise(x, identity, matrix, moments.mean)


def transport(
    x: Tensor, source: Moments, target: Moments, method: str = "ot", eps: float = 1e-5
) -> Tensor:
    """Give x, whose moments are `source`, the moments `target`.

    Args:
        x: (N, C, *S).
        source, target: moments of equal D; `diagonal` needs no covariance.
        method: `diagonal` (AdaIN), `zca` (WCT), `cholesky`, or `ot`, the Gaussian optimal
            transport map, which reaches the target with the least mean squared displacement.
        eps: ridge on both sides, so that transport to the own moments is the identity.
    """
    if method == "diagonal":
        return restore(standardize(x, source, eps), target, eps)
    return _matrixwise(x, source, transport_matrix(source, target, method, eps), target.mean)


def transport_matrix(source: Moments, target: Moments, method: str, eps: float = 1e-5) -> Tensor:
    """Return T: (G, D, D) with T(Σ_source+εI)Tᵀ = Σ_target+εI."""
    maps = _choose(TRANSPORT, "transport", method)
    return maps(_ridged(source, eps), _ridged(target, eps))


def barycenter(
    parts: Sequence[Moments], weights: Sequence[float], eps: float = 1e-6, iterations: int = 20
) -> Moments:
    """Return the Wasserstein barycentre of Gaussians with full moments.

    Fixed point of Álvarez-Esteban et al. 2016: B ← B^-½ (Σᵢ wᵢ (B^½ Σᵢ B^½)^½)² B^-½. Averaging
    the transport maps to each part instead misses the covariance. The ridge `eps` keeps B
    invertible and stays in the result.
    """
    share = normalized_weights(weights, len(parts))
    covs = [_ridged(part, eps) for part in parts]
    b = torch.stack([w * cov for w, cov in zip(share, covs, strict=True)]).sum(0)
    for _ in range(iterations):
        root, inverse = sqrt(b), inverse_sqrt(b)
        inner = sum(w * sqrt(root @ cov @ root) for w, cov in zip(share, covs, strict=True))
        step = inverse @ inner
        b = _symmetrized(step @ step.transpose(1, 2))
    mean = torch.stack([w * p.mean for w, p in zip(share, parts, strict=True)]).sum(0)
    count = torch.stack([part.count for part in parts]).sum(0)
    return Moments(count, mean, b.diagonal(dim1=1, dim2=2), b, parts[0].partition)


def _transport_zca(source: Tensor, target: Tensor) -> Tensor:
    return sqrt(target) @ inverse_sqrt(source)


def _transport_cholesky(source: Tensor, target: Tensor) -> Tensor:
    lower = cholesky(source)
    return torch.linalg.solve_triangular(lower, cholesky(target), upper=False, left=False)


def _transport_ot(source: Tensor, target: Tensor) -> Tensor:
    root, inverse = sqrt(source), inverse_sqrt(source)
    return inverse @ sqrt(_symmetrized(root @ target @ root)) @ inverse


def _pca(cov: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(_symmetrized(cov))
    return values.clamp_min(_tiny(values)).rsqrt().unsqueeze(2) * vectors.transpose(1, 2)


def _pca_color(cov: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(_symmetrized(cov))
    return vectors * values.clamp_min(_tiny(values)).sqrt().unsqueeze(1)


def _cholesky_whitening(cov: Tensor) -> Tensor:
    eye = torch.eye(cov.shape[-1], dtype=cov.dtype, device=cov.device).expand_as(cov)
    return torch.linalg.solve_triangular(cholesky(cov), eye, upper=False)


WHITENING: dict[str, Callable[[Tensor], Tensor]] = {
    "zca": inverse_sqrt,
    "pca": _pca,
    "cholesky": _cholesky_whitening,
}
COLORING: dict[str, Callable[[Tensor], Tensor]] = {
    "zca": sqrt,
    "pca": _pca_color,
    "cholesky": cholesky,
}
TRANSPORT: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "zca": _transport_zca,
    "cholesky": _transport_cholesky,
    "ot": _transport_ot,
}


def _choose(table: dict[str, Method], kind: str, name: str) -> Method:
    if name not in table:
        raise unknown(f"{kind} method", name, table)
    return table[name]


def _ridged(moments: Moments, eps: float) -> Tensor:
    if moments.cov is None:
        raise InputError("full moments are needed: Moments.of(x, partition, full=True)")
    return moments.cov + eps * torch.eye(
        moments.cov.shape[-1], dtype=moments.cov.dtype, device=moments.cov.device
    )


def _rowwise(x: Tensor, moments: Moments, factor: Tensor, shift: Tensor) -> Tensor:
    if moments.partition == INSTANCE and x.is_floating_point():
        return _per_channel(x, factor, shift)
    groups = moments.partition.split(x.to(torch.promote_types(x.dtype, factor.dtype)))
    y = torch.addcmul(shift.unsqueeze(2), groups, factor.unsqueeze(2))
    return moments.partition.join(y, x.shape).to(x.dtype)


def _per_channel(x: Tensor, factor: Tensor, shift: Tensor) -> Tensor:
    """Scale and shift without a reshape, so that a channels_last activation stays one."""
    view = (*factor.shape, *[1] * (x.dim() - 2))
    return torch.addcmul(shift.view(view), x.to(factor.dtype), factor.view(view)).to(x.dtype)


def _matrixwise(x: Tensor, moments: Moments, matrix: Tensor, mean: Tensor | None) -> Tensor:
    groups = moments.partition.split(x.to(torch.promote_types(x.dtype, matrix.dtype)))
    y = matrix @ (groups - moments.mean.unsqueeze(2))
    y = y if mean is None else y + mean.unsqueeze(2)
    return moments.partition.join(y, x.shape).to(x.dtype)


def _symmetrized(matrix: Tensor) -> Tensor:
    return (matrix + matrix.transpose(-1, -2)) / 2


def _tiny(values: Tensor) -> float:
    return torch.finfo(values.dtype).tiny
