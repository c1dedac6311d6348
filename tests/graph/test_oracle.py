"""The oracle, on graphs written by hand: right ones pass, wrong ones are caught."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from normapps.errors import InputError
from normapps.graph.graph import ChannelGraph, Group
from normapps.graph.oracle import silenced, slim_verified, verify
from normapps.graph.surgery import slim_model

STATES = ("weight", "bias", "running_mean", "running_var")


class Chain(nn.Module):
    """Four times convolution and batch norm, each the only reader of the one before."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(8 if i else 3, 8, 1, bias=False) for i in range(4))
        self.norms = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(4))
        self.last = nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Any:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = norm(conv(x)).relu()
        return self.last(x)


def chain() -> tuple[Chain, Tensor]:
    torch.manual_seed(0)
    model, x = Chain(), torch.randn(4, 3, 6, 6)
    for norm in model.norms:
        norm.momentum = 1.0
        nn.init.uniform_(norm.weight, 0.1, 1.9)
        nn.init.normal_(norm.bias)
    model.train()(x)
    return model.eval(), x


def chain_graph() -> ChannelGraph:
    atoms = [np.arange(8) + 8 * i for i in range(4)]
    slots: dict[str, Any] = {"last.weight": (None, atoms[3], None, None), "last.bias": (None,)}
    for i in range(4):
        slots[f"convs.{i}.weight"] = (atoms[i], atoms[i - 1] if i else None, None, None)
        slots |= {f"norms.{i}.{key}": (atoms[i],) for key in STATES}
    groups = tuple(Group(f"norms.{i}", atoms[i], (f"norms.{i}",)) for i in range(4))
    scales = {f"norms.{i}": atoms[i] for i in range(4)}
    return ChannelGraph(32, slots, {}, scales, groups=groups)


def kept() -> np.ndarray:
    keep = np.ones(32, bool)
    keep[[1, 2, 9, 12, 17, 18, 19, 31]] = False
    return keep


def altered(graph: ChannelGraph, **slots: Any) -> ChannelGraph:
    names = {key.replace("__", "."): value for key, value in slots.items()}
    return ChannelGraph(
        graph.count, {**graph.slots, **names}, {}, graph.scales, groups=graph.groups
    )


def test_silenced_channels_have_no_scale_and_no_shift() -> None:
    model, _ = chain()
    before = copy.deepcopy(model.state_dict())
    silent = silenced(model, chain_graph(), kept())
    for i in range(4):
        for key in ("weight", "bias"):
            expected = before[f"norms.{i}.{key}"] * torch.from_numpy(kept()[8 * i : 8 * i + 8])
            assert torch.equal(silent.state_dict()[f"norms.{i}.{key}"], expected)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_right_cut_is_verified() -> None:
    model, x = chain()
    out = model(x)
    slimmed = slim_verified(model, chain_graph(), kept(), x)
    assert slimmed.left == ()
    assert slimmed.difference <= 1e-6
    assert np.array_equal(slimmed.keep, kept())
    assert sum(p.numel() for p in slimmed.model.parameters()) < 0.8 * sum(
        p.numel() for p in model.parameters()
    )
    assert verify(model, slimmed.model, chain_graph(), kept(), x) == slimmed.difference
    assert torch.equal(model(x), out)


def test_a_slice_that_the_graph_forgot_leaves_its_group_whole() -> None:
    model, x = chain()
    graph = chain_graph()
    wrong = altered(graph, convs__2__weight=(graph.slots["convs.2.weight"][0], None, None, None))
    slimmed = slim_verified(model, wrong, kept(), x)
    ((name, reason),) = slimmed.left
    assert name == "norms.1"
    assert "RuntimeError" in reason
    _check_all_but(slimmed, [1], model, graph, x)


def test_channels_that_the_graph_confused_leave_their_group_whole() -> None:
    model, x = chain()
    graph = chain_graph()
    mixed = graph.slots["convs.3.weight"][1]
    assert mixed is not None
    wrong = altered(graph, convs__3__weight=(np.arange(24, 32), mixed[::-1], None, None))
    slimmed = slim_verified(model, wrong, kept(), x)
    ((name, reason),) = slimmed.left
    assert name == "norms.2"
    assert reason.startswith("the output differs by 0.")
    _check_all_but(slimmed, [2], model, graph, x)


def test_several_wrong_groups_are_all_found() -> None:
    model, x = chain()
    wrong = altered(
        chain_graph(),
        norms__0__running_mean=(np.arange(8)[::-1],),
        norms__3__running_var=(np.arange(24, 32)[::-1],),
    )
    slimmed = slim_verified(model, wrong, kept(), x)
    assert [name for name, _ in slimmed.left] == ["norms.0", "norms.3"]
    _check_all_but(slimmed, [0, 3], model, chain_graph(), x)


