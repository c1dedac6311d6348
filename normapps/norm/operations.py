"""Operations on an activation and its moments: centre, scale, standardize, whiten, transport.

Each takes an activation (N, C, *S) and `Moments` whose partition says how they apply; moments of
one group (G=1) apply to every group, and those that do not fit raise InputError. An activation is
computed on in float32 or better, D×D matrices in float64. The result has the activation's dtype;
the diagonal operations, and all on the instance partition, keep its memory format.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from ..errors import InputError, unknown
from .diagonal import scale_and_shift
from .matrix import multiply
from .moments import Moments, check_parts, weighted_sum
from .partition import Partition
from .precision import without_autocast
from .symmetric import cholesky, eigen, inverse_sqrt, roots, sqrt, symmetrized

Method = TypeVar("Method")

_STEPS = 25
"""Of Newton's iteration where it is to arrive: condition 1e8 takes 24."""


def center(x: Tensor, moments: Moments) -> Tensor:
    """Subtract the mean."""
    return _rowwise(x, moments.partition, torch.ones_like(moments.mean), -moments.mean)


def scale(x: Tensor, moments: Moments, eps: float = 1e-5) -> Tensor:
    """Divide by the root mean square sqrt(mean² + var + eps), without centring (RMS norm)."""
    factor = (moments.mean.square() + moments.var + eps).rsqrt()
    return _rowwise(x, moments.partition, factor, torch.zeros_like(factor))


def standardize(x: Tensor, moments: Moments, eps: float = 1e-5) -> Tensor:
    """Subtract the mean and divide by sqrt(var + eps)."""
    factor = (moments.var + eps).rsqrt()
    return _rowwise(x, moments.partition, factor, -moments.mean * factor)


def restore(x: Tensor, moments: Moments, eps: float = 1e-5) -> Tensor:
    """Undo `standardize`: multiply by sqrt(var + eps) and add the mean."""
    return _rowwise(x, moments.partition, moments.std(eps), moments.mean)


def whiten(
    x: Tensor, moments: Moments, method: str = "zca", eps: float = 1e-5, iterations: int = 5
) -> Tensor:
    """Centre, then multiply by `whitening_matrix`.

    Args:
        x: (N, C, *S).
        moments: full moments.
        method, eps, iterations: see `whitening_matrix`.

    Raises:
        InputError: diagonal moments, moments that do not fit x, an unknown method, or fewer than
            one iteration.
    """
    matrix = whitening_matrix(moments, method, eps, iterations)
    return _matrixwise(x, moments.partition, matrix, moments.mean, None)


def whitening_matrix(
    moments: Moments, method: str = "zca", eps: float = 1e-5, iterations: int = 5
) -> Tensor:
    """Return W: (G, D, D) with W(Σ+εI)Wᵀ = I, in the dtype of the moments.

    Args:
        moments: full moments.
        method: `zca` W=Σ^-½, `cholesky` W=L⁻¹, `pca` W=Λ^-½Uᵀ, in whose gradient
            axes of equal eigenvalues count as fixed, or `newton`, Σ^-½ by Newton's iteration: of
            products alone, but it whitens in part only, the small eigenvalues least.
        eps: ridge added to Σ (never less than the resolution of its dtype).
        iterations: of `newton`. With 5, the smallest of 64 eigenvalues comes out as 0.59 where
            all are equal, and as 0.20 at condition 10.

    Raises:
        InputError: diagonal moments, an unknown method, or fewer than one iteration.
    """
    if method == "newton":
        _, matrix = _newton(_ridged(moments, eps), iterations)
    else:
        matrix = _choose(WHITENING, "whitening", method, "newton")(_ridged(moments, eps))
    return matrix.to(moments.mean)


def color(x: Tensor, moments: Moments, method: str = "zca", eps: float = 1e-5) -> Tensor:
    """Undo `whiten` of the same method: multiply by W⁻¹ and add the mean.

    Raises:
        InputError: diagonal moments, or an unknown method.
    """
    matrix = _choose(COLORING, "coloring", method)(_ridged(moments, eps))
    return _matrixwise(x, moments.partition, matrix, None, moments.mean)


