"""A penalty on what can be cut, whole atoms at a time, weighted by what it costs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD

from normapps.errors import InputError
from normapps.graph import ChannelGraph, trace_channels
from normapps.slim.channels import channel_macs, choose_scales
from normapps.slim.regularizer import ScaleRegularizer
from normapps.slim.scales import split_parameters


class Residual(nn.Module):
    """A stream of 6 channels that two norms write to, and a branch of 10."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(6)
        self.inner = nn.Conv2d(6, 10, 3, padding=1, bias=False)
        self.inner_norm = nn.BatchNorm2d(10)
        self.outer = nn.Conv2d(10, 6, 1, bias=False)
        self.outer_norm = nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, 4)."""
        x = self.stem_norm(self.stem(x))
        y = self.inner_norm(self.inner(x)).relu()
        logits: Tensor = self.head((x + self.outer_norm(self.outer(y))).relu().mean((2, 3)))
        return logits


def a_model() -> tuple[Residual, ChannelGraph]:
    torch.manual_seed(0)
    model = Residual()
    for name in ("stem_norm", "inner_norm", "outer_norm"):
        nn.init.uniform_(getattr(model, name).weight, 0.2, 1.0)
    return model, trace_channels(model.eval(), torch.randn(1, 3, 8, 8))


def shrink(model: nn.Module, reg: ScaleRegularizer, optimizer: SGD, steps: int) -> None:
    """Steps on a loss that does not care."""
    for _ in range(steps):
        for each in model.parameters():
            each.grad = torch.zeros_like(each)
        optimizer.step()
        reg.step()


def atoms_alive(model: Residual, graph: ChannelGraph) -> tuple[int, int]:
    """Zero scales, and atoms all of whose scales are zero."""
    alive = np.zeros(graph.count, bool)
    zeros = 0
    for name, atoms in graph.scales.items():
        scale = model.get_submodule(name).weight.detach().numpy()
        zeros += int((scale == 0).sum())
        np.logical_or.at(alive, atoms, scale != 0)
    scaled = np.unique(np.concatenate(list(graph.scales.values())))
    return zeros, int((~alive[scaled]).sum())


def test_tied_scales_die_together_and_that_is_the_default() -> None:
    found = {}
    for tied in (None, False):
        model, graph = a_model()
        optimizer = SGD(split_parameters(model, 0.0), 0.1)
        reg = ScaleRegularizer(model, optimizer, strength=0.4, graph=graph, tied=tied)
        shrink(model, reg, optimizer, 15)
        stem, outer = (model.get_submodule(name).weight for name in ("stem_norm", "outer_norm"))
        found[tied] = bool(((stem == 0) == (outer == 0)).all())
        zeros, dead = atoms_alive(model, graph)
        assert 0 < dead <= zeros < 22
        if tied is None:
            assert reg.sparsity() * 22 == pytest.approx(zeros)
    assert found[None]
    assert not found[False]


def test_a_tied_group_is_the_group_lasso() -> None:
    model, graph = a_model()
    stem, outer = model.stem_norm.weight.detach().clone(), model.outer_norm.weight.detach().clone()
    optimizer = SGD(model.parameters(), 0.5)
    reg = ScaleRegularizer(model, optimizer, strength=0.1, graph=graph)
    norm = (stem.square() + outer.square()).sqrt()
    inner = model.inner_norm.weight.detach().abs().sum()
    assert reg.penalty() == pytest.approx(0.1 * float(2**0.5 * norm.sum() + inner), rel=1e-6)
    shrink(model, reg, optimizer, 1)
    factor = (1 - 0.5 * 0.1 * 2**0.5 / norm).clamp_min(0)
    torch.testing.assert_close(model.stem_norm.weight.detach(), stem * factor)
    torch.testing.assert_close(model.outer_norm.weight.detach(), outer * factor)


def test_what_cannot_be_cut_is_never_penalized() -> None:
    torch.manual_seed(0)
    # the last norm's channels are the output
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 1), nn.BatchNorm2d(5)
    )
    graph = trace_channels(model.eval(), torch.randn(1, 3, 8, 8))
    optimizer = SGD(model.parameters(), 0.1)
    for kind in ("proximal", "subgradient"):
        reg = ScaleRegularizer(model, optimizer, kind=kind, strength=0.5, graph=graph)
        shrink(model, reg, optimizer, 2)
        reg.remove()
    torch.testing.assert_close(model[1].weight.detach(), torch.full((4,), 1 - 4 * 0.05))
    assert torch.equal(model[4].weight, torch.ones(5))
    assert list(reg.layer_sparsity()) == ["1"]


def test_macs_a_channel_costs() -> None:
    _, graph = a_model()
    cost = channel_macs(graph)
    # a stream's channel: stem 3·9, inner 10·9, outer 10, at 64 positions, and the head's 4
    stream = (64 * (27 + 90 + 10) + 4) / 2
    branch = 64 * (54 + 6)
    np.testing.assert_array_equal(cost[graph.scales["stem_norm"]], np.full(6, stream))
    np.testing.assert_array_equal(cost[graph.scales["inner_norm"]], np.full(10, branch))


def test_flops_weights_have_mean_one() -> None:
    model, graph = a_model()
    scales = choose_scales(model, graph=graph, flops_weighted=True)
    stream, branch = (64 * (27 + 90 + 10) + 4) / 2, 64 * (54 + 6)
    mean = (12 * stream + 10 * branch) / 22
    wanted = torch.tensor([stream / mean] * 6 + [branch / mean] * 10 + [stream / mean] * 6)
    torch.testing.assert_close(scales.weights, wanted)
    assert float(scales.weights.mean()) == pytest.approx(1)


def test_weights_by_layer() -> None:
    model, _ = a_model()
    optimizer = SGD(model.parameters(), 1.0)
    weights = {"stem_norm": 1.0, "inner_norm": 3.0, "outer_norm": 1.0}
    before = {name: model.get_submodule(name).weight.detach().clone() for name in weights}
    reg = ScaleRegularizer(model, optimizer, strength=0.01, weights=weights)
    shrink(model, reg, optimizer, 1)
    mean = (6 + 30 + 6) / 22
    for name, weight in weights.items():
        moved = before[name] - model.get_submodule(name).weight.detach()
        torch.testing.assert_close(moved, torch.full_like(moved, 0.01 * weight / mean))


def test_refusals() -> None:
    model, graph = a_model()
    with pytest.raises(InputError, match=r"tied=True needs graph=trace_channels"):
        choose_scales(model, tied=True)
    with pytest.raises(InputError, match=r"flops_weighted=True needs graph"):
        choose_scales(model, flops_weighted=True)
    with pytest.raises(InputError, match=r"'stem'; did you mean 'stem_norm'"):
        choose_scales(model, weights={"stem": 1.0})
    with pytest.raises(InputError, match=r"layer 'inner_norm' has none"):
        choose_scales(model, weights={"stem_norm": 1.0})
    with pytest.raises(InputError, match=r"weights: -1.0 of layer 'stem_norm'"):
        choose_scales(model, weights={"stem_norm": -1.0})
    with pytest.raises(InputError, match="exclude each other"):
        choose_scales(model, graph=graph, flops_weighted=True, weights={"stem_norm": 1.0})
    model.inner_norm = nn.BatchNorm2d(11)
    with pytest.raises(InputError, match=r"'inner_norm' has 11 channels, the graph 10"):
        choose_scales(model, graph=graph)


def test_frozen_layers_are_left_out() -> None:
    model, _ = a_model()
    model.stem_norm.weight.requires_grad_(False)
    assert [each.name for each in choose_scales(model).layers] == ["inner_norm", "outer_norm"]
    model.requires_grad_(False)
    with pytest.raises(InputError, match="all are frozen"):
        choose_scales(model)
