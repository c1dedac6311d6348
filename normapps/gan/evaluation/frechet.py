"""Fréchet distance between two sets of features, each seen as a Gaussian.

Heusel et al. 2017, eq. 6: d² = ‖μ₁−μ₂‖² + tr(Σ₁ + Σ₂ − 2(Σ₁Σ₂)^½), everything in float64.
Under the Inception network of 2015 and nothing else it is called FID. Differs from the authors'
code: the root is that of the symmetric Σ₁^½ Σ₂ Σ₁^½, which has the same trace, has no complex
values and exists for singular covariances; nothing is added to a diagonal.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ...errors import InputError
from ...norm.moments import Moments, merge
from ...norm.partition import BATCH
from ...norm.symmetric import symmetrized


def feature_moments(parts: Iterable[Tensor]) -> Moments:
    """Return mean and covariance of features that come in parts, in float64.

    Parts are merged as they come, so that memory does not grow with their number.

    Args:
        parts: (n, D) features each, any floating dtype.

    Raises:
        InputError: there is no part, a part has other axes or another D, or a value that is not
            finite.
    """
    return merge(Moments.of(_checked(part), BATCH, full=True) for part in parts)


def frechet_distance(a: Moments, b: Moments) -> float:
    """Return the squared Fréchet distance of two sets of features; 0 for equal ones.

    The estimate is biased upwards by the small number of pictures: compare only scores of equal
    numbers. With no more pictures than features a covariance is singular, the distance exists
    all the same, and the bias is large.

    Args:
        a, b: full moments of one group, as `feature_moments` returns them.

    Raises:
        InputError: diagonal moments, several groups, unlike widths, or fewer than two pictures.
    """
    first, second = _covariance(a), _covariance(b)
    if a.mean.shape != b.mean.shape:
        raise InputError(
            f"features of {a.mean.shape[1]} and {b.mean.shape[1]} numbers do not compare; take "
            "both from one extractor"
        )
    shift = (a.mean.double() - b.mean.double()).square().sum()
    total = shift + first.trace() + second.trace() - 2 * _trace_of_root(first, second)
    return max(0.0, float(total))  # of equal sets rounding can leave less than nothing


def _covariance(moments: Moments) -> Tensor:
    """The unbiased covariance (D, D), as numpy and every peer have it."""
    if moments.cov is None or len(moments.mean) != 1:
        raise InputError("a Fréchet distance needs the covariance of one group of features")
    count = moments.count[0].double()
    if count < 2:
        raise InputError(
            f"{int(count)} picture: a Fréchet distance needs 2 at least, and more than "
            f"{moments.mean.shape[1]}, the number of features, to mean much"
        )
    unbiased: Tensor = moments.cov[0].double() * (count / (count - 1))
    return unbiased


def _trace_of_root(first: Tensor, second: Tensor) -> Tensor:
    """The trace of (Σ₁Σ₂)^½; eigenvalues that rounding made negative are zeros."""
    values, vectors = torch.linalg.eigh(symmetrized(first))
    root = vectors * values.clamp_min(0).sqrt()
    inner = root.T @ second @ root
    trace: Tensor = torch.linalg.eigvalsh(symmetrized(inner)).clamp_min(0).sqrt().sum()
    return trace


def _checked(part: Tensor) -> Tensor:
    if part.ndim != 2:
        raise InputError(f"features are {tuple(part.shape)}; they must be (n, D)")
    if not part.isfinite().all():
        raise InputError("features hold values that are not finite; is the extractor damaged?")
    return part.double()
