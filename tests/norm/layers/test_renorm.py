"""Batch renormalization: the correction, its limits and their schedule."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from normapps.errors import InputError
from normapps.norm import convert_norm
from normapps.norm.layers.renorm import BatchRenorm

AT_ONCE = {"warmup": 0, "r_steps": 0, "d_steps": 0}


def _layer(**options: float) -> BatchRenorm:
    torch.manual_seed(0)
    layer = BatchRenorm(3, **(AT_ONCE | options)).double()  # type: ignore[arg-type]
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    layer.running_mean = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
    layer.running_var = torch.tensor([0.3, 1.5, 4.0], dtype=torch.float64)
    return layer


def _input(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(4, 3, 5, 2, generator=generator, dtype=torch.float64) * 2 + 0.3


def _expected(layer: BatchRenorm, x: Tensor, r_max: float, d_max: float) -> Tensor:
    """Algorithm 1 of the paper, with this project's eps."""
    shape = (1, 3, 1, 1)
    mu, sigma = layer.running_mean, (layer.running_var + layer.eps).sqrt()
    rows = x.transpose(0, 1).reshape(3, -1)
    mu_b = rows.mean(1)
    sigma_b = ((rows - mu_b[:, None]).square().mean(1) + layer.eps).sqrt()
    r = (sigma_b / sigma).clip(1 / r_max, r_max).detach()
    d = ((mu_b - mu) / sigma).clip(-d_max, d_max).detach()
    y = (x - mu_b.reshape(shape)) / sigma_b.reshape(shape) * r.reshape(shape) + d.reshape(shape)
    return layer.weight.reshape(shape) * y + layer.bias.reshape(shape)


@pytest.mark.parametrize(("r_max", "d_max"), [(1.0, 0.0), (1.5, 0.4), (3.0, 5.0), (100.0, 100.0)])
def test_values_and_gradients(r_max: float, d_max: float) -> None:
    layer = _layer(r_max=r_max, d_max=d_max)
    found, given = (_input().requires_grad_() for _ in range(2))
    expected = _expected(layer, given, r_max, d_max)
    y = layer(found)
    torch.testing.assert_close(y, expected)
    weight = torch.linspace(-1, 2, y.numel(), dtype=torch.float64).reshape(y.shape)
    (y * weight).sum().backward()
    (expected * weight).sum().backward()
    torch.testing.assert_close(found.grad, given.grad)


def test_unclipped_training_is_inference() -> None:
    layer, x = _layer(r_max=1e9, d_max=1e9), _input()
    expected = layer.eval()(x)
    torch.testing.assert_close(layer.train()(x), expected)


def test_in_its_warm_up_it_is_batch_norm() -> None:
    ours, theirs = BatchRenorm(3).double(), nn.BatchNorm2d(3).double()
    for seed in range(3):
        torch.testing.assert_close(ours(_input(seed)), theirs(_input(seed)))
    for key, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[key], value)


@pytest.mark.parametrize(
    ("step", "r_max", "d_max"),
    [(0, 1, 0), (5000, 1, 0), (15000, 11 / 7, 2.5), (25000, 15 / 7, 5), (50000, 3, 5)],
)
def test_the_limits_grow_as_in_the_paper(step: int, r_max: float, d_max: float) -> None:
    layer = BatchRenorm(3).double()
    layer.num_batches_tracked = torch.tensor(step)
    found = [each.item() for each in layer.limits(layer.running_mean)]
    assert found == pytest.approx([r_max, d_max])


def test_a_frozen_layer_without_a_counter_has_its_limits() -> None:
    layer = BatchRenorm(3)
    layer.num_batches_tracked = None
    assert [each.item() for each in layer.limits(layer.running_mean)] == [3, 5]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"r_max": 0.5}, "r_max 0.5"),
        ({"d_max": -1.0}, "d_max -1.0"),
        ({"warmup": 7, "r_steps": 5, "d_steps": 9}, "warmup 7"),
        ({"track_running_stats": False}, "running statistics"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        BatchRenorm(3, **options)  # type: ignore[arg-type]


def test_a_batch_norm_becomes_one() -> None:
    old = nn.Sequential(nn.BatchNorm2d(3))
    old(_input().float())
    new = convert_norm(old, "renorm")
    torch.testing.assert_close(new.eval()(_input().float()), old.eval()(_input().float()))
