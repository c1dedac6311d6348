"""Choosing population layers: patterns, shared layers, and buffers that come back in order."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
import torch
from torch import nn

from normapps.errors import InputError
from normapps.norm import create_norm
from normapps.norm.population import Fingerprint, population_layers
from normapps.norm.population.choosing import choose, only


def _model() -> nn.Sequential:
    shared = nn.BatchNorm2d(4)
    whitening = create_norm("zca", 4, group_size=2)
    stage = nn.Sequential(nn.BatchNorm2d(4), shared)
    return nn.Sequential(nn.Conv2d(3, 4, 1), shared, stage, whitening, nn.GroupNorm(2, 4)).eval()


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        ((), (), ("1", "2.0", "3")),
        ("2", (), ("1", "2.0")),  # 2.1 is the layer at 1
        ("2.1", (), ("1",)),
        (["1", "3"], "1", ("3",)),
        ((), "2*", ("3",)),
        ("?", "3", ("1", "2.0")),
    ],
)
def test_patterns(include: Any, exclude: Any, expected: tuple[str, ...]) -> None:
    assert choose(_model(), include, exclude) == expected


def test_patterns_that_take_nothing() -> None:
    with pytest.raises(InputError, match=r"unknown norm layer '2\.2'; did you mean '2"):
        choose(_model(), "2.2")
    with pytest.raises(InputError, match="unknown norm layer '4'"):  # a group norm
        choose(_model(), exclude="4")
    with pytest.raises(InputError, match="excludes all of the 3 layers: exclude less"):
        choose(_model(), exclude="*")
    with pytest.raises(InputError, match="no layer with running statistics"):
        choose(nn.Conv2d(3, 4, 1))


def test_the_others_normalize_as_ever_and_come_back_in_order() -> None:
    model = _model()
    for layer in population_layers(model).values():
        nn.init.uniform_(layer.get_buffer("running_mean"))
    x, keys = torch.randn(2, 3, 5, 5), list(model.state_dict())
    tensors = [(name, id(buffer)) for name, buffer in model.named_buffers()]
    y, fingerprint = model(x), Fingerprint.of(model)
    with only(model, ("2.0",)):
        assert list(population_layers(model)) == ["2.0"]
        assert torch.equal(model(x), y)
        assert Fingerprint.of(model) == fingerprint
    with suppress(KeyError), only(model, ("1",)):
        raise KeyError
    assert list(model.state_dict()) == keys
    assert [(name, id(buffer)) for name, buffer in model.named_buffers()] == tensors
    assert "running_mean" not in vars(model[1])
    assert torch.equal(model(x), y)