def transport(
    x: Tensor,
    source: Moments,
    target: Moments,
    method: str = "ot",
    eps: float = 1e-5,
    alpha: float = 1.0,
) -> Tensor:
    """Give x, whose moments are `source`, the moments `target`.

    Args:
        x: (N, C, *S).
        source: moments of x; their partition is the one that counts.
        target: moments of equal D, of one group or as many as `source`.
        method: `diagonal` (AdaIN; needs no covariance), `zca` (WCT), `cholesky`, or `ot`, the
            Gaussian optimal transport map, which reaches the target with the least mean squared
            displacement; `newton` is the same map of products alone, for runtimes that have no
            eigenvalues, good to 1e-6 where the ridged covariances' condition is below 1e4.
        eps: ridge on both sides, so that transport to the own moments is the identity.
        alpha: strength, 0 leaves x as it is. With `ot` and `diagonal` the way from 0 to 1 is the
            Wasserstein geodesic.

    Raises:
        InputError: moments that do not fit, or are diagonal where a covariance is needed, or an
            unknown method.
    """
    for part in (source, target):
        source.partition.check_fit(part.mean, x.shape)
    mean = (1 - alpha) * source.mean + alpha * target.mean
    if method == "diagonal":
        factor = ((target.var + eps) / (source.var + eps)).sqrt()
        factor = alpha * factor + (1 - alpha)
        return _rowwise(x, source.partition, factor, mean - source.mean * factor)
    matrix = _map(source, target, method, eps)
    matrix = torch.lerp(_eye(matrix), matrix, alpha)
    return _matrixwise(x, source.partition, matrix, source.mean, mean)


def transport_matrix(source: Moments, target: Moments, method: str, eps: float = 1e-5) -> Tensor:
    """Return T: (G, D, D) with T(Σ_source+εI)Tᵀ = Σ_target+εI, in the dtype of the source.

    Raises:
        InputError: diagonal moments, moments that do not fit together, or an unknown method.
    """
    return _map(source, target, method, eps).to(source.mean)


def barycenter(
    parts: Sequence[Moments], weights: Sequence[float], eps: float = 1e-6, iterations: int = 50
) -> Moments:
    """Return the Wasserstein barycentre of Gaussians with full moments.

    Two have it in closed form, on the geodesic: MΣ₁M with M = w₁I + w₂T. More are iterated by
    Álvarez-Esteban et al. 2016: B ← B^-½ (Σᵢ wᵢ (B^½ Σᵢ B^½)^½)² B^-½. Averaging the transport
    maps to each part instead misses the covariance.

    Args:
        parts: full moments of equal shape; the counts are added.
        weights: one non-negative number a part, scaled to sum 1.
        eps: ridge that keeps the Σᵢ and B invertible, taken off the result again.
        iterations: for three parts or more; 50 leave an error below 1e-4 where the Σᵢ have full
            rank, about 1e-3 where they share a null space.

    Raises:
        InputError: diagonal moments, or parts and weights that do not fit together.
    """
    share = check_parts(parts, weights)
    covs = [_ridged(part, eps) for part in parts]
    with without_autocast(covs[0]):
        if len(covs) == 2:
            step = torch.lerp(_eye(covs[0]), _transport_ot(*covs), share[1])
            between = step @ covs[0] @ step.transpose(1, 2)
        else:
            between = _fixed_point(covs, share, iterations)
    mean = weighted_sum(share, [part.mean for part in parts])
    return _gaussian(parts, mean, between - eps * _eye(between))


def mix_factors(
    parts: Sequence[Moments], weights: Sequence[float], method: str = "zca", eps: float = 1e-6
) -> Moments:
    """Average means, and what covariances are the square of: to WCT what `mix`'s `std` is to AdaIN.

    Features that `transport` gives these moments by the same method are the weighted sum of those
    that it gives each part's, up to eps.

    Args:
        parts: full moments of equal shape; the counts are added.
        weights: one non-negative number a part, scaled to sum 1.
        method: `zca`, the roots Σ^½, or `cholesky`, the triangular factors.
        eps: ridge that keeps the Σᵢ invertible, taken off the result again.

    Raises:
        InputError: diagonal moments, an unknown method, or parts and weights that do not fit.
    """
    share = check_parts(parts, weights)
    factor = _choose(COLORING, "coloring", method)
    covs = [_ridged(part, eps) for part in parts]
    with without_autocast(covs[0]):
        root = weighted_sum(share, [factor(cov) for cov in covs])
        mixed = root @ root.transpose(1, 2)
    mean = weighted_sum(share, [part.mean for part in parts])
    return _gaussian(parts, mean, mixed - eps * _eye(mixed))


def _gaussian(parts: Sequence[Moments], mean: Tensor, between: Tensor) -> Moments:
    """Moments that mix parts, the counts added, in the dtype of the mean."""
    count = torch.stack([part.count for part in parts]).sum(0)
    cov = symmetrized(between).to(mean)
    return Moments(count, mean, cov.diagonal(dim1=1, dim2=2).clone(), cov, parts[0].partition)


def _fixed_point(covs: Sequence[Tensor], share: Sequence[float], iterations: int) -> Tensor:
    between = weighted_sum(share, covs)
    for _ in range(iterations):
        root, inverse = roots(between)
        step = inverse @ weighted_sum(share, [sqrt(root @ cov @ root) for cov in covs])
        between = step @ step.transpose(1, 2)
    return between


