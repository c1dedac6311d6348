"""Roots of symmetric positive semi-definite matrices, with gradients that stay finite.

The autograd of `eigh` divides by differences of eigenvalues and is NaN where two agree (any
rank-deficient Σ+εI). The closed forms here divide by sums of roots instead: with Σ = UΛUᵀ and a
gradient G of f(Σ), the gradient of Σ is U(K∘(UᵀGU))Uᵀ, K_ij = 1/(√λi+√λj) for Σ^½ and
−1/(√λi√λj(√λi+√λj)) for Σ^-½ (Daleckii-Krein). They are differentiable once.

Eigenvalues below the dtype's resolution of the largest are raised to it: rounding can make them
zero or negative.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .moments import without_autocast


def sqrt(matrix: Tensor) -> Tensor:
    """Return Σ^½ of (..., D, D) symmetric positive semi-definite matrices."""
    return roots(matrix)[0]


def inverse_sqrt(matrix: Tensor) -> Tensor:
    """Return Σ^-½ of (..., D, D) symmetric positive definite matrices."""
    return roots(matrix)[1]


def roots(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return Σ^½ and Σ^-½ of (..., D, D) symmetric matrices, for the price of one of them."""
    root, inverse = _Roots.apply(matrix)  # type: ignore[no-untyped-call]
    return root, inverse


def eigen(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return the eigenvalues (..., D), ascending and positive, and eigenvectors (..., D, D).

    The gradient is `eigh`'s own: NaN where eigenvalues agree.
    """
    values, vectors = torch.linalg.eigh(symmetrized(matrix))
    info = torch.finfo(values.dtype)
    # the cube of a root stands in the denominator of a gradient and must not underflow
    smallest = (info.eps * values[..., -1:]).clamp_min(info.tiny**0.6)
    return values.maximum(smallest), vectors


def cholesky(matrix: Tensor) -> Tensor:
    """Return the lower Cholesky factor of (..., D, D), without ever raising or syncing.

    Where a matrix is not numerically positive definite the factor is the root of its diagonal
    (the diagonal method), chosen by `where`.
    """
    matrix = symmetrized(matrix)
    failed = torch.linalg.cholesky_ex(matrix.detach()).info != 0
    diagonal = matrix.diagonal(dim1=-2, dim2=-1).clamp_min(torch.finfo(matrix.dtype).tiny)
    # chosen before the factorization: the gradient of one that failed is NaN, and NaN·0 stays NaN
    safe = torch.where(failed[..., None, None], diagonal.diag_embed(), matrix)
    lower: Tensor = torch.linalg.cholesky_ex(safe).L
    return lower


def symmetrized(matrix: Tensor) -> Tensor:
    """Return (Σ + Σᵀ)/2: the factorizations read one triangle, a gradient must see both."""
    return (matrix + matrix.transpose(-1, -2)) / 2


class _Roots(torch.autograd.Function):
    """Σ^½ and Σ^-½ by one eigh, with the closed-form gradient."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor) -> tuple[Tensor, Tensor]:
        values, vectors = eigen(matrix)
        roots = values.sqrt()
        ctx.save_for_backward(roots, vectors)
        ctx.set_materialize_grads(False)
        with without_autocast(matrix):
            root = (vectors * roots.unsqueeze(-2)) @ vectors.transpose(-1, -2)
            inverse = (vectors / roots.unsqueeze(-2)) @ vectors.transpose(-1, -2)
        return root, inverse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_root: Tensor | None, of_inverse: Tensor | None) -> Tensor | None:
        roots, vectors = ctx.saved_tensors
        kernel = 1 / (roots.unsqueeze(-1) + roots.unsqueeze(-2))
        kernels = (kernel, -kernel / (roots.unsqueeze(-1) * roots.unsqueeze(-2)))
        with without_autocast(vectors):
            turned = [
                k * (vectors.transpose(-1, -2) @ grad @ vectors)
                for k, grad in zip(kernels, (of_root, of_inverse), strict=True)
                if grad is not None
            ]
            if not turned:
                return None
            return symmetrized(vectors @ sum(turned[1:], turned[0]) @ vectors.transpose(-1, -2))
