"""Which layers are scales, and which are none."""

from __future__ import annotations

import pytest
import torch
from small_networks import chain
from torch import nn

from normapps.graph import trace_channels
from normapps.norm import create_norm


def test_batch_norm_without_scale_is_none() -> None:
    plain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, affine=False), nn.ReLU())
    graph = trace_channels(chain(plain, nn.Conv2d(8, 8, 1)), torch.randn(1, 3, 8, 8))
    assert not graph.scales
    assert set(graph.pinned.values()) == {"no batch norm scales them", "an output of the network"}


def test_network_without_a_batch_norm() -> None:
    graph = trace_channels(nn.Sequential(nn.Conv2d(3, 4, 3)), torch.randn(1, 3, 8, 8))
    assert graph.scales == {}
    assert not graph.free().any()


@pytest.mark.parametrize("name", ["batch", "ghost", "streaming", "group", "switchable", "cholesky"])
def test_layers_of_ours(name: str) -> None:
    """What normalizes as batch norm does is a scale; channels under the others stay, with why."""
    model = chain(nn.Conv2d(3, 8, 3), create_norm(name, 8), nn.ReLU(), nn.Conv2d(8, 8, 1))
    graph = trace_channels(model, torch.randn(1, 3, 16, 16))
    batch = name in ("batch", "ghost", "streaming")
    assert list(graph.scales) == (["l1"] if batch else [])
    rows = graph.slots["l0.weight"][0]
    assert rows is not None
    reasons = {graph.pinned.get(int(atom), "free") for atom in rows}
    assert ("free" in reasons) is batch
    assert batch or all("l1" in each or "no batch norm" in each for each in reasons)
