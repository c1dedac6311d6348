"""Orthogonal regularizers against singular values in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from normapps.errors import InputError
from normapps.norm.weight.methods import weight_standardization_
from normapps.norm.weight.penalties import (
    PENALTIES,
    double_soft_orthogonality,
    orthogonal_penalty,
    soft_orthogonality,
    spectral_isometry,
)

SHAPES = [(4, 9), (9, 4), (5, 5)]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def _weight(shape: tuple[int, int]) -> Tensor:
    return (torch.randn(*shape, dtype=torch.float64) * 0.5).requires_grad_()


def _gradient(value: Tensor, weight: Tensor) -> Tensor:
    return torch.autograd.grad(value, weight)[0]


@pytest.mark.parametrize("shape", SHAPES)
def test_soft_orthogonality_by_singular_values(shape: tuple[int, int]) -> None:
    weight, (rows, columns) = _weight(shape), shape
    values = torch.linalg.svdvals(weight.detach())
    common = (values.square() - 1).square().sum()
    so, dso = soft_orthogonality(weight), double_soft_orthogonality(weight)
    torch.testing.assert_close(so.detach(), common + max(0, rows - columns))
    torch.testing.assert_close(dso.detach(), 2 * common + abs(rows - columns))
    torch.testing.assert_close(_gradient(dso, weight), 2 * _gradient(so, weight))
    u, s, v = torch.linalg.svd(weight.detach(), full_matrices=False)
    expected = u @ torch.diag(4 * s * (s.square() - 1)) @ v
    torch.testing.assert_close(_gradient(soft_orthogonality(weight), weight), expected)


@pytest.mark.parametrize("shape", SHAPES)
def test_spectral_isometry_is_the_svds(shape: tuple[int, int]) -> None:
    weight = _weight(shape)
    u, s, v = torch.linalg.svd(weight.detach(), full_matrices=False)
    excess = s.square() - 1
    top = int(excess.abs().argmax())
    found = spectral_isometry(weight, 300)
    torch.testing.assert_close(found.detach(), excess.abs()[top])
    expected = 2 * excess[top].sign() * s[top] * torch.outer(u[:, top], v[top])
    torch.testing.assert_close(_gradient(found, weight), expected, rtol=1e-5, atol=1e-7)
    two, whole = (float(each.detach()) for each in (spectral_isometry(weight), found))
    assert 0.5 * whole < two <= whole * (1 + 1e-12)


@pytest.mark.parametrize("kind", PENALTIES)
def test_orthonormal_weights_cost_nothing(kind: str) -> None:
    q = torch.linalg.qr(torch.randn(6, 4, dtype=torch.float64))[0].t().requires_grad_()
    value = PENALTIES[kind](q)
    constant = 2.0 if kind == "dso" else 0.0  # of the two columns that rows cannot reach
    assert float(value.detach()) == pytest.approx(constant, abs=1e-12)
    assert _gradient(value, q).isfinite().all()


@pytest.mark.parametrize("kind", PENALTIES)
def test_descent_makes_a_network_orthogonal(kind: str) -> None:
    network = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.ConvTranspose2d(3, 4, 2, groups=1))
    optimizer = torch.optim.SGD(network.parameters(), 0.02)
    for step in range(150):
        if step == 100:
            optimizer.param_groups[0]["lr"] = 0.002
        optimizer.zero_grad()
        orthogonal_penalty(network, kind).backward()
        optimizer.step()
    weights = (network[0].weight, network[2].weight.transpose(0, 1))  # type: ignore[union-attr, operator]
    for weight in weights:
        rows = weight.detach().flatten(1)  # type: ignore[union-attr, operator]
        assert float((rows @ rows.t() - torch.eye(len(rows))).abs().max()) < 0.05


def test_the_sum_over_chosen_layers() -> None:
    network = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 5)).double()
    both = [soft_orthogonality(layer.weight) for layer in network]  # type: ignore[arg-type]
    torch.testing.assert_close(orthogonal_penalty(network, "so"), sum(both))
    torch.testing.assert_close(orthogonal_penalty(network, "so", exclude=["0"]), both[1])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(orthogonal_penalty(network, "so"), sum(both))


def test_refusals() -> None:
    with pytest.raises(InputError, match="unknown penalty 'srp'; did you mean 'srip'"):
        orthogonal_penalty(nn.Linear(2, 2), "srp")
    with pytest.raises(InputError, match="iterations 0: must be at least 1"):
        orthogonal_penalty(nn.Linear(2, 2), iterations=0)
    layer = nn.Linear(3, 2)
    weight_standardization_(layer)
    with pytest.raises(InputError, match="parametrized by WeightStandardization already"):
        orthogonal_penalty(layer)
