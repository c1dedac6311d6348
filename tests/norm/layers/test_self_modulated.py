"""Self-modulated norm: batch norm whose scale and shift a small network makes from a latent."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from normapps.errors import InputError
from normapps.norm.layers.self_modulated import SelfModulatedNorm

Z = 5


def _layer(features: int = 3, seed: int = 0, **options: Any) -> SelfModulatedNorm:
    torch.manual_seed(seed)
    layer = SelfModulatedNorm(features, Z, **options).double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    return layer


def _input(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    scale = torch.arange(1, shape[1] + 1).reshape(-1, *[1] * (len(shape) - 2))
    return torch.randn(shape, generator=generator, dtype=torch.float64) * scale + scale


def _expected(layer: SelfModulatedNorm, x: Tensor, latent: Tensor, training: bool) -> Tensor:
    """γ(z) and β(z) unit by unit, as the paper writes them."""
    flat = x.flatten(2)
    mean = flat.mean((0, 2), keepdim=True)
    var = (flat - mean).square().mean((0, 2), keepdim=True)
    if not training:
        mean, var = layer.running_mean.reshape(1, -1, 1), layer.running_var.reshape(1, -1, 1)
    state = layer.state_dict()
    hidden = latent @ state["hidden.weight"].T + state["hidden.bias"]
    change = torch.where(hidden > 0, hidden, 0) @ state["change.weight"].T
    c = x.shape[1]
    gamma = (layer.weight + change[:, :c]).unsqueeze(2)
    beta = (layer.bias + change[:, c:]).unsqueeze(2)
    return (gamma * (flat - mean) / (var + layer.eps).sqrt() + beta).reshape(x.shape)


@settings(max_examples=30, deadline=None)
@given(
    samples=st.integers(1, 4),
    features=st.integers(1, 5),
    space=st.lists(st.integers(2, 4), min_size=1, max_size=3),
    seed=st.integers(0, 10**6),
)
def test_values_in_any_shape(samples: int, features: int, space: list[int], seed: int) -> None:
    layer = _layer(features, seed)
    x, latent = _input(samples, features, *space, seed=seed), _input(samples, Z, seed=seed)
    torch.testing.assert_close(layer(x, latent), _expected(layer, x, latent, True))
    torch.testing.assert_close(layer.eval()(x, latent), _expected(layer, x, latent, False))


def test_it_starts_as_batch_norm_and_keeps_its_keys() -> None:
    theirs = nn.BatchNorm2d(3).double()
    nn.init.normal_(theirs.weight)
    nn.init.normal_(theirs.bias)
    layer = SelfModulatedNorm(3, Z).double()
    missing = layer.load_state_dict(theirs.state_dict(), strict=False)
    assert set(missing.missing_keys) == {"hidden.weight", "hidden.bias", "change.weight"}
    assert not missing.unexpected_keys
    for seed in range(3):
        x, latent = _input(4, 3, 5, 6, seed=seed), _input(4, Z, seed=seed)
        torch.testing.assert_close(layer(x, latent), theirs(x))
    for key in ("running_mean", "running_var", "num_batches_tracked"):
        torch.testing.assert_close(layer.state_dict()[key], theirs.state_dict()[key])
    torch.testing.assert_close(layer.eval()(x, latent), theirs.eval()(x))


def test_it_learns_from_its_start() -> None:
    """The last layer starts at 0, and the layer before it moves from the second step on."""
    torch.manual_seed(0)
    layer = SelfModulatedNorm(3, Z)
    before = {key: each.detach().clone() for key, each in layer.named_parameters()}
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    x, latent = _input(4, 3, 5).float(), _input(4, Z).float()
    for _ in range(2):
        optimizer.zero_grad()
        (layer(x, latent) - latent.sum(1)[:, None, None]).square().mean().backward()
        optimizer.step()
    for key, each in layer.named_parameters():
        assert not torch.equal(each, before[key]), key


def test_the_hidden_layer_has_32_units() -> None:
    assert SelfModulatedNorm(3, Z).hidden.weight.shape == (32, Z)
    assert SelfModulatedNorm(3, Z, hidden_features=7).change.weight.shape == (6, 7)


def test_one_latent_may_serve_all_samples() -> None:
    layer, x, latent = _layer(), _input(4, 3, 5), _input(1, Z)
    torch.testing.assert_close(layer(x, latent), layer(x, latent.expand(4, -1)))


def test_gradients_reach_the_latent() -> None:
    layer = _layer(eps=0.1, hidden_features=4, momentum=0.0)
    x, latent = _input(3, 3, 2).requires_grad_(), _input(3, Z).requires_grad_()
    for training in (True, False):
        layer.train(training)
        assert torch.autograd.gradcheck(layer, (x, latent))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_float32_latent_serves_a_half_precision_network(dtype: torch.dtype) -> None:
    layer, x, latent = _layer().to(dtype), _input(4, 3, 5).to(dtype), _input(4, Z).float()
    assert layer(x, latent).dtype == dtype


@pytest.mark.parametrize(
    ("latent", "got"),
    [
        (torch.zeros(4, 6), "a latent of (4, 6)"),
        (torch.zeros(3, 5), "a latent of (3, 5)"),
        (torch.zeros(5), "a latent of (5,)"),
        (torch.zeros(4, 5).long(), "torch.int64 labels"),
        (3, "int"),
    ],
)
def test_a_latent_that_does_not_fit_is_refused(latent: Any, got: str) -> None:
    message = f"SelfModulatedNorm got {got}, needs a floating latent of (4, 5)"
    with pytest.raises(InputError, match=re.escape(message)):
        SelfModulatedNorm(3, Z)(torch.randn(4, 3, 5), latent)


@pytest.mark.parametrize("sizes", [(0, 32), (5, 0)])
def test_widths_below_one_are_refused(sizes: tuple[int, int]) -> None:
    with pytest.raises(InputError, match=f"{sizes[0]}, {sizes[1]}: must be at least 1"):
        SelfModulatedNorm(3, *sizes)
