"""What the layers share whose scale and shift a condition decides: their base, their population."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from normapps.errors import InputError
from normapps.norm import INSTANCE
from normapps.norm.layers.base import NormLayer, NoStatisticsError
from normapps.norm.layers.modulated import modulated
from normapps.norm.registry import create_norm

OPTIONS: dict[str, dict[str, Any]] = {
    "conditional": {"num_classes": 2},
    "self_modulated": {"latent_features": 5},
    "spatial": {"condition_channels": 2, "hidden_channels": 3, "layout": "2d"},
}
every_layer = pytest.mark.parametrize("name", OPTIONS)


def _make(name: str, **more: Any) -> NormLayer:
    torch.manual_seed(0)
    layer = create_norm(name, 3, **OPTIONS[name], **more)
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    return layer


def _condition(name: str) -> Tensor:
    return {
        "conditional": torch.tensor([0, 1]),
        "self_modulated": torch.linspace(-1, 1, 10).reshape(2, 5),
        "spatial": torch.linspace(-1, 1, 16).reshape(2, 2, 2, 2),
    }[name]


@every_layer
def test_on_instances_there_is_no_population(name: str) -> None:
    layer = _make(name, base="instance", sync=True)
    assert layer.partition() == INSTANCE
    assert not list(layer.buffers())
    assert layer.running_mean is None
    x = torch.randn(2, 3, 4, 4)
    training, inference = layer(x, _condition(name)), layer.eval()(x, _condition(name))
    assert torch.equal(training, inference)
    layer.frozen = True
    assert torch.equal(layer.train()(x, _condition(name)), inference)
    assert not layer.sync  # other processes have other instances
    assert "base=instance" in repr(layer)


@every_layer
def test_one_position_is_too_few(name: str) -> None:
    x = torch.randn(2, 3, 1, 1)
    for training in (True, False):
        with pytest.raises(InputError, match=r"got \(2, 3, 1, 1\): 1 element is left"):
            _make(name, base="instance").train(training)(x, _condition(name))
    assert torch.isfinite(_make(name)(x, _condition(name))).all()
    with pytest.raises(InputError, match=r"got \(1, 3, 1, 1\) in training: 1 sample"):
        _make(name)(x[:1], _condition(name)[:1])


@every_layer
def test_without_momentum_all_batches_weigh_the_same(name: str) -> None:
    layer, theirs = _make(name, momentum=None), nn.BatchNorm2d(3, momentum=None)
    for seed in range(3):
        x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(seed)) * (seed + 1)
        layer(x, _condition(name))
        theirs(x)
    for key in ("running_mean", "running_var", "num_batches_tracked"):
        torch.testing.assert_close(layer.state_dict()[key], theirs.state_dict()[key])


@every_layer
def test_the_condition_comes_first(name: str) -> None:
    """An unfit condition must not have moved the population."""
    layer = _make(name)
    with pytest.raises(InputError):
        layer(torch.randn(2, 3, 4, 4), "a cat")
    assert layer.num_batches_tracked == 0


@every_layer
def test_an_unknown_base_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="unknown base 'bacth'; did you mean 'batch'"):
        create_norm(name, 3, base="bacth", **OPTIONS[name])


def test_one_without_statistics_says_so() -> None:
    layer = create_norm("adalin", 3, latent_features=2)
    with pytest.raises(NoStatisticsError, match="AdaLIN keeps no running_var"):
        _ = layer.running_var


@pytest.mark.parametrize("space", [(), (4,), (2, 3)])
def test_a_change_is_added_to_what_is_there(space: tuple[int, ...]) -> None:
    change = torch.randn(2, 6, *space)
    weight, bias = torch.randn(3), torch.randn(3)
    view = (1, 3, *[1] * len(space))
    scale, shift = modulated(change, weight, bias)
    assert torch.equal(scale, change[:, :3] + weight.reshape(view))
    assert torch.equal(shift, change[:, 3:] + bias.reshape(view))
    scale, shift = modulated(change, None, None)
    assert torch.equal(scale, change[:, :3] + 1)
    assert torch.equal(shift, change[:, 3:])
