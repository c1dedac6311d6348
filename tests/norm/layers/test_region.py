"""Region normalization: each region by itself, in numpy, and masks that do not fit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normapps.errors import InputError
from normapps.norm import ConditionedModel, convert_norm
from normapps.norm.layers.region import RegionNorm


def _layer() -> RegionNorm:
    torch.manual_seed(0)
    layer = RegionNorm(3).double()
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    return layer


def _input() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 6, 5, generator=generator, dtype=torch.float64) * 2 + 1
    mask = torch.rand(2, 1, 6, 5, generator=generator) < 0.4
    return torch.where(mask, x + 10, x), mask


def _expected(layer: RegionNorm, x: Tensor, mask: Tensor) -> np.ndarray:
    y = np.empty(x.shape)
    for n, c in np.ndindex(*x.shape[:2]):
        for region in (0, 1):
            inside = mask[n, 0].numpy() == bool(region)
            values = x[n, c].numpy()[inside]
            normal = (values - values.mean()) / np.sqrt(values.var() + layer.eps)
            weight, bias = layer.weight[region, c].item(), layer.bias[region, c].item()
            y[n, c][inside] = normal * weight + bias
    return y


def test_values() -> None:
    layer, (x, mask) = _layer(), _input()
    np.testing.assert_allclose(layer(x, mask).detach(), _expected(layer, x, mask), atol=1e-12)
    found = layer(x, mask.to(x.dtype))
    np.testing.assert_allclose(found.detach(), _expected(layer, x, mask), atol=1e-12)


def test_what_a_hole_holds_does_not_reach_the_picture() -> None:
    """The mean shift that region normalization is there to avoid."""
    layer, (x, mask) = _layer(), _input()
    other = torch.where(mask, 1000.0, x)
    one, two = (layer(each, mask) for each in (x, other))
    outside = ~mask.expand_as(x)
    torch.testing.assert_close(one[outside], two[outside])


@pytest.mark.parametrize("full", [False, True])
def test_a_region_may_be_empty(full: bool) -> None:
    layer, (x, mask) = _layer(), _input()
    x.requires_grad_()
    found = layer(x, torch.full_like(mask, full))
    expected = F.instance_norm(x, weight=layer.weight[int(full)], bias=layer.bias[int(full)])
    torch.testing.assert_close(found, expected)
    found.square().sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_half_a_mask_everywhere_is_the_mean_of_both_recoveries() -> None:
    layer, (x, mask) = _layer(), _input()
    expected = F.instance_norm(x, weight=layer.weight.mean(0), bias=layer.bias.mean(0))
    torch.testing.assert_close(layer(x, torch.full(mask.shape, 0.5)), expected)


def test_a_mask_is_resized_and_shared() -> None:
    layer, (x, _) = _layer(), _input()
    large = torch.zeros(1, 1, 24, 20)
    large[..., 4:16, 8:] = 1
    small = torch.zeros(2, 1, 6, 5)
    small[..., 1:4, 2:] = 1
    torch.testing.assert_close(layer(x, large), layer(x, small))


def test_a_network_gets_the_mask_by_its_wrapper() -> None:
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Conv2d(3, 2, 1))
    nn.init.normal_(model[1].weight)
    converted = convert_norm(model, "region")
    assert torch.equal(converted[1].weight, model[1].weight.expand(2, -1))
    x, mask = torch.randn(2, 1, 8, 8), torch.rand(2, 1, 8, 8) < 0.5
    y = ConditionedModel(converted)(x, mask)
    expected = model[2](converted[1](model[0](x), mask))
    torch.testing.assert_close(y, expected)


@pytest.mark.parametrize(
    "mask",
    [torch.ones(3, 1, 6, 5), torch.ones(2, 3, 6, 5), torch.ones(2, 1, 6, 5).long(), 1.0],
)
def test_what_is_no_mask_is_refused(mask: object) -> None:
    layer, (x, _) = _layer(), _input()
    with pytest.raises(InputError, match=r"RegionNorm got .*, needs a mask \(2, 1, 6, 5\)"):
        layer(x, mask)
