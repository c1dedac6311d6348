"""SPADE: scale and shift for each position, made from a map by two convolutions."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from normapps.errors import InputError
from normapps.norm.layers.spatial import SpatialNorm
from normapps.norm.registry import create_norm

M = 2


def _layer(features: int = 3, layout: str = "2d", seed: int = 0, **options: Any) -> SpatialNorm:
    torch.manual_seed(seed)
    options = {"hidden_channels": 4, "layout": layout, **options}
    layer = SpatialNorm(features, M, **options).double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    return layer


def _input(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    scale = torch.arange(1, shape[1] + 1).reshape(-1, *[1] * (len(shape) - 2))
    return torch.randn(shape, generator=generator, dtype=torch.float64) * scale + scale


def _nearest(condition: Tensor, space: tuple[int, ...]) -> Tensor:
    """The map at position ⌊i·S'/S⌋ along every axis."""
    for axis, size in enumerate(space, start=2):
        index = torch.arange(size) * condition.shape[axis] // size
        condition = condition.index_select(axis, index)
    return condition


def _conv(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A convolution with zeros around, as a sum over the kernel's positions."""
    kernel, space = weight.shape[2:], x.shape[2:]
    padded = F.pad(x, [k // 2 for k in reversed(kernel) for _ in range(2)])
    total = torch.zeros(len(x), len(weight), *space, dtype=x.dtype)
    for at in itertools.product(*map(range, kernel)):
        window = padded[(..., *(slice(a, a + s) for a, s in zip(at, space, strict=True)))]
        total = total + torch.einsum("nc...,oc->no...", window, weight[(..., *at)])
    return total if bias is None else total + bias.reshape(-1, *[1] * len(space))


def _expected(layer: SpatialNorm, x: Tensor, condition: Tensor, training: bool) -> Tensor:
    axes, c = (0, *range(2, x.dim())), x.shape[1]
    shape = (1, -1, *[1] * (x.dim() - 2))
    mean = x.mean(axes, keepdim=True)
    var = (x - mean).square().mean(axes, keepdim=True)
    if not training:
        mean, var = layer.running_mean.reshape(shape), layer.running_var.reshape(shape)
    state = layer.state_dict()
    resized = _nearest(condition, tuple(x.shape[2:]))
    hidden = _conv(resized, state["hidden.weight"], state["hidden.bias"])
    change = _conv(hidden.clamp_min(0), state["change.weight"], None)
    gamma = layer.weight.reshape(shape) + change[:, :c]
    beta = layer.bias.reshape(shape) + change[:, c:]
    return (x - mean) / (var + layer.eps).sqrt() * gamma + beta


@settings(max_examples=25, deadline=None)
@given(
    samples=st.integers(1, 3),
    features=st.integers(1, 4),
    space=st.lists(st.integers(2, 5), min_size=1, max_size=3),
    factor=st.integers(1, 3),
    one_map=st.booleans(),
    kernel_size=st.sampled_from([1, 3, 5]),
    seed=st.integers(0, 10**6),
)
def test_values_in_any_shape(
    samples: int,
    features: int,
    space: list[int],
    factor: int,
    one_map: bool,
    kernel_size: int,
    seed: int,
) -> None:
    layer = _layer(features, f"{len(space)}d", seed, kernel_size=kernel_size)
    x = _input(samples, features, *space, seed=seed)
    size = [each * factor + 1 for each in space]
    condition = _input(1 if one_map else samples, M, *size, seed=seed + 1)
    torch.testing.assert_close(layer(x, condition), _expected(layer, x, condition, True))
    layer.eval()
    torch.testing.assert_close(layer(x, condition), _expected(layer, x, condition, False))


def test_it_starts_as_batch_norm_and_keeps_its_keys() -> None:
    theirs = nn.BatchNorm2d(3).double()
    nn.init.normal_(theirs.weight)
    nn.init.normal_(theirs.bias)
    layer = SpatialNorm(3, M).double()
    missing = layer.load_state_dict(theirs.state_dict(), strict=False)
    assert set(missing.missing_keys) == {"hidden.weight", "hidden.bias", "change.weight"}
    for seed in range(3):
        x, condition = _input(4, 3, 5, 6, seed=seed), _input(4, M, 9, 7, seed=seed)
        torch.testing.assert_close(layer(x, condition), theirs(x))
    for key in ("running_mean", "running_var", "num_batches_tracked"):
        torch.testing.assert_close(layer.state_dict()[key], theirs.state_dict()[key])
    instance = SpatialNorm(3, M, base="instance").double()
    torch.testing.assert_close(instance(x, condition), F.instance_norm(x))


def test_the_sizes_are_the_papers() -> None:
    layer = SpatialNorm(3, M)
    assert layer.hidden.weight.shape == (128, M, 3, 3)
    assert layer.change.weight.shape == (6, 128, 3, 3)


def test_gradients_reach_the_map() -> None:
    layer = _layer(2, "1d", eps=0.1, momentum=0.0)
    x, condition = _input(2, 2, 4).requires_grad_(), _input(2, M, 3).requires_grad_()
    for training in (True, False):
        layer.train(training)
        assert torch.autograd.gradcheck(layer, (x, condition))


def test_a_network_without_a_layout_has_pictures() -> None:
    layer = create_norm("spatial", 3, condition_channels=M)
    assert layer.layout == "2d"
    assert layer(torch.randn(2, 3, 5, 6), torch.randn(2, M, 3, 3)).shape == (2, 3, 5, 6)


def test_channels_last_stays() -> None:
    layer = _layer().float()
    x = _input(2, 3, 5, 6).float().contiguous(memory_format=torch.channels_last)
    assert layer(x, _input(2, M, 3, 3)).dtype == torch.float32
    exact = layer.double()(x.double(), _input(2, M, 3, 3))
    torch.testing.assert_close(layer.float()(x, _input(2, M, 3, 3)), exact.float())


@pytest.mark.parametrize(
    ("condition", "got"),
    [
        (torch.zeros(4, M + 1, 5, 6), "torch.float32 (4, 3, 5, 6)"),
        (torch.zeros(3, M, 5, 6), "torch.float32 (3, 2, 5, 6)"),
        (torch.zeros(4, M, 5), "torch.float32 (4, 2, 5)"),
        (torch.zeros(4, M, 5, 6).long(), "torch.int64 (4, 2, 5, 6)"),
        ("map", "str"),
    ],
)
def test_a_map_that_does_not_fit_is_refused(condition: Any, got: str) -> None:
    message = f"SpatialNorm got {got}, needs a floating map of (4, 2, H, W)"
    with pytest.raises(InputError, match=re.escape(message)):
        SpatialNorm(3, M)(torch.randn(4, 3, 5, 6), condition)


def test_an_activation_without_positions_is_refused() -> None:
    with pytest.raises(InputError, match=r"SpatialNorm got \(4, 3\), needs positions"):
        SpatialNorm(3, M, layout="1d")(torch.randn(4, 3), torch.zeros(4, M, 5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layout": "tokens"}, "SpatialNorm layout 'tokens': must be one of 1d, 2d, 3d"),
        ({"layout": "4d"}, "unknown layout '4d'"),
        ({"kernel_size": 4}, "kernel_size (2, 128, 4): must be at least 1, and the kernel odd"),
        ({"kernel_size": -1}, "(2, 128, -1)"),
        ({"hidden_channels": 0}, "(2, 0, 3)"),
        ({"base": "layer"}, "unknown base 'layer'; known: batch, instance"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        SpatialNorm(3, M, **options)