def _transport_zca(source: Tensor, target: Tensor) -> Tensor:
    return sqrt(target) @ inverse_sqrt(source)


def _transport_cholesky(source: Tensor, target: Tensor) -> Tensor:
    lower = cholesky(source)
    matrix: Tensor = torch.linalg.solve_triangular(lower, cholesky(target), upper=False, left=False)
    return matrix


def _transport_ot(source: Tensor, target: Tensor) -> Tensor:
    root, inverse = roots(source)
    return inverse @ sqrt(root @ target @ root) @ inverse


def _transport_newton(source: Tensor, target: Tensor) -> Tensor:
    root, inverse = _newton(source, _STEPS)
    between, _ = _newton(root @ target @ root, _STEPS)
    return inverse @ between @ inverse


def _pca(cov: Tensor) -> Tensor:
    values, vectors = eigen(cov)
    return values.rsqrt().unsqueeze(2) * vectors.transpose(1, 2)


def _pca_color(cov: Tensor) -> Tensor:
    values, vectors = eigen(cov)
    return vectors * values.sqrt().unsqueeze(1)


def _cholesky_whitening(cov: Tensor) -> Tensor:
    inverse: Tensor = torch.linalg.solve_triangular(cholesky(cov), _eye(cov), upper=False)
    return inverse


def _newton(cov: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """Σ^½ and Σ^-½ by the coupled iteration, stable where the papers' own (P ← ½(3P−P³Σ)) is not.

    Huang et al. 2019, Iterative Normalization, eq. 6 in exact arithmetic.
    """
    if iterations < 1:
        raise InputError(f"iterations {iterations}: must be at least 1")
    trace = cov.diagonal(dim1=1, dim2=2).sum(1)[:, None, None]
    root, inverse = cov / trace, _eye(cov).expand_as(cov)
    with without_autocast(cov):
        for _ in range(iterations):
            step = 1.5 * _eye(cov) - 0.5 * (inverse @ root)
            root, inverse = root @ step, step @ inverse
    return root * trace.sqrt(), inverse / trace.sqrt()


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
    "newton": _transport_newton,
}


def _choose(table: dict[str, Method], kind: str, name: str, *others: str) -> Method:
    if name not in table:
        raise unknown(f"{kind} method", name, (*table, *others))
    return table[name]


def _map(source: Moments, target: Moments, method: str, eps: float) -> Tensor:
    """The transport matrix in float64."""
    make = _choose(TRANSPORT, "transport", method, "diagonal")
    a, b = source.mean.shape, target.mean.shape
    if a[1] != b[1] or not (a[0] == 1 or b[0] == 1 or a[0] == b[0]):
        raise InputError(
            f"no transport from {a[0]} x {a[1]} to {b[0]} x {b[1]} (groups x dimensions)"
        )
    with without_autocast(source.mean):
        return make(_ridged(source, eps), _ridged(target, eps))


def _ridged(moments: Moments, eps: float) -> Tensor:
    """Σ + εI in float64, ε at least what rounding in the dtype of Σ can take below zero."""
    if moments.cov is None:
        raise InputError("moments are diagonal: measure them by Moments.of(..., full=True)")
    # Metal has neither float64 nor eigh
    device = "cpu" if moments.cov.device.type == "mps" else moments.cov.device
    cov = moments.cov.to(device, torch.float64)
    rounding = torch.finfo(moments.cov.dtype).eps * cov.detach().square().sum((1, 2)).sqrt()
    return cov + (eps + rounding)[:, None, None] * _eye(cov)


def _rowwise(x: Tensor, partition: Partition, factor: Tensor, shift: Tensor) -> Tensor:
    """factor·x + shift, one of each a row, in one pass over x in its own memory format."""
    values, _ = partition.view(x)
    values = values.to(torch.promote_types(x.dtype, factor.dtype))
    factor, shift = (partition.rows(each, x.shape).to(values.dtype) for each in (factor, shift))
    y = scale_and_shift(values, factor, shift).to(x.dtype)
    return y if y.dim() == x.dim() else y.reshape(x.shape)


def _matrixwise(
    x: Tensor, partition: Partition, matrix: Tensor, before: Tensor | None, after: Tensor | None
) -> Tensor:
    """matrix·(x − before) + after in each group; before and after are (G, D) or (1, D)."""
    partition.check_fit(matrix, x.shape)
    precise = x.to(torch.promote_types(x.dtype, torch.float32))
    if before is not None:
        precise = _rowwise(precise, partition, torch.ones_like(before), -before)
    return multiply(precise, partition, matrix, after).to(x.dtype)


def _eye(like: Tensor) -> Tensor:
    return torch.eye(like.shape[-1], dtype=like.dtype, device=like.device)
