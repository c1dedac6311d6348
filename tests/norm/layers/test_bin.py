"""Batch-instance norm: a gate a channel, at whose ends stand batch and instance norm."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from normapps.errors import InputError
from normapps.norm.layers.bin import BatchInstanceNorm


def _layer(features: int = 3, seed: int = 0) -> BatchInstanceNorm:
    torch.manual_seed(seed)
    layer = BatchInstanceNorm(features).double()
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    nn.init.uniform_(layer.gate)
    return layer


def _input(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    scale = torch.arange(1, shape[1] + 1).reshape(-1, *[1] * (len(shape) - 2))
    return torch.randn(shape, generator=generator, dtype=torch.float64) * scale + scale


def _standardized(flat: Tensor, mean: Tensor, var: Tensor, eps: float = 1e-5) -> Tensor:
    return (flat - mean) / (var + eps).sqrt()


def _expected(layer: BatchInstanceNorm, x: Tensor, training: bool) -> Tensor:
    """Eq. 3 of the paper, written out."""
    flat = x.flatten(2)
    own, batch = flat.mean(2, keepdim=True), flat.mean((0, 2), keepdim=True)
    own_var = (flat - own).square().mean(2, keepdim=True)
    batch_var = (flat - batch).square().mean((0, 2), keepdim=True)
    if not training:
        batch, batch_var = (
            each.reshape(1, -1, 1).clone() for each in (layer.running_mean, layer.running_var)
        )
    gate, weight, bias = (each.reshape(1, -1, 1) for each in (layer.gate, layer.weight, layer.bias))
    y = gate * _standardized(flat, batch, batch_var)
    y = y + (1 - gate) * _standardized(flat, own, own_var)
    return (y * weight + bias).reshape(x.shape)


@settings(max_examples=40, deadline=None)
@given(
    samples=st.integers(1, 4),
    features=st.integers(1, 5),
    space=st.lists(st.integers(2, 4), min_size=1, max_size=3),
    seed=st.integers(0, 10**6),
)
def test_values_in_any_shape(samples: int, features: int, space: list[int], seed: int) -> None:
    layer = _layer(features, seed)
    x = _input(samples, features, *space, seed=seed)
    torch.testing.assert_close(layer(x), _expected(layer, x, True))
    torch.testing.assert_close(layer.eval()(x), _expected(layer, x, False))


@pytest.mark.parametrize("training", [True, False])
def test_at_the_ends_of_the_gate_stand_batch_and_instance_norm(training: bool) -> None:
    layer, theirs, x = _layer(), nn.BatchNorm2d(3).double(), _input(4, 3, 5, 6)
    theirs.load_state_dict(layer.state_dict(), strict=False)
    theirs.train(training)
    layer.train(training)
    for gate, expected in (
        (1.0, theirs(x)),
        (0.0, F.instance_norm(x, weight=layer.weight, bias=layer.bias)),
    ):
        nn.init.constant_(layer.gate, gate)
        layer.running_mean.zero_()
        layer.running_var.fill_(1)
        torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)
    nn.init.constant_(layer.gate, -0.4)  # counts as 0
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)


def test_it_starts_as_batch_norm_and_tracks_what_batch_norm_tracks() -> None:
    layer, theirs = BatchInstanceNorm(3).double(), nn.BatchNorm2d(3).double()
    for seed in range(3):
        x = _input(4, 3, 5, 6, seed=seed)
        torch.testing.assert_close(layer(x), theirs(x))
    for key, value in theirs.state_dict().items():
        torch.testing.assert_close(layer.state_dict()[key], value)
    missing = BatchInstanceNorm(3).load_state_dict(theirs.state_dict(), strict=False)
    assert missing.missing_keys == ["gate"]


def test_one_position_has_no_instance() -> None:
    for layer in (_layer(), _layer().eval()):
        with pytest.raises(InputError, match=r"BatchInstanceNorm got \(4, 3\): 1 element"):
            layer(_input(4, 3))
