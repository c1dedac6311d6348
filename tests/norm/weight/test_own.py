"""OWN against a ZCA by an SVD in float64."""

from __future__ import annotations

from math import sqrt

import pytest
import torch
from torch import Tensor, nn

from normapps.errors import InputError
from normapps.norm.weight.own import own_, whitened_rows


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def _polar(rows: Tensor) -> Tensor:
    """(VVᵀ)^-½V of centred rows, by an SVD."""
    centered = rows.double() - rows.double().mean(1, keepdim=True)
    u, _, v = torch.linalg.svd(centered, full_matrices=False)
    return u @ v


@pytest.mark.parametrize("scale", [1.0, sqrt(2)])
def test_rows_are_whitened(scale: float) -> None:
    layer = nn.Conv2d(3, 6, 3)
    expected = scale * _polar(layer.weight.detach().flatten(1))
    own_(layer, scale=scale)
    rows = layer.weight.detach().flatten(1)
    torch.testing.assert_close(rows.double(), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(rows @ rows.t(), scale**2 * torch.eye(6), rtol=0, atol=1e-5)
    assert float(rows.sum(1).abs().max()) < 1e-5


def test_nearly_parallel_rows_come_out_orthogonal() -> None:
    rows = torch.randn(1, 20) + 1e-3 * torch.randn(8, 20)
    white = whitened_rows(rows, 8, 1.0)
    torch.testing.assert_close(white @ white.t(), torch.eye(8), rtol=0, atol=1e-5)


def test_too_many_rows_are_orthogonal_in_groups() -> None:
    layer = nn.Linear(7, 12)  # zero-mean rows of 7 can be 6
    own_(layer, scale=1.0)
    gram = (layer.weight @ layer.weight.t()).detach()
    for group in (slice(0, 6), slice(6, 12)):
        torch.testing.assert_close(gram[group, group], torch.eye(6), rtol=0, atol=1e-5)
    assert float(gram[:6, 6:].abs().max()) > 0.1
    asked = nn.Linear(7, 12)
    own_(asked, scale=1.0, group_size=3)
    gram = (asked.weight @ asked.weight.t()).detach()
    torch.testing.assert_close(gram[3:6, 3:6], torch.eye(3), rtol=0, atol=1e-5)
    assert float(gram[:3, 3:6].abs().max()) > 0.05


def test_gradients() -> None:
    rows = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda w: whitened_rows(w, 2), (rows,))


def test_refusals_name_the_layer() -> None:
    for size in (0, 4, 6):
        with pytest.raises(InputError, match=f"Linear: group_size {size} of 6 rows of 4 elements"):
            own_(nn.Linear(4, 6), group_size=size)
    with pytest.raises(InputError, match="0: rows of one element are nothing but their mean"):
        own_(nn.Sequential(nn.Linear(1, 4)))
