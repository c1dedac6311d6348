"""Cutting channels, on graphs written by hand: what the tracer finds is tested elsewhere."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from normapps.errors import InputError
from normapps.graph.graph import ChannelGraph, Cost, Cut, Group
from normapps.graph.sizes import names_read
from normapps.graph.surgery import slim_model
from normapps.models.slimmed import Edits, apply_edits_


class Halves(nn.Module):
    """Splits by an attribute, normalizes one half only."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.width = width
        self.sizes = [width, width]
        self.unread = width
        self.first = nn.Conv2d(3, 2 * width, 3, bias=False)
        self.norm = nn.BatchNorm2d(2 * width)
        self.depth = nn.Conv2d(width, width, 3, groups=width)
        self.last = nn.Linear(2 * width, 5)

    def forward(self, x: Tensor) -> Tensor:
        one, other = self.norm(self.first(x)).relu().split(self._sizes(), 1)
        one = self.depth(one).mean((2, 3)) + self.depth.bias.sum() * 0
        return self.last(torch.cat([one, other.mean((2, 3))], 1))

    def _sizes(self) -> list[int]:
        return [self.width, *self.sizes[1:]]


def halves_graph(tied: bool = True) -> ChannelGraph:
    """The graph of `Halves`, up to the depthwise layer's output, whose constants must stay."""
    whole = np.arange(8) % 4 if tied else np.arange(8)
    norm = ("norm.weight", "norm.bias", "norm.running_mean", "norm.running_var")
    slots: dict[str, Any] = dict.fromkeys(norm, (whole,))
    slots |= {"first.weight": (whole, None, None, None), "depth.bias": (whole[:4],)}
    slots |= {"depth.weight": (whole[:4], None, None, None), "last.weight": (None, whole)}
    slots |= {"norm.num_batches_tracked": (), "last.bias": (None,)}
    cut = Cut("", (4, 4), (whole[:4], whole[4:]))
    cost = Cost("depth", "depth.weight", 1, 4, 1, whole[:4], None, 9, 4, whole[:4])
    groups = (Group("norm", np.unique(whole), ("norm",)),)
    count = 4 if tied else 8
    return ChannelGraph(
        count, slots, {}, {"norm": whole}, cuts=(cut,), costs=(cost,), groups=groups
    )


def halves(seed: int = 0) -> Halves:
    torch.manual_seed(seed)
    model = Halves().eval()
    with torch.no_grad():
        model.norm.running_mean.normal_()
        model.norm.weight.uniform_(0.5, 1.5)
        model.norm.bias.normal_()
        model.depth.bias.zero_()  # so that a dead channel is silent behind it
    return model


def test_what_remains_is_what_was_kept() -> None:
    model = halves()
    before = copy.deepcopy(model.state_dict())
    slim, _ = slim_model(model, halves_graph(), np.array([True, False, True, True]))
    stays = [0, 2, 3, 4, 6, 7]
    after = slim.state_dict()
    assert torch.equal(after["first.weight"], before["first.weight"][stays])
    assert torch.equal(after["norm.running_mean"], before["norm.running_mean"][stays])
    assert torch.equal(after["depth.weight"], before["depth.weight"][[0, 2, 3]])
    assert torch.equal(after["last.weight"], before["last.weight"][:, stays])
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_layers_and_splits_know_their_sizes() -> None:
    slim, edits = slim_model(halves(), halves_graph(), np.array([True, False, True, False]))
    assert isinstance(slim, Halves)
    assert (slim.first.in_channels, slim.first.out_channels) == (3, 4)
    assert (slim.depth.in_channels, slim.depth.out_channels, slim.depth.groups) == (2, 2, 2)
    assert (slim.norm.num_features, slim.last.in_features) == (4, 4)
    assert (slim.width, slim.sizes, slim.unread) == (2, [2, 2], 4)
    assert edits.attributes["depth"] == {"in_channels": 2, "out_channels": 2, "groups": 2}
    assert edits.attributes[""] == {"width": 2, "sizes": [2, 2]}
    assert edits.shapes["last.weight"] == [5, 4]
    assert "last.bias" not in edits.shapes


