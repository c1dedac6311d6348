"""Group whitening: the covariance of each sample's groups, in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from normapps.errors import InputError
from normapps.norm import convert_norm
from normapps.norm.layers.group_whitening import GroupWhitening


def _matrix(cov: np.ndarray, method: str) -> np.ndarray:
    if method == "cholesky":
        return np.linalg.inv(np.linalg.cholesky(cov))
    if method == "zca":
        values, vectors = np.linalg.eigh(cov)
        return vectors @ np.diag(values**-0.5) @ vectors.T
    scaled, power = cov / np.trace(cov), np.eye(len(cov))
    for _ in range(5):
        power = (3 * power - power @ power @ power @ scaled) / 2
    return power / np.sqrt(np.trace(cov))


def _expected(layer: GroupWhitening, x: Tensor) -> np.ndarray:
    y = []
    for sample in x.numpy():
        rows = sample.reshape(layer.num_groups, -1)
        cov = np.cov(rows, bias=True).reshape(len(rows), -1) + layer.eps * np.eye(len(rows))
        white = _matrix(cov, layer.method) @ (rows - rows.mean(1, keepdims=True))
        y.append(white.reshape(sample.shape))
    shape = (-1, *[1] * (x.dim() - 2))
    weight, bias = (each.detach().numpy().reshape(shape) for each in (layer.weight, layer.bias))
    return np.stack(y) * weight + bias


@pytest.mark.parametrize("method", ["newton", "zca", "cholesky"])
@pytest.mark.parametrize("shape", [(3, 8, 5, 4), (2, 8, 7), (4, 16)])
def test_values(method: str, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    layer = GroupWhitening(shape[1], num_groups=4, eps=1e-3, method=method).double()
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    x = torch.randn(shape, dtype=torch.float64).cumsum(1)
    for training in (True, False):
        found = layer.train(training)(x).detach()
        np.testing.assert_allclose(found, _expected(layer, x), atol=1e-9)


def test_the_groups_of_a_sample_come_out_uncorrelated() -> None:
    x = torch.randn(2, 8, 16, dtype=torch.float64).cumsum(1)
    y = GroupWhitening(8, num_groups=4, eps=1e-9, method="zca").double()(x).reshape(2, 4, -1)
    torch.testing.assert_close(y @ y.mT / 32, torch.eye(4).double().expand(2, 4, 4))


def test_one_group_is_layer_norm() -> None:
    x = torch.randn(2, 8, 16)
    ours, theirs = GroupWhitening(8, num_groups=1, iterations=1), nn.GroupNorm(1, 8)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-4)


def test_the_number_of_groups_is_the_largest_that_divides() -> None:
    assert [GroupWhitening(c).num_groups for c in (64, 48, 6, 34)] == [32, 24, 6, 17]
    layer = convert_norm(nn.Sequential(nn.GroupNorm(4, 8)), "group_whitening", match="group")[0]
    assert layer.num_groups == 4


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(InputError, match="unknown whitening method 'zac'; did you mean 'zca'"):
        GroupWhitening(8, method="zac")
    with pytest.raises(InputError, match="iterations 0"):
        GroupWhitening(8, iterations=0)
    with pytest.raises(InputError, match=r"GroupWhitening got \(3, 8, 1\): 1 element"):
        GroupWhitening(8)(torch.randn(3, 8, 1))
