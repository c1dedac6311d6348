"""Filter response normalization against the paper's listing, in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from normapps.errors import InputError
from normapps.norm import convert_norm
from normapps.norm.layers.frn import FilterResponseNorm


def _layer(features: int, **options: bool) -> FilterResponseNorm:
    torch.manual_seed(0)
    layer = FilterResponseNorm(features, **options).double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    return layer


def _expected(layer: FilterResponseNorm, x: Tensor) -> np.ndarray:
    values = x.numpy().reshape(*x.shape[:2], -1)
    eps = layer.eps
    if layer.learnt_eps is not None:
        eps = eps + abs(layer.learnt_eps.item())
    y = values / np.sqrt(np.mean(values**2, axis=2, keepdims=True) + eps)
    gamma, beta = (each.detach().numpy()[:, None] for each in (layer.weight, layer.bias))
    y = gamma * y + beta
    if layer.threshold is not None:
        y = np.maximum(y, layer.threshold.detach().numpy()[:, None])
    return y.reshape(x.shape)


@settings(max_examples=30, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(2, 4), st.integers(1, 3)),
    tlu=st.booleans(),
    learn_eps=st.booleans(),
)
def test_values(shape: tuple[int, ...], tlu: bool, learn_eps: bool) -> None:
    layer = _layer(shape[1], tlu=tlu, learn_eps=learn_eps)
    x = torch.randn(shape, dtype=torch.float64) * 3 + 1
    np.testing.assert_allclose(layer(x).detach(), _expected(layer, x), atol=1e-12)


def test_it_starts_as_a_rectified_division() -> None:
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    expected = (x / x.square().mean((2, 3), keepdim=True).add(1e-6).sqrt()).relu()
    torch.testing.assert_close(FilterResponseNorm(3).double()(x), expected)


def test_one_position_needs_an_eps_that_is_learnt() -> None:
    x = torch.tensor([[3.0, -0.01]])
    with pytest.raises(InputError, match=r"FilterResponseNorm got \(1, 2\): .*learn_eps=True"):
        FilterResponseNorm(2)(x)
    layer = FilterResponseNorm(2, tlu=False, learn_eps=True)
    expected = x / (x.square() + 1e-6 + 1e-4).sqrt()
    torch.testing.assert_close(layer(x), expected)
    layer(x).sum().backward()
    assert layer.learnt_eps is not None
    assert layer.learnt_eps.grad is not None


def test_a_batch_norm_becomes_one_with_its_scale() -> None:
    norm = nn.BatchNorm2d(4)
    nn.init.normal_(norm.weight)
    converted = convert_norm(nn.Sequential(norm), "frn", tlu=False)[0]
    assert torch.equal(converted.weight, norm.weight)
    assert converted.eps == norm.eps
    assert list(converted.state_dict()) == ["weight", "bias"]
