"""Normalized gradients against their formulas, and timm's clipping."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import normapps.models  # noqa: F401  the guard before timm
from normapps.errors import InputError
from normapps.norm.gradient import (
    block_normalize,
    block_normalize_,
    centralize,
    centralize_,
    clip_adaptive_,
    normalize_gradients_,
)

LAYERS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(7, 5),
    "conv2d": lambda: nn.Conv2d(4, 6, 3, groups=2),
    "transposed": lambda: nn.ConvTranspose2d(4, 6, 3, groups=2),
    "single": lambda: nn.Conv2d(1, 4, 1),  # rows of one element
    "norm": lambda: nn.BatchNorm2d(4),
}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def _with_gradients(kind: str) -> nn.Module:
    layer = LAYERS[kind]()
    for parameter in layer.parameters():
        parameter.grad = torch.randn_like(parameter) + 0.5
    return layer


def _rows(layer: nn.Module, tensor: Tensor) -> list[Tensor]:
    """Views of the elements of each output channel."""
    if tensor.dim() < 2:
        return [tensor]
    if not isinstance(layer, nn.ConvTranspose2d):
        return list(tensor)
    inputs = tensor.shape[0] // layer.groups
    parts = [tensor[g * inputs : (g + 1) * inputs] for g in range(layer.groups)]
    return [part[:, o] for part in parts for o in range(tensor.shape[1])]


@pytest.mark.parametrize("kind", LAYERS)
def test_centralized(kind: str) -> None:
    layer = _with_gradients(kind)
    before = [p.grad.clone().double() for p in layer.parameters()]  # type: ignore[union-attr]
    centralize_(layer)
    for parameter, old in zip(layer.parameters(), before, strict=True):
        assert parameter.grad is not None
        for row, old_row in zip(_rows(layer, parameter.grad), _rows(layer, old), strict=True):
            is_row = parameter.dim() > 1 and row.numel() > 1
            expected = old_row - old_row.mean() if is_row else old_row
            torch.testing.assert_close(row.double(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", LAYERS)
def test_of_length_one(kind: str) -> None:
    layer = _with_gradients(kind)
    before = [p.grad.clone().double() for p in layer.parameters()]  # type: ignore[union-attr]
    block_normalize_(layer)
    for parameter, old in zip(layer.parameters(), before, strict=True):
        assert parameter.grad is not None
        expected = old / old.square().sum().sqrt()
        torch.testing.assert_close(parameter.grad.double(), expected, rtol=1e-6, atol=1e-7)
    assert torch.equal(block_normalize(torch.zeros(3, 2)), torch.zeros(3, 2))
    half = torch.full((4,), 3e4, dtype=torch.float16)  # its length is no float16
    assert torch.equal(block_normalize(half), torch.full((4,), 0.5, dtype=torch.float16))


@pytest.mark.parametrize("kind", LAYERS)
def test_clipped_by_the_length_of_the_weight(kind: str) -> None:
    layer = _with_gradients(kind)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.grad.view(-1)[0] *= 1e-4  # type: ignore[union-attr]
            parameter.grad[1:] *= 1e-3  # type: ignore[index]
    pairs = [(p.detach().double(), p.grad.clone().double()) for p in layer.parameters()]  # type: ignore[union-attr]
    clip_adaptive_(layer, 0.05, 0.01)
    for parameter, (weight, old) in zip(layer.parameters(), pairs, strict=True):
        assert parameter.grad is not None
        found = _rows(layer, parameter.grad)
        for row, w, g in zip(found, _rows(layer, weight), _rows(layer, old), strict=True):
            most = 0.05 * max(float(w.norm()), 0.01)
            expected = g * min(1.0, most / float(g.norm()))
            torch.testing.assert_close(row.double(), expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("kind", ["linear", "conv2d", "single", "norm"])
def test_the_clipping_is_timms(kind: str) -> None:
    from timm.utils.agc import adaptive_clip_grad

    ours = _with_gradients(kind)
    theirs = LAYERS[kind]()
    theirs.load_state_dict(ours.state_dict())
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        b.grad = a.grad.clone()  # type: ignore[union-attr]
    clip_adaptive_(ours.parameters())
    adaptive_clip_grad(theirs.parameters())
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-6, atol=1e-9)


def test_dtype_stays_and_half_is_computed_in_float32() -> None:
    gradient = torch.randn(3, 500, dtype=torch.bfloat16) + 4
    found = centralize(gradient)
    assert found.dtype == torch.bfloat16
    expected = gradient.double() - gradient.double().mean(1, keepdim=True)
    torch.testing.assert_close(found.double(), expected, rtol=2**-8, atol=1e-3)


def test_before_every_step_and_before_weight_decay() -> None:
    layer = nn.Linear(4, 3, bias=False)
    weight = layer.weight.detach().double()
    optimizer = torch.optim.SGD(layer.parameters(), 0.1, weight_decay=0.2)
    with normalize_gradients_(optimizer, centralize=True, block_normalize=True, clip=0.5):
        gradient = torch.randn(3, 4, dtype=torch.float64)
        layer.weight.grad = gradient.float()
        optimizer.step()
        ratio = 0.5 * weight.norm(dim=1, keepdim=True) / gradient.norm(dim=1, keepdim=True)
        changed = gradient * ratio.clamp_max(1)
        changed = changed - changed.mean(1, keepdim=True)
        changed = changed / changed.norm()
        expected = weight - 0.1 * (changed + 0.2 * weight)  # the decay has a mean
        torch.testing.assert_close(layer.weight.detach().double(), expected, rtol=1e-5, atol=1e-6)
    layer.weight.grad = torch.ones(3, 4)
    optimizer.step()
    assert torch.equal(layer.weight.grad, torch.ones(3, 4))


def test_an_optimizer_knows_transposed_convolutions_by_the_network() -> None:
    layer = _with_gradients("transposed")
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    normalize_gradients_(optimizer, layer, centralize=True)
    optimizer.step()
    assert layer.weight.grad is not None  # type: ignore[union-attr]
    for row in _rows(layer, layer.weight.grad):  # type: ignore[union-attr, arg-type]
        assert abs(float(row.mean())) < 1e-6


def test_a_centred_gradient_keeps_the_mean_of_the_weight() -> None:
    """What the paper calls projection: the mean of each row never moves."""
    layer = nn.Linear(6, 4)
    means = layer.weight.detach().mean(1)
    optimizer = torch.optim.SGD(layer.parameters(), 0.05, momentum=0.9)
    normalize_gradients_(optimizer, centralize=True)
    for _ in range(20):
        optimizer.zero_grad()
        (layer(torch.rand(8, 6)) - 1).square().mean().backward()
        optimizer.step()
    torch.testing.assert_close(layer.weight.detach().mean(1), means, rtol=0, atol=1e-6)


def test_parameters_are_spared_by_name() -> None:
    network = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer = torch.optim.SGD(network.parameters(), 0.0)
    normalize_gradients_(optimizer, network, block_normalize=True, exclude=["1.*"])
    optimizer.step()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, torch.ones_like(parameter)) == name.startswith("1."), (
            name
        )
    optimizer = torch.optim.SGD(network.parameters(), 0.0)
    normalize_gradients_(optimizer, network, block_normalize=True, exclude="0.*")
    optimizer.step()
    assert float(torch.linalg.vector_norm(network[1].weight.grad)) == pytest.approx(1)
    with pytest.raises(InputError, match=r"unknown parameter '1'; known: 0\.bias"):
        normalize_gradients_(optimizer, network, block_normalize=True, exclude=["1"])
    with pytest.raises(InputError, match=r"exclude 1\.\*: names are known of a network; give that"):
        normalize_gradients_(optimizer, block_normalize=True, exclude=["1.*"])


def test_a_factor_of_nothing_is_refused() -> None:
    optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), 0.1)
    for clip in (0.0, -1.0, float("nan")):
        with pytest.raises(InputError, match="must be above 0"):
            normalize_gradients_(optimizer, clip=clip)