def test_the_slimmed_network_shares_no_memory_and_trains() -> None:
    model = halves()
    slim, _ = slim_model(model, halves_graph(), np.array([True, False, True, True]))
    x = torch.randn(2, 3, 8, 8)
    before = model(x).detach().clone()
    slim(x).sum().backward()
    with torch.no_grad():
        for each in slim.parameters():
            assert each.requires_grad
            each.zero_()
    assert torch.equal(model(x), before)


def test_pieces_that_no_longer_agree_with_one_attribute_are_refused() -> None:
    keep = np.ones(8, bool)
    keep[1] = False
    with pytest.raises(InputError, match="its 'width' would have to be 3 and 4 at once"):
        slim_model(halves(), halves_graph(tied=False), keep)


def test_a_layer_is_never_emptied() -> None:
    with pytest.raises(InputError, match=r"'.*' would lose all of its \d channels; keep at least"):
        slim_model(halves(), halves_graph(), np.zeros(4, bool))


def test_a_graph_of_another_model_is_refused() -> None:
    with pytest.raises(InputError, match="graph is of another model: it knows a tensor 'norm"):
        slim_model(nn.Sequential(nn.Conv2d(3, 8, 1)), halves_graph(), np.ones(4, bool))


def test_shared_tensors_and_modules_stay_shared() -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"a": nn.BatchNorm2d(4), "c": nn.BatchNorm2d(4)})
    model["b"] = model["a"]
    model["c"].weight = model["a"].weight
    atoms = np.arange(4)
    slots: dict[str, Any] = {
        key: (atoms,) if v.dim() else () for key, v in model.state_dict().items()
    }
    graph = ChannelGraph(4, slots, {}, {"a": atoms})
    slim, edits = slim_model(model, graph, np.array([True, True, False, True]))
    assert slim["b"] is slim["a"]
    assert slim["c"].weight is slim["a"].weight
    assert slim["c"].weight.shape == (3,)
    again = copy.deepcopy(model)
    apply_edits_(again, edits)
    assert again["c"].weight is again["a"].weight
    again.load_state_dict(slim.state_dict())


def test_transposed_and_grouped_convolutions() -> None:
    atoms = np.arange(6)
    pairs = np.arange(6) % 3  # two groups of three, tied
    model = nn.Sequential(nn.ConvTranspose2d(2, 6, 2), nn.Conv2d(6, 4, 1, groups=2))
    slots: dict[str, Any] = {"0.weight": (None, pairs, None, None), "0.bias": (pairs,)}
    slots |= {"1.weight": (None, atoms[:3], None, None), "1.bias": (None,)}
    slim, _ = slim_model(model, ChannelGraph(3, slots, {}, {}), np.array([True, False, True]))
    assert (slim[0].in_channels, slim[0].out_channels, slim[0].groups) == (2, 4, 1)
    assert (slim[1].in_channels, slim[1].out_channels, slim[1].groups) == (4, 4, 2)
    assert slim(torch.randn(1, 2, 3, 3)).shape == (1, 4, 4, 4)


def test_a_buffer_outside_the_state_dict_is_rebuilt_by_its_indices() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("ramp", torch.arange(4.0), persistent=False)

    slim, edits = slim_model(
        Fixed(), ChannelGraph(4, {"ramp": (np.arange(4),)}, {}, {}), np.array([1, 0, 0, 1], bool)
    )
    fresh = Fixed()
    apply_edits_(fresh, edits)
    assert edits == Edits(indices={"ramp": [[0, 3]]})
    assert fresh.get_buffer("ramp").tolist() == slim.get_buffer("ramp").tolist() == [0.0, 3.0]
    assert not fresh.state_dict()


def test_names_that_a_forward_reads_are_found_through_its_methods() -> None:
    read = names_read(Halves)
    assert {"width", "sizes", "split"} <= read
    assert "unread" not in read
