"""Cutting: what stays in the end is not silenced; what is weighed anew sees what went."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from normapps.graph import trace_channels
from normapps.graph.oracle import Slimmed, slim_verified
from normapps.slim import cutting
from normapps.slim.cutting import cut_networks, without
from normapps.slim.layers import layer_rows, reduction


class Net(nn.Module):
    """Two convolutions whose channels are constants where their scales are 0."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm1 = nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6)
        self.two, self.norm2 = nn.Conv2d(6, 8, 1), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(self.one(x)).relu()
        return self.head(self.norm2(self.two(x)).relu().mean((2, 3)))


@pytest.fixture
def net() -> Net:
    """Channels 0 and 1 of both norms have scale 0 and shift 1."""
    torch.manual_seed(0)
    found = Net().eval()
    for norm in (found.norm1, found.norm2):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        norm.weight.data[:2], norm.bias.data[:2] = 0, 1
    return found


def _doomed(net: Net, x: Tensor) -> tuple[Any, np.ndarray]:
    graph = trace_channels(net, x[:1])
    keep = np.ones(graph.count, bool)
    for atoms in graph.scales.values():
        keep[atoms[:2]] = False
    return graph, keep


def test_compensation_makes_the_cut_exact_and_the_plain_cut_is_not(net: Net) -> None:
    x = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(1))
    graph, keep = _doomed(net, x)
    found = cut_networks(net, graph, keep, x[:1], x)
    assert found.compensated is not None
    with torch.no_grad():
        torch.testing.assert_close(found.compensated(x), net(x), rtol=1e-5, atol=1e-6)
        assert torch.equal(found.compensated(x), found.result.model(x))
        assert float((found.plain(x) - net(x)).abs().max()) > 0.01
    assert found.result.difference <= 1e-5
    bare = cut_networks(net, graph, keep, x[:1], None)
    assert bare.compensated is None
    with torch.no_grad():
        assert torch.equal(bare.result.model(x), found.plain(x))
    assert np.isnan(cut_networks(net, graph, keep, x[:1], x, verify=False).result.difference)


def test_a_group_that_is_left_whole_is_not_silenced(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The compensation, which silences what goes, is made anew without it."""
    net.norm1.weight.data[:2] = 0.7
    x = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(1))
    graph, keep = _doomed(net, x)

    def leaving(model: nn.Module, graph: Any, keep: np.ndarray, inputs: Tensor) -> Slimmed:
        whole = keep.copy()
        whole[graph.scales["norm1"]] = True
        left = (("norm1", "a test"),) if not keep.all() and not (whole == keep).all() else ()
        return dataclasses.replace(slim_verified(model, graph, whole, inputs), left=left)

    monkeypatch.setattr(cutting, "slim_verified", leaving)
    found = cut_networks(net, graph, keep, x[:1], x)
    assert found.result.left == (("norm1", "a test"),)
    assert found.compensated is not None
    assert found.compensated.get_submodule("norm1").num_features == 6
    assert found.compensated.get_submodule("norm2").num_features == 6
    with torch.no_grad():
        torch.testing.assert_close(found.compensated(x), net(x), rtol=1e-5, atol=1e-6)


def test_what_went_weighs_nothing(net: Net) -> None:
    x = torch.randn(1, 3, 5, 5)
    graph, keep = _doomed(net, x)
    rest = without(net, graph, keep)
    assert not rest.get_parameter("one.weight")[:2].any()
    assert not rest.get_parameter("two.weight")[:, :2].any()
    assert torch.equal(rest.get_parameter("two.weight")[2:, 2:], net.two.weight[2:, 2:])
    assert net.one.weight[:2].all()  # the model itself is as it was


def test_a_row_a_layer_counts_before_and_after(net: Net) -> None:
    x = torch.randn(1, 3, 5, 5)
    graph, keep = _doomed(net, x)
    slimmed = cut_networks(net, graph, keep, x, None).result.model
    rows = {row.name: row for row in layer_rows(net, slimmed, graph, keep)}
    assert list(rows) == ["one", "norm1", "two", "norm2", "head"]
    assert rows["two"].channels == (8, 6)
    assert rows["two"].parameters == (6 * 8 + 8, 4 * 6 + 6)
    assert rows["two"].macs == (25 * 48, 25 * 24)
    assert rows["norm1"].macs == (0, 0)
    assert rows["head"].channels == (4, 4)
    assert rows["head"].parameters == (36, 28)
    assert reduction(0, 0) == 0.0
    assert reduction(4, 1) == 0.75
