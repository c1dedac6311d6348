"""Watching layers without leaving a trace in the model."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from known_networks import normalized, pictures
from torch import Tensor, nn

from normapps.analysis.hooks import (
    as_in_training,
    cross_entropy,
    kind_of,
    rows_of,
    watch,
    weighted_layers,
)
from normapps.errors import InputError


class Seen:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []

    def begin(self, samples: int) -> None:
        self.told.append(("begin", str(samples)))

    def forward(self, layer: str, module: nn.Module, x: Tensor, y: Tensor) -> None:
        assert not x.requires_grad
        self.told.append(("forward", layer))

    def backward(self, layer: str, module: nn.Module, gradient: Tensor) -> None:
        self.told.append(("backward", layer))


def test_each_call_is_told_in_its_order() -> None:
    shared = nn.Linear(4, 4)
    model = nn.Sequential(nn.ReLU(inplace=True), shared, nn.ReLU(inplace=True), shared)
    x, seen = torch.randn(3, 4), Seen()
    before = x.clone()
    watch(model, [(x, None)], [seen])
    calls = [("forward", "1")] * 2 + [("backward", "1")] * 2
    assert seen.told == [("begin", "3"), *calls]
    assert torch.equal(x, before)
    assert not x.requires_grad
    assert not any(module._forward_hooks for module in model.modules())


def test_a_forward_without_a_graph_is_refused() -> None:
    class Cut(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.detach()

    with pytest.raises(InputError, match="its forward detaches it"):
        watch(Cut(), [(torch.randn(3, 4), None)], [])


class Branches(nn.Module):
    """Two layers read the inputs, one of them without a graph; a third reads both."""

    def __init__(self, is_cut: bool) -> None:
        super().__init__()
        self.is_cut = is_cut
        self.one, self.other, self.last = (nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        with torch.set_grad_enabled(not self.is_cut):
            other = self.other(x)
        return self.last(self.one(x).relu_() + other)


@pytest.mark.parametrize("is_cut", [False, True])
def test_gradients_of_layers_that_read_the_inputs(is_cut: bool) -> None:
    model, x = Branches(is_cut), torch.randn(3, 4)
    found: dict[str, Tensor] = {}

    class Keeps(Seen):
        def backward(self, layer: str, module: nn.Module, gradient: Tensor) -> None:
            found[layer] = gradient

    watch(model, [(x, torch.tensor([0, 1, 2]))], [Keeps()])
    one, other = model.one(x), model.other(x)
    logits = model.last(one.relu() + other)
    wanted = torch.autograd.grad(
        F.cross_entropy(logits, torch.tensor([0, 1, 2]), reduction="sum"), [one, other, logits]
    )
    named = dict(zip(["one", "other", "last"], wanted, strict=True))
    if is_cut:
        del named["other"]
    assert found.keys() == named.keys()
    assert all(torch.allclose(found[name], named[name]) for name in named)


def _fail_within(model: nn.Sequential) -> None:
    with as_in_training(model):
        assert [module.training for module in model] == [True, False, True]
        model.requires_grad_(False)
        before = model[0].running_mean.clone()
        model(pictures(4))
        assert not torch.equal(model[0].running_mean, before)
        raise ZeroDivisionError


def test_norm_layers_train_and_dropout_does_not() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.5), nn.BatchNorm2d(3)).eval()
    model[0].weight.requires_grad_(False)
    model[2].train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    buffer = model[0].running_mean
    with pytest.raises(ZeroDivisionError):
        _fail_within(model)
    assert [module.training for module in model] == [False, False, True]
    assert [each.requires_grad for each in model.parameters()] == [False, True, True, True]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model[0].running_mean is buffer


def test_kinds_and_rows() -> None:
    layers = {
        "conv 3×1": nn.Conv2d(4, 8, (3, 1)),
        "depthwise 3×3": nn.Conv2d(4, 4, 3, groups=4),
        "grouped 3×3": nn.Conv2d(4, 4, 3, groups=2),
        "linear": nn.Linear(4, 2),
    }
    assert [kind_of(layer) for layer in layers.values()] == list(layers)
    x = torch.arange(2 * 4 * 3 * 5.0).view(2, 4, 3, 5)
    rows = rows_of(x, layers["conv 3×1"])
    assert rows.shape == (30, 4)
    assert torch.equal(rows[7], x[0, :, 1, 2])
    assert torch.equal(rows_of(x[..., :4], layers["linear"])[4], x[0, 1, 1, :4])
    assert list(weighted_layers(normalized(nn.BatchNorm2d(8)))) == ["0", "5"]


def test_losses_that_are_none() -> None:
    with pytest.raises(InputError, match="one output"):
        cross_entropy(torch.zeros(3, 1), None)
    with pytest.raises(InputError, match="not finite"):
        cross_entropy(torch.full((3, 2), math.nan), None)
    with pytest.raises(InputError, match="no logits are in it"):
        cross_entropy({"boxes": torch.zeros(3, 4)}, None)
    # the class that the logits prefer
    found = cross_entropy({"logits": torch.tensor([[0.0, 2.0]])}, None)
    assert float(found) == pytest.approx(math.log(1 + math.exp(-2)))