def _check_all_but(
    slimmed: Any, whole: list[int], model: nn.Module, graph: ChannelGraph, x: Tensor
) -> None:
    keep = kept()
    for index in whole:
        keep[8 * index : 8 * index + 8] = True
    assert np.array_equal(slimmed.keep, keep)
    expected = silenced(model, graph, keep)(x)
    torch.testing.assert_close(slimmed.model(x), expected)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_fails_although_both_say_the_same(value: float) -> None:
    model, x = chain()
    model.last.bias.data[0] = value
    slim, _ = slim_model(model, chain_graph(), kept())
    assert verify(model, slim, chain_graph(), kept(), x) == math.inf
    with pytest.raises(InputError, match="Chain cannot be verified: the output differs by inf"):
        slim_verified(model, chain_graph(), kept(), x)


class Wrapped(nn.Module):
    """Gives the outputs of a network in a form of its own."""

    def __init__(self, model: nn.Module, form: Any) -> None:
        super().__init__()
        self.model, self.form = model, form

    def forward(self, *inputs: Tensor) -> Any:
        return self.form(self.model(sum(inputs)))


@pytest.mark.parametrize(
    "form",
    [
        lambda out: (out, {"mean": out.mean((2, 3)), "none": None}),
        lambda out: [out[:, :2], out.argmax(1)],
    ],
)
def test_outputs_of_any_form_are_compared(form: Any) -> None:
    model, x = chain()
    slim, _ = slim_model(model, chain_graph(), kept())
    pair = Wrapped(model, form), Wrapped(slim, form)
    graph = chain_graph()
    scales = {f"model.{key}": atoms for key, atoms in graph.scales.items()}
    graph = ChannelGraph(graph.count, {}, {}, scales)
    assert verify(*pair, graph, kept(), (x, x)) <= 1e-5
    with torch.no_grad():
        slim.last.bias += 1
    assert verify(*pair, graph, kept(), (x, x)) > 0.1


def test_another_structure_or_shape_fails() -> None:
    model, x = chain()
    slim, _ = slim_model(model, chain_graph(), kept())
    graph = ChannelGraph(32, {}, {}, {})
    for form in (lambda out: [out, out], lambda out: out[:, :3], lambda out: {"out": out}):
        assert verify(model, Wrapped(slim, form), graph, kept(), x) == math.inf


def test_float64_decides_where_rounding_exceeds_the_tolerance() -> None:
    model, x = chain()
    slim, _ = slim_model(model, chain_graph(), kept())
    rounds = Wrapped(slim, lambda out: out * 3 / 3 + 100 - 100)
    with torch.no_grad():
        one, other = silenced(model, chain_graph(), kept())(x), rounds(x)
    assert float((one - other).abs().max() / one.abs().max()) > 1e-6
    assert verify(model, rounds, chain_graph(), kept(), x, tolerance=1e-6) < 1e-12
    assert next(slim.parameters()).dtype == torch.float32


def test_a_forward_that_insists_on_float32_is_judged_in_float32() -> None:
    model, x = chain()
    slim, _ = slim_model(model, chain_graph(), kept())
    own = Wrapped(slim, lambda out: (out * 3 / 3 + 100 - 100).float() @ torch.ones(6, 6))
    insisting = Wrapped(own, lambda out: out)
    insisting.forward = lambda x: own(x.float())  # type: ignore[method-assign]
    reference = Wrapped(model, lambda out: out @ torch.ones(6, 6, dtype=out.dtype))
    graph = chain_graph()
    graph = ChannelGraph(32, {}, {}, {f"model.{k}": a for k, a in graph.scales.items()})
    assert 1e-6 < verify(reference, insisting, graph, kept(), x, tolerance=1e-6) < 1e-4


def test_modes_and_statistics_stay() -> None:
    model, x = chain()
    model.train()
    model.norms[1].eval()
    before = copy.deepcopy(model.state_dict())
    slimmed = slim_verified(model, chain_graph(), kept(), x)
    for each in (model, slimmed.model):
        assert [norm.training for norm in each.norms] == [True, False, True, True]
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_an_error_behind_dead_units_is_seen() -> None:
    """Every activation of the last layer is 0 on these inputs, whatever it reads."""
    model, x = chain()
    with torch.no_grad():
        model.norms[3].bias.fill_(-100.0)
    graph = chain_graph()
    mixed = graph.slots["convs.3.weight"][1]
    assert mixed is not None
    wrong = altered(graph, convs__3__weight=(np.arange(24, 32), mixed[::-1], None, None))
    slim, _ = slim_model(model, wrong, kept())
    with torch.no_grad():
        assert torch.equal(silenced(model, graph, kept())(x), slim(x))
    assert verify(model, slim, wrong, kept(), x) > 1e-2
    right, _ = slim_model(model, graph, kept())
    assert verify(model, right, graph, kept(), x) <= 1e-5


def test_the_search_for_guilty_groups_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("normapps.graph.oracle.TRIALS", 4)
    model, x = chain()
    wrong = altered(
        chain_graph(),
        **{f"norms__{i}__running_mean": (np.arange(8)[::-1] + 8 * i,) for i in (0, 2, 3)},
    )
    slimmed = slim_verified(model, wrong, kept(), x)
    assert slimmed.difference <= 1e-5
    assert {name for name, _ in slimmed.left} >= {"norms.0", "norms.2", "norms.3"}
    assert any(why.startswith("not proven within 4 trials") for _, why in slimmed.left)
