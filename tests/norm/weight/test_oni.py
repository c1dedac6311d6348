"""ONI against the paper's iteration and the ZCA that it tends to, in float64."""

from __future__ import annotations

from math import sqrt

import pytest
import torch
from torch import Tensor, nn

from normapps.errors import InputError
from normapps.norm.weight.oni import newton_rows, oni_


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def _paper(rows: Tensor, iterations: int) -> Tensor:
    """B_T·V with B ← ½(3B − B³S), S = VVᵀ, V = Z/√‖ZZᵀ‖_F (eqs. 4 to 8), in float64."""
    centered = rows.double() - rows.double().mean(1, keepdim=True)
    v = centered / torch.linalg.matrix_norm(centered @ centered.t()).sqrt()
    b, s = torch.eye(len(v), dtype=torch.float64), v @ v.t()
    for _ in range(iterations):
        b = 1.5 * b - 0.5 * (b @ b @ b @ s)
    return b @ v


@pytest.mark.parametrize("shape", [(6, 20), (20, 6)])
def test_it_is_the_papers_iteration(shape: tuple[int, int]) -> None:
    rows = torch.randn(*shape)
    for iterations in (0, 1, 5):
        found = newton_rows(rows, iterations, 1.0).double()
        torch.testing.assert_close(found, _paper(rows, iterations), rtol=0, atol=2e-6)


@pytest.mark.parametrize("shape", [(6, 20), (20, 6)])
def test_it_tends_to_the_zca(shape: tuple[int, int]) -> None:
    rows = torch.randn(*shape, dtype=torch.float64)
    centered = rows - rows.mean(1, keepdim=True)
    u, s, v = torch.linalg.svd(centered, full_matrices=False)
    kept = s > 1e-9 * s[0]
    zca = u[:, kept] @ v[kept]
    far = [float(torch.linalg.matrix_norm(newton_rows(rows, t, 1.0) - zca)) for t in (1, 3, 5, 8)]
    assert far == sorted(far, reverse=True)
    assert far[1] > 1e-2
    assert far[3] < 1e-4
    # and there it stays, in float32 too
    for precise, far_most in ((rows, 1e-12), (rows.float(), 1e-5)):
        error = newton_rows(precise, 50, 1.0).double() - zca
        assert float(torch.linalg.matrix_norm(error)) < far_most


def test_rows_or_columns_become_orthonormal() -> None:
    wide, tall = nn.Conv2d(3, 6, 3), nn.Linear(6, 20)
    for layer in (wide, tall):
        oni_(layer, iterations=20)
    rows = wide.weight.detach().flatten(1)
    torch.testing.assert_close(rows @ rows.t(), 2 * torch.eye(6), rtol=0, atol=1e-5)
    columns = tall.weight.detach()
    want = 2 * (torch.eye(6) - 1 / 6)  # centred rows sum to 0
    torch.testing.assert_close(columns.t() @ columns, want, rtol=0, atol=1e-5)


def test_more_iterations_are_more_orthogonal_and_none_exceed_the_scale() -> None:
    rows = torch.randn(10, 30)
    values = [torch.linalg.svdvals(newton_rows(rows, t)) for t in range(8)]
    least = [float(each.min()) for each in values]
    assert least == sorted(least)
    assert all(float(each.max()) < sqrt(2) + 1e-6 for each in values)


def test_gradients_and_zeros() -> None:
    for shape in ((3, 5), (5, 3)):
        rows = torch.randn(*shape, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(newton_rows, (rows,))
    zeros = torch.zeros(3, 5, requires_grad=True)
    newton_rows(zeros).sum().backward()
    assert zeros.grad is not None
    assert zeros.grad.isfinite().all()


def test_refusals_name_the_layer() -> None:
    with pytest.raises(InputError, match="iterations -1: must be at least 0"):
        oni_(nn.Linear(3, 3), iterations=-1)
    with pytest.raises(InputError, match="0: rows of one element are nothing but their mean"):
        oni_(nn.Sequential(nn.Linear(1, 4)))
