"""Sums, products and activations: what is tied, and what ends silence."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_networks import Net, chain, check, conv, random_scales_, reasons
from torch import Tensor, nn

from normapps.graph import trace_channels


def test_residual_sums_tie() -> None:
    def run(net: Any, x: Tensor) -> Tensor:
        x = net.a(x)
        x = F.relu(x + net.b(x))
        x += net.c(x)
        return net.classify(x)  # type: ignore[no-any-return]

    graph = check(Net(run, a=conv(3, 8), b=conv(8, 8), c=conv(8, 8)), least=1.0)
    assert graph.scales["a.bn"].tolist() == graph.scales["c.bn"].tolist()


def test_squeeze_and_excitation() -> None:
    def run(net: Any, x: Tensor) -> Tensor:
        x = net.a(x)
        gate = torch.sigmoid(net.up(F.relu(net.down(x.mean((2, 3), keepdim=True)))))
        return net.classify(x * gate)  # type: ignore[no-any-return]

    graph = check(Net(run, a=conv(3, 8), down=nn.Conv2d(8, 4, 1), up=nn.Conv2d(4, 8, 1)))
    rows = graph.slots["up.weight"][0]
    assert rows is not None
    assert rows.tolist() == graph.scales["a.bn"].tolist()
    inner = next(group for group in graph.groups if group.name == "down.weight")
    assert inner.reason == "no batch norm scales them"


def test_layer_scale_and_positions_are_cut_too() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gamma = nn.Parameter(torch.rand(8, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.gamma

    graph = check(chain(conv(3, 8), Scaled(), conv(8, 8)), least=1.0)
    slot = graph.slots["l1.gamma"][0]
    assert slot is not None
    assert slot.tolist() == graph.scales["l0.bn"].tolist()


def test_added_positions_end_silence() -> None:
    class Placed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.places = nn.Parameter(torch.rand(1, 8, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return x + self.places

    model = chain(conv(3, 8), Placed(), nn.Conv2d(8, 8, 1))
    graph = trace_channels(random_scales_(model), torch.randn(1, 3, 8, 8))
    assert reasons(graph, "l0.bn") == {"l2 reads them without a batch norm between"}


@pytest.mark.parametrize(
    ("middle", "reason"),
    [
        (nn.Sigmoid(), "l2 reads them without a batch norm between"),
        (nn.Softplus(), "l2 reads them without a batch norm between"),
        (nn.Hardtanh(0.5, 1.0), "l2 reads them without a batch norm between"),
        (nn.Softmax(1), "l1 takes aten._softmax over them"),
        (nn.GroupNorm(2, 8), "l1 takes statistics over them"),
        (nn.InstanceNorm2d(8), "free"),
        (nn.ConstantPad2d(1, 2.0), "l2 reads them without a batch norm between"),
    ],
)
def test_what_ends_silence(middle: nn.Module, reason: str) -> None:
    model = random_scales_(chain(conv(3, 8), middle, nn.Conv2d(8, 8, 1)))
    graph = trace_channels(model, torch.randn(1, 3, 8, 8))
    assert reasons(graph, "l0.bn") == {reason}
