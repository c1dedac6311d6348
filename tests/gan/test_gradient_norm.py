"""Gradient normalization: the formula, its bound, 0/0, and gradients through it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from normapps.gan.gradient_norm import GradientNormalized, gradient_normalized
from normapps.models.sngan import sngan_discriminator


def _network(act: nn.Module, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    layers = [nn.Flatten(), nn.Linear(8, 6), act, nn.Linear(6, 1), nn.Flatten(0)]
    return nn.Sequential(*layers).double()


def _slopes(f: nn.Module, x: Tensor) -> Tensor:
    """The gradient of every sample's logit, one sample at a time."""
    found = []
    for each in x:
        leaf = each[None].clone().requires_grad_()
        found.append(torch.autograd.grad(f(leaf).sum(), leaf)[0].flatten())
    return torch.stack(found)


def test_it_is_the_formula_sample_by_sample() -> None:
    f = _network(nn.Tanh())
    x = torch.randn(5, 2, 2, 2, dtype=torch.float64)
    logits = f(x).detach()
    expected = logits / (_slopes(f, x).norm(dim=1) + logits.abs())
    torch.testing.assert_close(GradientNormalized(f)(x), expected)


@pytest.mark.parametrize("size", [28, 32])
def test_its_slope_is_at_most_one_where_the_network_is_piecewise_linear(size: int) -> None:
    torch.manual_seed(0)
    d = sngan_discriminator(size, 1, width=8).double()
    with torch.no_grad():
        d.linear.weight.mul_(100)  # as steep as one likes
    x = torch.rand(4, 1, size, size, dtype=torch.float64) * 2 - 1
    steep, flat = _slopes(d, x).norm(dim=1), _slopes(GradientNormalized(d), x).norm(dim=1)
    assert float(steep.min()) > 1
    assert float(flat.max()) <= 1
    # and as the derivation has it: (‖∇f‖/(‖∇f‖ + |f|))²
    torch.testing.assert_close(flat, (steep / (steep + d(x).detach().abs())).square())


def test_labels_reach_the_network() -> None:
    torch.manual_seed(0)
    d = sngan_discriminator(28, 1, width=8, num_classes=2).double()
    normalized = GradientNormalized(d)
    x, y = torch.rand(2, 1, 28, 28, dtype=torch.float64), torch.tensor([0, 1])
    one = normalized(x, y)
    assert (one - normalized(x, 1 - y)).abs().max().item() > 1e-3


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_nothing_over_nothing_is_nothing(scale: float) -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            # the first sample alone is flat where scale is 1
            steep = scale * torch.arange(len(x))
            return (self.scale + steep) * x.flatten(1).sum(1)

    f = Flat()
    x = torch.ones(2, 1, 2, 2, requires_grad=True)
    out = GradientNormalized(f)(x)
    assert out[0] == 0
    # f = 4 and ‖∇f‖ = 2
    assert float(out[1].detach()) == pytest.approx(scale * 4 / (2 + 4))
    out.sum().backward()
    assert x.grad is not None
    assert f.scale.grad is not None
    assert bool(x.grad.isfinite().all())
    assert bool(f.scale.grad.isfinite())


def test_the_gradient_through_the_gradient_is_right() -> None:
    f = _network(nn.Tanh())
    normalized = GradientNormalized(f)
    x = torch.randn(3, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    weight = f.get_parameter("1.weight")

    def by_weight(given: Tensor, picture: Tensor) -> Tensor:
        named = {"network.1.weight": given}
        out: Tensor = torch.func.functional_call(normalized, named, (picture,))
        return out

    assert torch.autograd.gradcheck(by_weight, (weight.detach().clone().requires_grad_(), x))


def test_without_gradients_it_gives_the_same_and_keeps_no_graph() -> None:
    f = _network(nn.Tanh())
    normalized = GradientNormalized(f)
    x = torch.randn(3, 2, 2, 2, dtype=torch.float64)
    with torch.no_grad():
        out = normalized(x)
    assert not out.requires_grad
    assert not x.requires_grad
    torch.testing.assert_close(out, normalized(x).detach(), rtol=0, atol=0)


def test_half_precision_is_normalized_in_float32() -> None:
    out = gradient_normalized(torch.ones(2).bfloat16(), torch.full((2, 1000), 0.1).bfloat16())
    assert out.dtype == torch.float32
    tenth = float(torch.tensor(0.1).bfloat16())
    assert float(out[0]) == pytest.approx(1 / (1 + tenth * 1000**0.5), rel=1e-5)
