"""What a plan keeps, on graphs made by hand: floors, multiples, targets, order."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from normapps.errors import InputError, UsageError
from normapps.graph.graph import ChannelGraph, Cost, Group
from normapps.slim.plan import Plan, plan
from normapps.slim.removal import Rules, removal

Array = NDArray[Any]


def chain(widths: list[int], copies: list[int], pinned: tuple[int, ...] = ()) -> ChannelGraph:
    """Convolutions 3x3 with a batch norm each, one after the other, 8x8 positions.

    Group i has widths[i] atoms, each copies[i] channels of norm layer `norm{i}`; the last norm,
    `joint`, reads the first two groups concatenated (a DenseNet's).
    """
    starts = np.concatenate([[0], np.cumsum(widths)])
    atoms = [np.arange(a, b) for a, b in itertools.pairwise(starts)]
    wide = [np.repeat(each, copy) for each, copy in zip(atoms, copies, strict=True)]
    slots: dict[str, tuple[Array | None, ...]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    costs, scales = [], {}
    before: Array | None = None
    for number, out in enumerate(wide):
        size = 3 if before is None else len(before)
        slots[f"conv{number}.weight"] = (out, before, None, None)
        shapes[f"conv{number}.weight"] = (len(out), size, 3, 3)
        for kind in ("weight", "bias"):
            slots[f"norm{number}.{kind}"], shapes[f"norm{number}.{kind}"] = (out,), (len(out),)
        scales[f"norm{number}"] = out
        costs.append(
            Cost(f"conv{number}", f"conv{number}.weight", 64, len(out), size, out, before, 9)
        )
        before = out
    groups = [Group(f"norm{i}", each, (f"norm{i}",)) for i, each in enumerate(atoms)]
    if len(widths) > 1:
        scales["joint"] = np.concatenate(wide[:2])
        slots["joint.weight"], shapes["joint.weight"] = (scales["joint"],), (len(scales["joint"]),)
        groups[:2] = [Group(g.name, g.atoms, (*g.layers, "joint")) for g in groups[:2]]
    return ChannelGraph(
        count=int(starts[-1]),
        slots=slots,
        shapes=shapes,
        scales=scales,
        pinned=dict.fromkeys(pinned, "an output"),
        costs=tuple(costs),
        groups=tuple(groups),
        parameter_names=tuple(slots),
    )


@st.composite
def networks(draw: st.DrawFn) -> tuple[ChannelGraph, Array]:
    number = draw(st.integers(1, 4))
    widths = draw(st.lists(st.integers(1, 12), min_size=number, max_size=number))
    copies = draw(st.lists(st.sampled_from([1, 2, 3]), min_size=number, max_size=number))
    count = sum(widths)
    pinned = draw(st.sets(st.integers(0, count - 1), max_size=count - 1))
    # few values, so that ties are common
    values = draw(st.lists(st.integers(0, 5), min_size=count, max_size=count))
    return chain(widths, copies, tuple(sorted(pinned))), np.array(values, float)


def kept(graph: ChannelGraph, keep: Array) -> dict[str, int]:
    return {layer: int(keep[atoms].sum()) for layer, atoms in graph.scales.items()}


@given(networks(), st.floats(0, 0.99), st.integers(1, 5), st.integers(1, 8), st.booleans())
def test_floors_pins_and_multiples_hold_whatever_is_asked(
    network: tuple[ChannelGraph, Array], ratio: float, least: int, multiple: int, per_layer: bool
) -> None:
    graph, values = network
    found = plan(
        graph, values, ratio=ratio, min_channels=least, round_to=multiple, per_layer=per_layer
    )
    assert found.keep[list(graph.pinned)].all()
    for group in graph.groups:
        for layer in group.layers:
            channels = np.isin(graph.scales[layer], group.atoms)
            whole, stays = channels.sum(), found.keep[graph.scales[layer][channels]].sum()
            assert stays >= min(whole, max(least, 1))
            assert stays % multiple == 0 or stays == whole


@given(networks(), st.lists(st.floats(0, 0.99), min_size=2, max_size=2), st.booleans())
def test_a_higher_ratio_keeps_a_subset_and_reaches_no_more_than_asked(
    network: tuple[ChannelGraph, Array], ratios: list[float], per_layer: bool
) -> None:
    graph, values = network
    low, high = (
        plan(graph, values, ratio=ratio, per_layer=per_layer, round_to=2)
        for ratio in sorted(ratios)
    )
    assert not (high.keep & ~low.keep).any()
    assert low.reached["ratio"] <= high.reached["ratio"] <= max(ratios) + 1e-9


def test_one_threshold_goes_over_all_layers_as_in_the_paper() -> None:
    graph = chain([10, 10, 10], [1, 1, 1])
    values = np.random.default_rng(0).permutation(30) / 30
    found = plan(graph, values, ratio=0.4)
    threshold = np.sort(values)[11]  # 12 of 30 go
    np.testing.assert_array_equal(found.keep, values > threshold)
    assert found.threshold == threshold
    assert found.reached["ratio"] == pytest.approx(0.4)
    assert found.notes == ()


def test_a_tied_atom_counts_as_its_channels() -> None:
    graph = chain([4, 4], [3, 1])  # the joint norm doubles all: 4*6 + 4*2 = 32 channels
    values = np.arange(8.0)
    assert plan(graph, values, ratio=6 / 32).keep.sum() == 7
    assert plan(graph, values, ratio=0.18).keep.all()


def test_a_multiple_is_of_channels_not_of_atoms() -> None:
    graph = chain([10], [4])
    found = plan(graph, np.arange(10.0), ratio=0.5, round_to=8)
    assert kept(graph, found.keep) == {"norm0": 24}


def test_per_layer_takes_the_same_share_of_each_group() -> None:
    graph = chain([10, 20, 5], [1, 2, 1])
    values = np.arange(35.0)  # a global threshold would empty the first
    found = plan(graph, values, ratio=0.4, per_layer=True)
    assert [int(found.keep[group.atoms].sum()) for group in graph.groups] == [6, 12, 3]
    assert found.threshold is None
    for group in graph.groups:  # and the least of each
        stays = found.keep[group.atoms]
        assert values[group.atoms][stays].min() > values[group.atoms][~stays].max()


def test_ratio_0_is_the_identity() -> None:
    graph = chain([5, 3], [1, 1])
    found = plan(graph, np.zeros(8), ratio=0, round_to=4, min_channels=2)
    assert found.keep.all()
    assert found.threshold is None
    assert found.reached == {"ratio": 0, "flops": 1, "params": 1}


def test_equal_channels_go_from_all_layers_alike() -> None:
    graph = chain([100, 100, 100], [1, 1, 1])
    found = plan(graph, np.zeros(300), ratio=0.5)
    assert all(30 <= found.keep[group.atoms].sum() <= 70 for group in graph.groups)


def test_what_the_floor_held_is_said() -> None:
    graph = chain([10, 10], [1, 1])
    values = np.arange(20.0)
    found = plan(graph, values, ratio=0.5, min_channels=4, round_to=5)
    assert kept(graph, found.keep) == {"norm0": 5, "norm1": 10, "joint": 15}
    (note,) = found.notes
    assert note.startswith("10 channels stay although their turn had come")
    assert "at least 4, and multiples of 5" in note


@given(networks(), st.floats(0.02, 1), st.sampled_from(["flops", "params"]), st.integers(1, 3))
def test_a_target_is_met_by_the_least_removal_or_named_unreachable(
    network: tuple[ChannelGraph, Array], target: float, what: str, multiple: int
) -> None:
    graph, values = network
    cost: Callable[[Array], int] = graph.macs if what == "flops" else graph.parameters
    whole = cost(np.ones(graph.count, bool))
    order = removal(graph, values, Rules(round_to=multiple), np.ones(graph.count, bool))
    costs = [cost(order.keep(taken)) for taken in range(len(order.order) + 1)]
    if min(costs) > target * whole:
        with pytest.raises(InputError, match=f"--target-{what}") as refused:
            plan(graph, values, round_to=multiple, **{f"target_{what}": target})
        nearest = float(str(refused.value).split("nearest is ")[1].split(",")[0])
        assert nearest > target
        again = plan(graph, values, round_to=multiple, **{f"target_{what}": nearest})
        assert cost(again.keep) == min(costs)
        return
    found = plan(graph, values, round_to=multiple, **{f"target_{what}": target})
    reached = cost(found.keep)
    assert found.reached[what] == reached / whole
    assert reached <= target * whole
    # none that removes less meets it
    assert not any(reached < each <= target * whole for each in costs)


def test_targets_of_flops_and_parameters_are_different_plans() -> None:
    graph = chain([16, 16, 64], [1, 1, 1])
    values = np.random.default_rng(1).random(96)
    by_flops = plan(graph, values, target_flops=0.5)
    by_params = plan(graph, values, target_params=0.5)
    assert 0.45 < by_flops.reached["flops"] <= 0.5
    assert 0.45 < by_params.reached["params"] <= 0.5
    assert by_flops.asked == {"target-flops": 0.5}


def test_a_target_below_the_floors_names_what_can_be_had() -> None:
    graph = chain([10, 10], [1, 1])
    least = graph.macs(np.arange(20) % 10 >= 5) / graph.macs()
    with pytest.raises(InputError, match=r"--target-flops 0\.01: cannot be met; the nearest is"):
        plan(graph, np.zeros(20), target_flops=0.01, min_channels=5)
    nearest = math.ceil(least * 1e4) / 1e4
    assert plan(graph, np.zeros(20), target_flops=nearest, min_channels=5).keep.sum() == 10


def test_ignored_layers_keep_their_channels_and_do_not_count() -> None:
    graph = chain([10, 10, 10], [1, 1, 1])
    values = np.arange(30.0)
    found = plan(graph, values, ratio=0.5, ignore=("norm0",))
    assert found.keep[:10].all()
    # 10 atoms of two channels (the joint norm's too), 10 of one: 15 of 30 go
    assert found.reached["ratio"] <= 0.5
    assert (~found.keep).sum() == 7
    by_filter = plan(graph, values, ratio=0.5, ignore=("conv0",))
    np.testing.assert_array_equal(by_filter.keep, found.keep)


def test_a_parents_name_ignores_all_below_it() -> None:
    base = chain([4, 4, 4], [1, 1, 1])
    names = {name: f"stage.{name}" if name != "norm2" else name for name in base.scales}
    graph = ChannelGraph(
        **{
            **vars(base),
            "scales": {names[name]: atoms for name, atoms in base.scales.items()},
            "groups": tuple(
                Group(g.name, g.atoms, tuple(names[each] for each in g.layers)) for g in base.groups
            ),
        }
    )
    found = plan(graph, np.zeros(12), ratio=0.5, ignore=("stage",))
    assert found.keep[:8].all()
    assert found.keep.sum() == 10


def test_only_the_lossless_go_all_of_them_where_nothing_else_is_asked() -> None:
    graph = chain([10, 10], [1, 1])
    values = np.random.default_rng(0).random(20)
    able = np.zeros(20, bool)
    able[[3, 4, 5, 15]] = True
    assert not (plan(graph, values, lossless=able).keep == able).any()
    found = plan(graph, values, lossless=able, ratio=0.1)
    assert (~found.keep).sum() == 2
    assert able[~found.keep].all()
    assert plan(graph, values, lossless=np.zeros(20, bool)).keep.all()


def test_steps_ask_for_importance_anew_and_bring_nothing_back() -> None:
    graph = chain([20, 20], [1, 1])
    seen: list[Array] = []

    def importance(keep: Array) -> Array:
        seen.append(keep.copy())
        return np.random.default_rng(len(seen)).random(40)

    found = plan(graph, importance, ratio=0.75, iterative=2)
    assert [int(each.sum()) for each in seen] == [40, 20]  # half, and half of the rest
    assert found.keep.sum() == 10
    assert not (found.keep & ~seen[1]).any()


@pytest.mark.parametrize("asked", [{"target_params": 0.3}, {"ratio": 0.7}])
@pytest.mark.parametrize("per_layer", [False, True])
def test_no_step_brings_back_what_went(asked: dict[str, Any], per_layer: bool) -> None:
    graph = chain([3, 12, 5], [2, 1, 3])
    for seed in range(8):  # a step that overshoots might, where the next one weighs differently
        random, masks = np.random.default_rng(seed), []

        def importance(keep: Array, random: Any = random, masks: list[Array] = masks) -> Array:
            masks.append(keep)
            return random.random(graph.count)

        masks.append(plan(graph, importance, **asked, per_layer=per_layer, iterative=15).keep)
        assert len(masks) == 16
        for before, after in itertools.pairwise(masks):
            assert not (after & ~before).any()


@given(networks(), st.floats(0.2, 0.9), st.integers(2, 4), st.booleans())
def test_steps_to_a_target_end_where_one_step_would(
    network: tuple[ChannelGraph, Array], target: float, steps: int, per_layer: bool
) -> None:
    graph, values = network
    masks: list[Array] = []

    def importance(keep: Array) -> Array:
        masks.append(keep)
        return values

    def asked(rated: Any, number: int) -> Plan | str:
        try:
            return plan(graph, rated, target_flops=target, per_layer=per_layer, iterative=number)
        except InputError as error:
            return str(error)

    once, found = asked(values, 1), asked(importance, steps)
    if isinstance(once, str) or isinstance(found, str):
        assert once == found
        return
    np.testing.assert_array_equal(found.keep, once.keep)
    for before, after in itertools.pairwise(masks):
        assert not (after & ~before).any()


def test_a_latency_target_is_bisected_in_few_measurements() -> None:
    graph = chain([50, 50, 50], [1, 1, 1])
    values = np.random.default_rng(0).random(150)
    masks: list[Array] = []

    def seconds(keep: Array) -> float:
        masks.append(keep)
        return 0.002 + 0.01 * float(keep.mean())

    found = plan(graph, values, target_latency=0.6, measure=seconds)
    assert len(masks) <= 12
    assert 0.55 < found.reached["latency"] <= 0.6 * 1.02
    assert found.reached["latency"] == pytest.approx(seconds(found.keep) / 0.012)
    assert found.asked == {"target-latency": 0.6}


def test_a_latency_that_jumps_up_where_channels_go_is_no_trap() -> None:
    graph = chain([50, 50, 50], [1, 1, 1])
    values = np.random.default_rng(0).random(150)

    def seconds(keep: Array) -> float:
        share = float(keep.mean())
        return 1.0 if share < 0.3 or share > 0.8 else 0.5  # the smallest is as slow as the whole

    found = plan(graph, values, target_latency=0.5, measure=seconds)
    assert found.reached["latency"] == 0.5
    assert found.keep.mean() > 0.5


def test_a_latency_that_is_not_met_when_measured_anew_is_reported_as_it_is() -> None:
    graph = chain([50, 50], [1, 1])
    calls = iter([1.0, 0.5, 0.7, 1.0])

    found = plan(graph, np.zeros(100), target_latency=0.5, measure=lambda _: next(calls))
    assert found.reached["latency"] == pytest.approx(0.7)
    assert "above the 0.5 asked for" in found.notes[-1]


def test_a_latency_that_cannot_be_met_names_the_nearest() -> None:
    graph = chain([50, 50], [1, 1])
    with pytest.raises(InputError, match=r"nearest measured is 0\.9 of the time"):
        plan(
            graph,
            np.zeros(100),
            target_latency=0.5,
            measure=lambda keep: 1.0 if keep.all() else 0.9,
        )
    with pytest.raises(InputError, match="positive and finite"):
        plan(graph, np.zeros(100), target_latency=0.5, measure=lambda _: math.nan)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({}, "how much is to go"),
        ({"ratio": 0.5, "target_flops": 0.5}, "--ratio and --target-flops: choose one"),
        ({"target_latency": 0.5}, "nothing measures it"),
    ],
)
def test_what_contradicts_itself_is_refused(asked: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        plan(chain([4], [1]), np.zeros(4), **asked)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"ratio": 1.0}, r"--ratio 1\.0: .* below 1"),
        ({"ratio": -0.1}, r"--ratio -0\.1"),
        ({"ratio": math.nan}, "--ratio nan"),
        ({"target_flops": 0.0}, r"--target-flops 0\.0"),
        ({"target_params": 1.5}, r"--target-params 1\.5"),
        ({"ratio": 0.5, "min_channels": 0}, "--min-channels 0"),
        ({"ratio": 0.5, "round_to": 0}, "--round-to 0"),
        ({"ratio": 0.5, "iterative": 0}, "--iterative 0"),
        ({"ratio": 0.5, "ignore": ("nrom0",)}, "nrom0.*did you mean 'norm0'"),
        ({"ratio": 0.5, "ignore": ("*",)}, r"--ignore \* covers all of them"),
    ],
)
def test_values_that_cannot_be_used_are_refused(asked: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        plan(chain([4, 4], [1, 1]), np.zeros(8), **asked)


def test_importance_of_another_graph_is_refused() -> None:
    with pytest.raises(InputError, match="must be 8 finite numbers"):
        plan(chain([4, 4], [1, 1]), np.zeros(7), ratio=0.5)
    with pytest.raises(InputError, match="must be 8 finite numbers"):
        plan(chain([4, 4], [1, 1]), np.full(8, np.nan), ratio=0.5)


def test_a_network_of_which_nothing_may_go_is_refused_with_the_reason() -> None:
    graph = chain([4], [1], pinned=(0, 1, 2, 3))
    with pytest.raises(InputError, match="no channel of this network may go"):
        plan(graph, np.zeros(4), ratio=0.5)
