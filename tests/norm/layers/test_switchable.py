"""Switchable norm: a mix of moments, which at its corners is instance, layer and batch norm."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from normapps.errors import InputError
from normapps.norm.layers.switchable import SwitchableNorm

AXES = {"instance": (2, 3), "layer": (1, 2, 3), "batch": (0, 2, 3)}


def _layer(features: int = 3, seed: int = 0, **options: float | None) -> SwitchableNorm:
    """A layer whose parameters are all away from their start."""
    torch.manual_seed(seed)
    layer = SwitchableNorm(features, **options).double()  # type: ignore[arg-type]
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    return layer


def _input(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    scale = torch.arange(1, shape[1] + 1).reshape(-1, *[1] * (len(shape) - 2))
    return torch.randn(shape, generator=generator, dtype=torch.float64) * scale + scale


def _expected(layer: SwitchableNorm, x: Tensor, batch: tuple[Tensor, Tensor] | None) -> Tensor:
    """Eq. 3 of the paper, written out; `batch` replaces the batch's mean and variance."""
    flat = x.reshape(*x.shape[:2], -1, 1)
    means = [flat.mean(axes, keepdim=True) for axes in AXES.values()]
    variances = [
        (flat - mean).square().mean(axes, keepdim=True)
        for mean, axes in zip(means, AXES.values(), strict=True)
    ]
    if batch is not None:
        means[2], variances[2] = (each.reshape(1, -1, 1, 1) for each in batch)
    mean_share, var_share = (
        logits.exp() / logits.exp().sum() for logits in (layer.mean_weight, layer.var_weight)
    )
    mean = sum(share * each for share, each in zip(mean_share, means, strict=True))
    var = sum(share * each for share, each in zip(var_share, variances, strict=True))
    y = (flat - mean) / (var + layer.eps).sqrt()
    weight, bias = (each.reshape(1, -1, 1, 1) for each in (layer.weight, layer.bias))
    return (y * weight + bias).reshape(x.shape)


@settings(max_examples=40, deadline=None)
@given(
    samples=st.integers(2, 4),
    features=st.integers(1, 5),
    space=st.lists(st.integers(1, 4), min_size=0, max_size=3),
    seed=st.integers(0, 10**6),
)
def test_values_in_any_shape(samples: int, features: int, space: list[int], seed: int) -> None:
    layer = _layer(features, seed)
    x = _input(samples, features, *space, seed=seed)
    torch.testing.assert_close(layer(x), _expected(layer, x, None))
    population = layer.running_mean.clone(), layer.running_var.clone()
    torch.testing.assert_close(layer.eval()(x), _expected(layer, x, population))


def test_all_three_weigh_the_same_at_first() -> None:
    layer, x = SwitchableNorm(3).double(), _input(4, 3, 5, 6)
    torch.testing.assert_close(layer(x), _expected(layer, x, None))
    assert layer.mean_weight.softmax(0).tolist() == pytest.approx([1 / 3] * 3)


@pytest.mark.parametrize("kind", AXES)
def test_one_hot_it_is_the_named_layer(kind: str) -> None:
    x, index = _input(4, 3, 5, 6), list(AXES).index(kind)
    layer, theirs = _layer(), nn.BatchNorm2d(3).double()
    with torch.no_grad():
        for logits in (layer.mean_weight, layer.var_weight):
            logits.copy_(torch.eye(3)[index] * 1e4)
        theirs.weight.copy_(layer.weight)
        theirs.bias.copy_(layer.bias)
    for training in (True, False):
        layer.train(training)
        theirs.train(training)
        expected = {
            "instance": lambda: F.instance_norm(x, weight=layer.weight, bias=layer.bias),
            "layer": lambda: F.group_norm(x, 1, layer.weight, layer.bias),
            "batch": lambda: theirs(x),
        }
        torch.testing.assert_close(layer(x), expected[kind](), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("momentum", [0.1, 0.7, None])
def test_it_tracks_what_batch_norm_tracks(momentum: float | None) -> None:
    layer, theirs = _layer(momentum=momentum), nn.BatchNorm2d(3, momentum=momentum).double()
    for seed in range(3):
        x = _input(4, 3, 5, 6, seed=seed)
        layer(x)
        theirs(x)
    for key in ("running_mean", "running_var", "num_batches_tracked"):
        torch.testing.assert_close(layer.state_dict()[key], theirs.state_dict()[key])


def test_the_activation_is_measured_once() -> None:
    """Three measurements would be three means over x; pooling sees (N, C) only."""
    x, layer = _input(4, 3, 5, 6), _layer()
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.no_grad(), torch.profiler.profile(activities=activities) as profile:
        layer(x)
    means = [event for event in profile.events() if event.name == "aten::mean"]
    assert len(means) == 2  # of x, and of its squared distance from that


def test_one_sample_is_no_batch() -> None:
    with pytest.raises(InputError, match=r"SwitchableNorm got \(1, 3\) in training: 1 sample"):
        _layer()(_input(1, 3))
    assert torch.isfinite(_layer()(_input(1, 3, 2))).all()
    assert torch.isfinite(_layer().eval()(_input(1, 3))).all()
