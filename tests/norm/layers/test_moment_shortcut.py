"""Moments that skip from an encoder to a decoder: values, and a model that keeps its state."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from normapps.errors import InputError
from normapps.norm.layers.moment_shortcut import give_moments, shortcut_moments_, take_moments


class Autoencoder(nn.Module):
    """Two stages down, two up."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList(nn.Conv2d(*c, 3, padding=1) for c in ((2, 4), (4, 6)))
        self.up = nn.ModuleList(nn.Conv2d(*c, 3, padding=1) for c in ((6, 4), (4, 2)))

    def forward(self, x: Tensor) -> Tensor:
        """Return what comes out of the four stages."""
        for stage in (*self.down, *self.up):
            x = stage(x).relu()
        return x


PAIRS = {"down.0": "up.1", "down.1": "up.0"}


def _by_hand(model: Autoencoder, x: Tensor) -> Tensor:
    kept = []
    for stage in model.down:
        x = stage(x)
        mean, std = x.mean(1, keepdim=True), (x.var(1, keepdim=True, unbiased=False) + 1e-5).sqrt()
        kept.append((mean, std))
        x = ((x - mean) / std).relu()
    for stage, (mean, std) in zip(model.up, reversed(kept), strict=True):
        x = (stage(x) * std + mean).relu()
    return x


def test_taken_moments_are_those_of_each_position() -> None:
    x = torch.randn(2, 5, 3, 4, dtype=torch.float64) * 3 + 1
    y, moments = take_moments(x)
    values = x.numpy()
    mean, std = values.mean(1, keepdims=True), np.sqrt(values.var(1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(y, (values - mean) / std, atol=1e-12)
    torch.testing.assert_close(give_moments(y, moments), x)
    assert moments.mean.shape == (24, 1)


def test_a_network_with_shortcuts() -> None:
    torch.manual_seed(0)
    model = Autoencoder().double()
    x = torch.randn(2, 2, 6, 5, dtype=torch.float64)
    plain, keys = model(x), list(model.state_dict())
    expected = _by_hand(model, x)
    with shortcut_moments_(model, PAIRS):
        found = model(x)
        torch.testing.assert_close(found, expected)
        grads = (torch.autograd.grad(y.sum(), list(model.parameters())) for y in (found, expected))
        for mine, theirs in zip(*grads, strict=True):
            torch.testing.assert_close(mine, theirs)
        assert list(model.state_dict()) == keys
    torch.testing.assert_close(model(x), plain)


def test_a_copy_hands_on_its_own_moments() -> None:
    model = Autoencoder()
    shortcut_moments_(model, PAIRS)
    other = copy.deepcopy(model)
    x = torch.randn(1, 2, 6, 5)
    expected = model(x)
    model.down[0](x)
    model.down[1](model.down[0](x) * 5)  # under way in the one
    torch.testing.assert_close(other(x), expected)


def test_it_compiles() -> None:
    torch._dynamo.reset()
    model = Autoencoder()
    shortcut_moments_(model, PAIRS)
    x = torch.randn(1, 2, 6, 5)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), model(x))


def test_what_cannot_be_paired_is_refused() -> None:
    model, x = Autoencoder(), torch.randn(1, 2, 6, 5)
    with pytest.raises(InputError, match=r"unknown module 'dwn\.0'; did you mean 'down\.0'"):
        shortcut_moments_(model, {"dwn.0": "up.0"})
    with pytest.raises(InputError, match=r"'up\.0' stands in two pairs"):
        shortcut_moments_(model, {"down.0": "up.0", "down.1": "up.0"})
    reason = r"'down\.0' ran before 'up\.0'"
    with shortcut_moments_(model, {"up.0": "down.0"}), pytest.raises(InputError, match=reason):
        model(x)
    model.up[0].stride = (2, 2)
    reason = r"'up.0' gives \(1, 4, 3, 3\), 9 positions.* had 30"
    with shortcut_moments_(model, {"down.1": "up.0"}), pytest.raises(InputError, match=reason):
        model(x)
