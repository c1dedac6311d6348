"""Folding: what is folded computes the same, what stays says why, and undo restores every bit."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_networks import random_scales_
from torch import Tensor, nn

import normapps.models  # noqa: F401 -- the guard that timm needs beside torch without CUDA
from normapps.graph.fold import Folding, fold_batchnorm, fold_batchnorm_


def _sequence(**layers: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(OrderedDict(layers))


def _folded(model: nn.Module, x: Tensor, *, where: dict[str, str] | None = None) -> Folding:
    """Fold in float64, compare, undo, compare to the bit."""
    model, x = random_scales_(model).double(), x.double()
    before = copy.deepcopy(model.state_dict())
    wanted = model(x)
    folding = fold_batchnorm_(model, x)
    assert folding.difference <= 1e-10
    torch.testing.assert_close(model(x), wanted, rtol=1e-10, atol=1e-11)
    if where is not None:
        assert {each.norm: each.where for each in folding.folded} == where
    folding()
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)
    return folding


IMAGES = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))

BEHIND: dict[str, Callable[[], nn.Module]] = {
    "convolution": lambda: nn.Conv2d(4, 6, 3, padding=1, bias=False),
    "with a bias": lambda: nn.Conv2d(4, 6, 3, padding=1),
    "grouped": lambda: nn.Conv2d(4, 6, 3, groups=2),
    "depthwise": lambda: nn.Conv2d(4, 4, 3, groups=4),
    "transposed": lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, bias=False),
    "transposed, grouped": lambda: nn.ConvTranspose2d(4, 6, 3, groups=2),
}


@pytest.mark.parametrize("kind", BEHIND)
def test_a_batch_norm_goes_into_the_convolution_before_it(kind: str) -> None:
    layer: Any = BEHIND[kind]()
    model = _sequence(conv=layer, norm=nn.BatchNorm2d(layer.out_channels), act=nn.ReLU())
    _folded(model, IMAGES, where={"norm": "after"})
    assert isinstance(model.norm, nn.BatchNorm2d)


def test_the_weights_are_those_of_the_formula() -> None:
    model = random_scales_(_sequence(conv=nn.Conv2d(4, 6, 3), norm=nn.BatchNorm2d(6, eps=0.1)))
    conv, norm = model.conv, model.norm
    factor = norm.weight / (norm.running_var + 0.1).sqrt()
    weight = conv.weight * factor[:, None, None, None]
    bias = (conv.bias - norm.running_mean) * factor + norm.bias
    folded, folding = fold_batchnorm(model, IMAGES)
    torch.testing.assert_close(folded.conv.weight, weight)
    torch.testing.assert_close(folded.conv.bias, bias)
    assert isinstance(folded.norm, nn.Identity)
    assert isinstance(model.norm, nn.BatchNorm2d)
    statistics = folding.statistics["conv"]
    ratio = norm.running_var / (norm.running_var + 0.1)
    torch.testing.assert_close(statistics.mean[0], norm.bias.double())
    torch.testing.assert_close(statistics.var[0], (norm.weight.square() * ratio).double())


def test_tokens_behind_a_linear_layer() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.norm = nn.Linear(4, 6, bias=False), nn.BatchNorm1d(6)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.linear(x)
            return F.relu(self.norm(y.flatten(0, 1)).reshape_as(y))

    _folded(Tokens(), torch.randn(2, 5, 4), where={"norm": "after"})
