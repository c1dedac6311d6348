"""How channels are rated, against sums written out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from normapps.errors import InputError
from normapps.graph.graph import ChannelGraph, Group
from normapps.slim.importance import importance, scales_of


def model() -> nn.Sequential:
    """Two convolutions whose outputs could be added: one stream of three channels."""
    torch.manual_seed(0)
    layers = (nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    net = nn.Sequential(*layers)
    net[1].weight.data = torch.tensor([0.5, -2.0, 0.0])
    net[3].weight.data = torch.tensor([1.5, 1.0, -1.0])
    return net


def graph() -> ChannelGraph:
    atoms = np.arange(3)
    slots = {"0.weight": (atoms, None, None, None), "2.weight": (atoms, atoms, None, None)}
    norms = {f"{layer}.weight": (atoms,) for layer in (1, 3)}
    return ChannelGraph(
        count=3,
        slots={**slots, **norms},
        shapes={},
        scales={"1": atoms, "3": atoms},
        groups=(Group("1", atoms, ("1", "3")),),
    )


def test_scale_is_the_root_mean_square_of_the_scales_of_an_atom() -> None:
    expected = np.sqrt([(0.25 + 2.25) / 2, (4 + 1) / 2, (0 + 1) / 2])
    np.testing.assert_allclose(importance(model(), graph()), expected, rtol=1e-12)


def test_the_only_scale_of_an_atom_is_its_importance_as_in_the_paper() -> None:
    single = ChannelGraph(count=3, slots={}, shapes={}, scales={"1": np.arange(3)})
    np.testing.assert_allclose(importance(model(), single), [0.5, 2.0, 0.0], rtol=1e-12)


def test_an_atom_of_several_channels_of_one_layer_is_pooled_alike() -> None:
    wide = np.array([0, 0, 1])
    tied = ChannelGraph(count=2, slots={}, shapes={}, scales={"1": wide, "3": wide})
    np.testing.assert_allclose(importance(model(), tied), np.sqrt([(0.25 + 4 + 2.25 + 1) / 4, 0.5]))


def test_l2_is_the_norm_of_each_filters_slice_relative_to_its_layer() -> None:
    net = model()
    first, second = net[0].weight.double().numpy(force=True), net[2].weight.double()
    slices = [
        [np.sqrt((first[i] ** 2).sum()) for i in range(3)],
        [np.sqrt((second.numpy(force=True)[i] ** 2).sum()) for i in range(3)],
        [np.sqrt((second.numpy(force=True)[:, i] ** 2).sum()) for i in range(3)],
    ]
    expected = np.mean([np.array(each) / np.mean(each) for each in slices], axis=0)
    np.testing.assert_allclose(importance(net, graph(), "l2"), expected, rtol=1e-12)


def test_l2_of_a_layer_of_zeros_is_zero() -> None:
    net = model()
    nn.init.zeros_(net[0].weight)
    nn.init.zeros_(net[2].weight)
    np.testing.assert_array_equal(importance(net, graph(), "l2"), [0, 0, 0])


def test_random_follows_its_seed() -> None:
    one, again, other = (importance(model(), graph(), "random", seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert (one != other).all()
    assert ((one >= 0) & (one < 1)).all()


def test_scales_are_given_by_layer_for_histograms() -> None:
    found = scales_of(model(), graph())
    assert {name: each.tolist() for name, each in found.items()} == {
        "1": [0.5, 2.0, 0.0],
        "3": [1.5, 1.0, 1.0],
    }


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_scale_that_is_not_finite_is_refused_by_its_layers_name(value: float) -> None:
    net = model()
    net[3].weight.data[1] = value
    with pytest.raises(InputError, match=r"^3: a scale is not finite"):
        importance(net, graph())


def test_a_weight_that_is_not_finite_is_refused_by_its_name() -> None:
    net = model()
    net[2].weight.data[0, 0] = float("nan")
    with pytest.raises(InputError, match=r"^2\.weight: a weight is not finite"):
        importance(net, graph(), "l2")


def test_equal_scales_are_refused_with_what_to_do() -> None:
    net = model()
    nn.init.ones_(net[1].weight)
    nn.init.zeros_(net[3].weight)  # as the last norm of a block is often started
    with pytest.raises(InputError, match=r"slim train.*--importance l2") as refused:
        importance(net, graph())
    assert "\n" not in str(refused.value)
    assert (importance(net, graph(), "l2") > 0).all()


def test_a_model_without_batch_norm_is_refused() -> None:
    nothing = ChannelGraph(count=0, slots={}, shapes={}, scales={})
    with pytest.raises(InputError, match="no batch norm with a scale"):
        importance(model(), nothing, "random")


def test_an_unknown_kind_and_another_model_are_refused() -> None:
    with pytest.raises(InputError, match="did you mean 'scale'"):
        importance(model(), graph(), "scales")
    with pytest.raises(InputError, match=r"^1: the model has no such batch norm"):
        importance(nn.Sequential(nn.Conv2d(2, 3, 3)), graph())
