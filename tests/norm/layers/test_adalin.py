"""Layer-instance norm: a gate a channel between the two, plain and with a latent's recovery."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from normapps.errors import InputError
from normapps.norm.layers.adalin import AdaLIN, LayerInstanceNorm

Z = 5


def _random(layer: AdaLIN | LayerInstanceNorm, seed: int = 0) -> AdaLIN | LayerInstanceNorm:
    torch.manual_seed(seed)
    for parameter in layer.double().parameters():
        nn.init.uniform_(parameter)
    return layer


def _input(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    scale = torch.arange(1, shape[1] + 1).reshape(-1, *[1] * (len(shape) - 2))
    return torch.randn(shape, generator=generator, dtype=torch.float64) * scale + scale


def _normal(x: Tensor, rho: Tensor) -> Tensor:
    """ρ·IN + (1 − ρ)·LN of (N, C, S), written out."""
    parts = []
    for axes in ((2,), (1, 2)):
        mean = x.mean(axes, keepdim=True)
        var = (x - mean).square().mean(axes, keepdim=True)
        parts.append((x - mean) / (var + 1e-5).sqrt())
    rho = rho.reshape(1, -1, 1)
    return rho * parts[0] + (1 - rho) * parts[1]


@settings(max_examples=30, deadline=None)
@given(
    samples=st.integers(1, 4),
    features=st.integers(1, 5),
    space=st.lists(st.integers(2, 4), min_size=1, max_size=3),
    seed=st.integers(0, 10**6),
)
def test_values_in_any_shape(samples: int, features: int, space: list[int], seed: int) -> None:
    x, latent = _input(samples, features, *space, seed=seed), _input(samples, Z, seed=seed)
    plain = _random(LayerInstanceNorm(features), seed)
    adaptive = _random(AdaLIN(features, Z), seed)
    weight, bias = (each.reshape(1, -1, 1) for each in (plain.weight, plain.bias))
    expected = _normal(x.flatten(2), plain.rho) * weight + bias
    torch.testing.assert_close(plain(x), expected.reshape(x.shape))
    change = latent @ adaptive.state_dict()["change.weight"].T
    gamma = (adaptive.weight + change[:, :features]).unsqueeze(2)
    beta = (adaptive.bias + change[:, features:]).unsqueeze(2)
    expected = _normal(x.flatten(2), adaptive.rho) * gamma + beta
    torch.testing.assert_close(adaptive(x, latent), expected.reshape(x.shape))


def test_they_start_as_the_paper_says() -> None:
    x = _input(2, 3, 4, 5)
    plain, adaptive = LayerInstanceNorm(3).double(), AdaLIN(3, Z).double()
    torch.testing.assert_close(plain(x), F.group_norm(x, 1), rtol=1e-12, atol=1e-12)
    assert adaptive.rho.tolist() == pytest.approx([0.9] * 3)
    both = 0.9 * F.instance_norm(x) + 0.1 * F.group_norm(x, 1)
    # 0.9 is a float32 here
    torch.testing.assert_close(adaptive(x, _input(2, Z)), both, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("rho", "kind"), [(1.0, "instance"), (0.0, "layer"), (1.4, "instance")])
def test_at_the_ends_stand_instance_and_layer_norm(rho: float, kind: str) -> None:
    x, layer = _input(2, 3, 4, 5), LayerInstanceNorm(3).double()
    nn.init.constant_(layer.rho, rho)
    expected = F.instance_norm(x) if kind == "instance" else F.group_norm(x, 1)
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)


def test_gradients_reach_the_latent() -> None:
    layer = _random(AdaLIN(3, Z, eps=0.1))
    x, latent = _input(2, 3, 4).requires_grad_(), _input(2, Z).requires_grad_()
    assert torch.autograd.gradcheck(layer, (x, latent))


def test_one_latent_may_serve_all_samples() -> None:
    layer, x, latent = _random(AdaLIN(3, Z)), _input(4, 3, 5), _input(1, Z)
    torch.testing.assert_close(layer(x, latent), layer(x, latent.expand(4, -1)))


def test_without_parameters_of_their_own() -> None:
    x, latent = _input(2, 3, 4), _input(2, Z)
    bare, full = AdaLIN(3, Z, affine=False).double(), AdaLIN(3, Z).double()
    assert {name for name, _ in bare.named_parameters()} == {"rho", "change.weight"}
    assert torch.equal(bare(x, latent), full(x, latent))
    no_shift = AdaLIN(3, Z, bias=False).double()
    assert no_shift.bias is None
    assert torch.equal(no_shift(x, latent), full(x, latent))


def test_what_does_not_fit_is_refused() -> None:
    x = _input(2, 3, 4)
    with pytest.raises(InputError, match=r"AdaLIN got a latent of \(2, 4\), needs .* \(2, 5\)"):
        AdaLIN(3, Z)(x, torch.zeros(2, 4))
    with pytest.raises(InputError, match="latent_features 0: must be at least 1"):
        AdaLIN(3, 0)
    for layer, args in ((LayerInstanceNorm(3), ()), (AdaLIN(3, Z), (torch.zeros(2, Z),))):
        with pytest.raises(InputError, match=r"got \(2, 3\): 1 element"):
            layer.double()(x[..., 0], *args)
