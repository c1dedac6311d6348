"""Roots of symmetric positive semi-definite matrices, with gradients that stay finite.

The autograd of `eigh` divides by differences of eigenvalues and is NaN where two agree (any
rank-deficient Σ+εI). The closed forms here divide by sums of roots instead: with Σ = UΛUᵀ and a
gradient G of f(Σ), the gradient of Σ is U(K∘(UᵀGU))Uᵀ, K_ij = 1/(√λi+√λj) for Σ^½ and
−1/(√λi√λj(√λi+√λj)) for Σ^-½ (Daleckii-Krein).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def sqrt(matrix: Tensor) -> Tensor:
    """Return Σ^½ of (..., D, D) symmetric positive semi-definite matrices."""
    root: Tensor = _Root.apply(matrix, False)
    return root


def inverse_sqrt(matrix: Tensor) -> Tensor:
    """Return Σ^-½ of (..., D, D) symmetric positive definite matrices.

    Eigenvalues below the dtype's resolution of the largest are raised to it: rounding can make
    them zero or negative, and a ridge smaller than that resolution cannot help.
    """
    root: Tensor = _Root.apply(matrix, True)
    return root


def cholesky(matrix: Tensor) -> Tensor:
    """Return the lower Cholesky factor of (..., D, D), without ever raising or syncing.

    Where a matrix is not numerically positive definite the factor is the root of its diagonal
    (the diagonal method), chosen by `where`.
    """
    lower, info = torch.linalg.cholesky_ex((matrix + matrix.transpose(-1, -2)) / 2)
    tiny = torch.finfo(matrix.dtype).tiny
    diagonal = matrix.diagonal(dim1=-2, dim2=-1).clamp_min(tiny).sqrt().diag_embed()
    failed = (info != 0)[..., None, None]
    return torch.where(failed, diagonal, torch.where(failed, torch.zeros_like(lower), lower))


class _Root(torch.autograd.Function):
    """Σ^½ or Σ^-½ by eigh, with the closed-form gradient."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, inverse: bool) -> Tensor:
        values, vectors = torch.linalg.eigh((matrix + matrix.transpose(-1, -2)) / 2)
        resolution = torch.finfo(values.dtype).eps * values[..., -1:].clamp_min(0)
        roots = values.maximum(resolution).clamp_min(torch.finfo(values.dtype).tiny).sqrt()
        ctx.save_for_backward(roots, vectors)
        ctx.inverse = inverse
        powers = roots.reciprocal() if inverse else roots
        return (vectors * powers.unsqueeze(-2)) @ vectors.transpose(-1, -2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        roots, vectors = ctx.saved_tensors
        total = roots.unsqueeze(-1) + roots.unsqueeze(-2)
        kernel = total.reciprocal()
        if ctx.inverse:
            kernel = -kernel / (roots.unsqueeze(-1) * roots.unsqueeze(-2))
        turned = vectors.transpose(-1, -2) @ grads[0] @ vectors
        grad = vectors @ (kernel * turned) @ vectors.transpose(-1, -2)
        return (grad + grad.transpose(-1, -2)) / 2, None
