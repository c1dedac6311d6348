"""Batch norms put back: they change nothing, are measured like any, and fold without a trace."""

from __future__ import annotations

import copy
from collections import OrderedDict

import pytest
import torch
from small_networks import random_scales_
from torch import Tensor, nn

from normapps.errors import InputError
from normapps.graph.fold import Folding, fold_batchnorm_
from normapps.graph.unfold import identity_norm, unfold_
from normapps.norm.moments import Moments
from normapps.norm.population import apply_, measure

X = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0)).double()


def _folded() -> tuple[nn.Module, Folding]:
    torch.manual_seed(0)
    model = nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(3, 4, 3),
            norm1=nn.BatchNorm2d(4),
            act1=nn.ReLU(),
            conv2=nn.Conv2d(4, 5, 3, groups=1, bias=False),
            norm2=nn.BatchNorm2d(5),
            flat=nn.Flatten(),
            linear=nn.Linear(80, 6),
            norm3=nn.BatchNorm1d(6),
        )
    )
    model = random_scales_(model).double()
    for index in (1, 4, 7):
        model[index].momentum = 1.0  # type: ignore[union-attr]
    model.train()(X)
    model.eval()
    return model, fold_batchnorm_(model, X)


def test_it_changes_nothing_and_is_taken_away_again() -> None:
    model, folding = _folded()
    wanted, state = model(X), copy.deepcopy(model.state_dict())
    unfolding = unfold_(model, folding.statistics)
    assert unfolding.norms == {name: f"{name}.norm" for name in ("conv1", "conv2", "linear")}
    torch.testing.assert_close(model(X), wanted, rtol=1e-12, atol=1e-12)
    assert model.get_submodule("conv1.norm").running_mean.shape == (4,)
    unfolding()
    assert list(model.state_dict()) == list(state)
    assert torch.equal(model(X), wanted)


def test_measured_anew_it_restores_the_moments_that_the_norms_had() -> None:
    """Weights shifted and scaled as if by rounding; the outputs get β and γ back, but for ε."""
    model, folding = _folded()
    with torch.no_grad():
        for layer in (model.conv1, model.conv2, model.linear):
            layer.weight *= 0.7
            layer.bias += 0.4
    for name in ("conv1", "conv2", "linear"):
        measured = _given(model, name).var(1)  # unbiased, as running variances are
        unfolding = unfold_(model, folding.statistics, [name])
        apply_(model, measure(model, [X]))
        wanted = model(X)
        unfolding.fold_()
        torch.testing.assert_close(model(X), wanted)
        moments, out = folding.statistics[name], _given(model, name)
        torch.testing.assert_close(out.mean(1), moments.mean[0])
        eps = 1e-5 * moments.var[0].median()
        wanted = measured * (moments.var[0] + eps) / (measured + eps)
        torch.testing.assert_close(out.var(1), wanted, rtol=1e-9, atol=0)
        torch.testing.assert_close(wanted, moments.var[0], rtol=1e-3, atol=0)
    assert not any("norm.running" in key for key in model.state_dict())


def _given(model: nn.Module, name: str) -> Tensor:
    """What a layer gives, (C, N)."""
    found: list[Tensor] = []
    handle = model.get_submodule(name).register_forward_hook(lambda m, a, out: found.append(out))
    model(X)
    handle.remove()
    return found[0].transpose(0, 1).flatten(1)


def test_the_second_fold_is_undone_to_the_bit() -> None:
    model, folding = _folded()
    before = copy.deepcopy(model.state_dict())
    unfolding = unfold_(model, folding.statistics)
    model.get_submodule("conv2.norm").running_mean += 1
    undo = unfolding.fold_()
    assert not torch.equal(model.conv2.bias, before["conv2.bias"])
    undo()
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_channels_without_variance() -> None:
    count = torch.zeros(1)
    moments = Moments(count, torch.tensor([[1.0, -2.0]]), torch.tensor([[0.0, 3.0]]), None)
    x = torch.randn(4, 2, 5, dtype=torch.float64)
    torch.testing.assert_close(identity_norm(moments).eval()(x), x)
    flat = Moments(count, torch.zeros(1, 2), torch.zeros(1, 2), None)
    torch.testing.assert_close(identity_norm(flat).eval()(x), x)


def test_a_copy_has_batch_norms_of_its_own() -> None:
    model, folding = _folded()
    unfold_(model, folding.statistics, ["conv1"])
    other, wanted = copy.deepcopy(model), model(X)
    model.get_submodule("conv1.norm").bias.data += 1
    assert torch.equal(other(X), wanted)
    assert not torch.equal(model(X), wanted)


def test_names_that_do_not_fit_are_refused_and_nothing_stays() -> None:
    model, folding = _folded()
    keys = list(model.state_dict())
    with pytest.raises(InputError, match="'act1' has no statistics"):
        unfold_(model, folding.statistics, ["conv1", "act1"])
    folding.statistics["act1"] = folding.statistics["conv1"]
    with pytest.raises(InputError, match="'act1' cannot get a batch norm"):
        unfold_(model, folding.statistics)
    folding.statistics["conv2"] = folding.statistics.pop("act1")
    with pytest.raises(InputError, match="'conv2' gives 5 channels, not 4"):
        unfold_(model, folding.statistics)
    assert list(model.state_dict()) == keys


def test_statistics_of_a_layer_that_is_gone() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval()
    folding = fold_batchnorm_(model, torch.randn(2, 3, 4, 4))
    statistics = folding.statistics | {"gone": folding.statistics["0"]}
    with pytest.raises(InputError, match="Sequential has no layer 'gone'"):
        unfold_(model, statistics)
    assert not model[0]._modules
