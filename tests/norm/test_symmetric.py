"""Matrix roots: values of scipy, gradients that stay finite where eigh's are NaN."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from normapps.norm.symmetric import cholesky, eigen, inverse_sqrt, roots, sqrt

D = 5


def _matrix(rank: int = D, ridge: float = 0.0, seed: int = 0, copies: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(copies, D, rank, generator=generator, dtype=torch.float64)
    return a @ a.mT + ridge * torch.eye(D, dtype=torch.float64)


HARD = {
    "regular": _matrix(seed=1),
    "identity": torch.eye(D, dtype=torch.float64).repeat(2, 1, 1),
    "rank-deficient": _matrix(rank=2, ridge=1e-2),
    "twice the same": torch.diag(torch.tensor([3.0, 1, 1, 2, 2], dtype=torch.float64))[None],
}
hard = pytest.mark.parametrize("matrix", HARD.values(), ids=HARD.keys())


def _naive_inverse_sqrt(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.rsqrt().unsqueeze(-2)) @ vectors.mT


# values


@hard
def test_roots_are_those_of_scipy(matrix: Tensor) -> None:
    for one, root, inverse in zip(matrix, sqrt(matrix), inverse_sqrt(matrix), strict=True):
        want = scipy.linalg.sqrtm(one.numpy()).real
        np.testing.assert_allclose(root, want, atol=1e-10)
        np.testing.assert_allclose(inverse, np.linalg.inv(want), atol=1e-9)


@settings(max_examples=25)
@given(seed=st.integers(0, 10**6), scale=st.floats(-6, 6))
def test_the_root_squared_is_the_matrix(seed: int, scale: float) -> None:
    matrix = _matrix(ridge=1e-2, seed=seed) * 10**scale
    root, inverse = roots(matrix)
    torch.testing.assert_close(root @ root, matrix, rtol=1e-9, atol=1e-9 * 10**scale)
    eye = torch.eye(D, dtype=torch.float64).expand_as(matrix)
    torch.testing.assert_close(inverse @ matrix @ inverse, eye, rtol=1e-8, atol=1e-8)


def test_what_rounding_made_indefinite_has_finite_roots() -> None:
    matrix = _matrix(rank=1).float() - 1e-8 * torch.eye(D)
    assert torch.linalg.eigvalsh(matrix.double()).min() < 0
    root, inverse = roots(matrix)
    assert inverse.isfinite().all()
    torch.testing.assert_close(root @ root, matrix, rtol=1e-4, atol=1e-4)
    assert eigen(matrix)[0].min() > 0


def test_the_zero_matrix_has_finite_roots_and_gradients() -> None:
    matrix = torch.zeros(1, D, D, requires_grad=True)
    root, inverse = roots(matrix)
    assert root.abs().max() < 1e-10
    (root.sum() + inverse.diagonal(dim1=1, dim2=2).sum()).backward()
    assert inverse.isfinite().all()
    assert matrix.grad is not None
    assert matrix.grad.isfinite().all()


def test_one_triangle_is_as_good_as_the_other() -> None:
    matrix = _matrix(seed=3)
    skewed = matrix + torch.triu(torch.ones(D, D, dtype=torch.float64), 1)
    mended = (skewed + skewed.mT) / 2
    torch.testing.assert_close(sqrt(skewed), sqrt(mended))
    torch.testing.assert_close(cholesky(skewed), cholesky(mended))


# gradients


@hard
@pytest.mark.parametrize("function", [sqrt, inverse_sqrt, roots, cholesky])
def test_gradients(matrix: Tensor, function: Callable[[Tensor], Tensor]) -> None:
    assert torch.autograd.gradcheck(function, matrix.clone().requires_grad_())


def test_the_gradient_of_eigen_is_that_of_eigh_where_that_exists() -> None:
    matrix = _matrix(seed=1)
    target = torch.randn(2, *matrix.shape, generator=torch.Generator().manual_seed(0)).double()

    def axes(function: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Tensor:
        given = matrix.clone().requires_grad_()
        values, vectors = function((given + given.mT) / 2)
        (vectors.square() * target[0] + values.unsqueeze(1) * target[1]).sum().backward()
        assert given.grad is not None
        return given.grad

    torch.testing.assert_close(axes(eigen), axes(torch.linalg.eigh))


@pytest.mark.parametrize("spectrum", [[1, 1, 1, 1, 1], [2, 1, 0, 0, 0], [3, 1, 1, 2, 2]])
def test_axes_of_equal_eigenvalues_count_as_fixed(spectrum: list[float]) -> None:
    matrix = torch.diag(torch.tensor(spectrum, dtype=torch.float64)).requires_grad_()
    values, vectors = eigen(matrix)
    (vectors.square() @ torch.arange(5.0).double() + values).sum().backward()
    assert matrix.grad is not None
    assert matrix.grad.isfinite().all()


@pytest.mark.parametrize("spectrum", [[1, 1, 1, 1, 1], [2, 1, 0, 0, 0], [3, 1, 1, 2, 2]])
def test_where_the_gradient_of_eigh_is_nan_ours_is_not(spectrum: list[float]) -> None:
    exact = torch.diag(torch.tensor(spectrum, dtype=torch.float64) + 1e-2)
    gradients = []
    for function in (_naive_inverse_sqrt, inverse_sqrt):
        matrix = exact.clone().requires_grad_()
        function(matrix)[0, 1].backward()
        assert matrix.grad is not None
        gradients.append(matrix.grad)
    naive, ours = gradients
    assert naive.isnan().any()
    root = exact.diagonal().sqrt()
    want = -0.5 / (root[0] * root[1] * (root[0] + root[1]))
    torch.testing.assert_close(ours[0, 1], want)
    torch.testing.assert_close(ours[1, 0], want)
    assert ours.count_nonzero() == 2


@hard
@pytest.mark.parametrize("function", [sqrt, inverse_sqrt, roots])
def test_second_derivatives(matrix: Tensor, function: Callable[[Tensor], Tensor]) -> None:
    assert torch.autograd.gradgradcheck(function, matrix[:1].clone().requires_grad_())


def test_autocast_does_not_touch_roots_and_their_gradients() -> None:
    found = []
    for enabled in (False, True):
        matrix = _matrix(ridge=1.0).float().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            root, inverse = roots(matrix)
            (root.square().sum() + inverse.sum()).backward()
        found.append((root, inverse, matrix.grad))
    for plain, cast in zip(*found, strict=True):
        torch.testing.assert_close(cast, plain, rtol=0, atol=0)


# Cholesky


def test_the_factor_is_that_of_numpy() -> None:
    matrix = _matrix(ridge=0.1)
    np.testing.assert_allclose(cholesky(matrix), np.linalg.cholesky(matrix.numpy()), atol=1e-12)


def test_an_indefinite_matrix_falls_back_to_its_diagonal_alone() -> None:
    good = _matrix(ridge=0.1, copies=1)
    bad = good.clone()
    bad[:, 0, 1] = bad[:, 1, 0] = 100.0
    with pytest.raises(np.linalg.LinAlgError):
        np.linalg.cholesky(bad.numpy())
    got = cholesky(torch.cat([bad, good]))
    torch.testing.assert_close(got[0], bad[0].diagonal().sqrt().diag())
    torch.testing.assert_close(got[1:], torch.linalg.cholesky(good))


def test_the_fallback_has_the_gradient_of_the_diagonal_and_harms_no_other() -> None:
    good = _matrix(ridge=0.1, copies=1)
    bad = good.clone()
    bad[:, 0, 1] = bad[:, 1, 0] = 100.0
    both = torch.cat([bad, good]).requires_grad_()
    cholesky(both).sum().backward()
    assert both.grad is not None
    torch.testing.assert_close(both.grad[0], (0.5 / bad[0].diagonal().sqrt()).diag())
    alone = good.clone().requires_grad_()
    torch.linalg.cholesky(alone).sum().backward()
    torch.testing.assert_close(both.grad[1:], alone.grad)


def test_even_a_negative_diagonal_does_not_raise() -> None:
    assert cholesky(-torch.eye(3)[None]).isfinite().all()
