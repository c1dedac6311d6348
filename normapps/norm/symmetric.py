"""Roots of symmetric positive semi-definite matrices, with gradients that stay finite.

The autograd of `eigh` divides by differences of eigenvalues and is NaN where two agree (any
rank-deficient Σ+εI). The closed form here divides by sums of roots instead: with R = Σ^½ and a
gradient G of R, the gradient X of Σ solves the Sylvester equation RX + XR = G, which in the
eigenvectors of R is X_ij = G_ij/(√λi+√λj) (Daleckii-Krein). As X depends on R and G in the same
way, every further derivative exists too.

Eigenvalues below the dtype's resolution of the largest are raised to it: rounding can make them
zero or negative.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .precision import without_autocast


def sqrt(matrix: Tensor) -> Tensor:
    """Return Σ^½ of (..., D, D) symmetric positive semi-definite matrices."""
    return roots(matrix)[0]


def inverse_sqrt(matrix: Tensor) -> Tensor:
    """Return Σ^-½ of (..., D, D) symmetric positive definite matrices."""
    return roots(matrix)[1]


def roots(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return Σ^½ and Σ^-½ of (..., D, D) symmetric matrices, for the price of one of them."""
    apply: Any = _Roots.apply  # typed by some of the torch versions that we allow only
    root, inverse = apply(matrix)
    return root, inverse


def eigen(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return the eigenvalues (..., D), ascending and positive, and eigenvectors (..., D, D).

    The gradient is `eigh`'s own but where eigenvalues agree to float32's resolution of the
    largest: there that is NaN, or noise, and here the axes count as fixed.
    """
    apply: Any = _Eigen.apply
    values, vectors = apply(symmetrized(matrix))
    return _positive(values), vectors


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


def _positive(values: Tensor) -> Tensor:
    info = torch.finfo(values.dtype)
    # the cube of a root stands in the denominator of a gradient and must not underflow
    smallest = (info.eps * values[..., -1:]).clamp_min(info.tiny**0.6)
    return values.maximum(smallest)


class _Eigen(torch.autograd.Function):
    """eigh of symmetric matrices: ∂Σ = U(∂Λ + (Uᵀ∂U)/(λj−λi))Uᵀ."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor) -> tuple[Tensor, Tensor]:
        values, vectors = torch.linalg.eigh(matrix)
        ctx.save_for_backward(values, vectors)
        return values, vectors

    @staticmethod
    def backward(ctx: Any, of_values: Tensor, of_vectors: Tensor) -> Tensor:
        values, vectors = ctx.saved_tensors
        gaps = values.unsqueeze(-2) - values.unsqueeze(-1)
        noise = torch.finfo(torch.float32).eps * values.abs().amax(-1)[..., None, None]
        turned = vectors.transpose(-1, -2)
        with without_autocast(values):
            inner = (turned @ of_vectors) / gaps.masked_fill(gaps.abs() <= noise, torch.inf)
            return symmetrized(vectors @ (inner + of_values.diag_embed()) @ turned)


class _Roots(torch.autograd.Function):
    """Σ^½ and Σ^-½ by one eigh, with the closed-form gradient."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor) -> tuple[Tensor, Tensor]:
        values, vectors = torch.linalg.eigh(symmetrized(matrix))
        roots = _positive(values).sqrt()
        with without_autocast(matrix):
            root = (vectors * roots.unsqueeze(-2)) @ vectors.transpose(-1, -2)
            inverse = (vectors / roots.unsqueeze(-2)) @ vectors.transpose(-1, -2)
        ctx.save_for_backward(root, inverse, roots, vectors)
        ctx.set_materialize_grads(False)
        return root, inverse

    @staticmethod
    def backward(ctx: Any, of_root: Tensor | None, of_inverse: Tensor | None) -> Tensor | None:
        root, inverse, roots, vectors = ctx.saved_tensors
        with without_autocast(root):
            if of_inverse is not None:
                through = -inverse @ of_inverse @ inverse
                of_root = through if of_root is None else of_root + through
            if of_root is None:
                return None
            return _solve_sylvester(root, symmetrized(of_root), roots, vectors)


class _Sylvester(torch.autograd.Function):
    """The symmetric X with RX + XR = G, R and G symmetric, by R's `values` and `vectors`."""

    @staticmethod
    def forward(ctx: Any, root: Tensor, right: Tensor, values: Tensor, vectors: Tensor) -> Tensor:
        with without_autocast(root):
            turned = vectors.transpose(-1, -2) @ right @ vectors
            turned = turned / (values.unsqueeze(-1) + values.unsqueeze(-2))
            solution = vectors @ turned @ vectors.transpose(-1, -2)
        ctx.save_for_backward(root, solution, values, vectors)
        return solution

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        root, solution, values, vectors = ctx.saved_tensors
        with without_autocast(root):
            of_right = _solve_sylvester(root, symmetrized(grad), values, vectors)
            both = of_right @ solution
            return -(both + both.transpose(-1, -2)), of_right, None, None


def _solve_sylvester(root: Tensor, right: Tensor, values: Tensor, vectors: Tensor) -> Tensor:
    apply: Any = _Sylvester.apply
    solution: Tensor = apply(root, right, values, vectors)
    return solution
