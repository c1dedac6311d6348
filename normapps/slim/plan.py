"""Which channels a slimmed network keeps: by ratio, or by what must remain of its cost.

Liu et al. 2017, 'Learning Efficient Convolutional Networks through Network Slimming', section
3.3: one threshold on the scales of the whole network, chosen as a percentile. Differs from the
paper's code: no layer is emptied, channels that live and die together are one decision, and
besides the percentile a target of MACs, parameters or measured time can be asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from ..errors import InputError, UsageError
from ..graph.graph import ChannelGraph
from .latency_target import TOLERANCE, Measure, Timed, by_latency
from .removal import Array, Removal, Rules, channels_of, prunable, removal

Importance = Array | Callable[[Array], Array]


@dataclass(frozen=True, eq=False)
class Plan:
    """What stays of a network, and how near that is to what was asked for.

    Attributes:
        keep: (count,) bool, one an atom of the graph; True stays.
        threshold: the highest importance that the order let go; None where nothing went, or the
            order is per layer.
        asked: the option and its value, such as {'target-flops': 0.5}.
        reached: 'ratio', the fraction of the prunable scale-layer channels that goes; 'flops' and
            'params', the fractions of the MACs and parameters that stay; with a latency target
            'latency', the fraction of the time that stays, as measured.
        notes: what the reader should know, a line each.
    """

    keep: Array
    threshold: float | None
    asked: Mapping[str, float]
    reached: Mapping[str, float]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Goal:
    """How far an order of removal is followed: one of the four, or none for all of it."""

    ratio: float | None = None
    target_flops: float | None = None
    target_params: float | None = None
    target_latency: float | None = None

    def __post_init__(self) -> None:
        given = self.given()
        if len(given) > 1:
            raise UsageError(f"{' and '.join(f'--{name}' for name in given)}: choose one of them")
        for name, value in given.items():
            if name == "ratio" and not 0 <= value < 1:
                raise InputError(
                    f"--ratio {value}: the fraction of channels to remove must be at least 0 and"
                    " below 1"
                )
            if name != "ratio" and not 0 < value <= 1:
                raise InputError(
                    f"--{name} {value}: the fraction that may remain must be above 0, at most 1"
                )

    def given(self) -> dict[str, float]:
        """Return the options that are set, by the names of their flags."""
        values = {name.replace("_", "-"): value for name, value in vars(self).items()}
        return {name: value for name, value in values.items() if value is not None}

    def part(self, number: int, steps: int) -> Goal:
        """Return the goal of step `number` of `steps`: each takes the same fraction of the rest."""
        left = {name: 1 - v if name == "ratio" else v for name, v in self.given().items()}
        left = {name: value ** (number / steps) for name, value in left.items()}
        return Goal(
            **{
                name.replace("-", "_"): 1 - value if name == "ratio" else value
                for name, value in left.items()
            }
        )


def plan(
    graph: ChannelGraph,
    importance: Importance,
    *,
    ratio: float | None = None,
    target_flops: float | None = None,
    target_params: float | None = None,
    target_latency: float | None = None,
    measure: Measure | None = None,
    per_layer: bool = False,
    lossless: Array | None = None,
    min_channels: int = 1,
    round_to: int = 1,
    ignore: tuple[str, ...] = (),
    iterative: int = 1,
) -> Plan:
    """Choose what a network keeps. Changes nothing.

    Args:
        graph: of the network.
        importance: (count,) finite, the lowest goes first; or a function from what stays so far,
            (count,) bool, to it, called once a step.
        ratio: fraction of the prunable scale-layer channels to remove, in [0, 1); a floor, a
            rounding up and a tie of several channels all err on the side of keeping.
        target_flops, target_params: fraction of MACs or parameters that may remain, in (0, 1];
            what is kept is the most of the order that is not above it.
        target_latency: the same for the time that `measure` gives, within 2 %.
        measure: keep → seconds.
        per_layer: take the ratio from each group of tied layers.
        lossless: (count,) bool from `normapps.slim.lossless`: only these may go; without a ratio
            or target, all of them.
        min_channels: kept by every group in each of its norm layers, or all that it has.
        round_to: kept channels of a group are rounded up to a multiple of it.
        ignore: globs of layer names whose output channels stay.
        iterative: steps, each removing the same fraction of what the last one left; what went
            in one stays gone.

    Raises:
        UsageError: not exactly one of ratio and targets (with `lossless`: more than one); a
            latency target without `measure`.
        InputError: a value out of range; a target that cannot be met: the line names the nearest.
    """
    goal = Goal(ratio, target_flops, target_params, target_latency)
    if not goal.given() and lossless is None:
        raise UsageError("how much is to go? give --ratio or one of the --target options")
    if target_latency is not None and measure is None:
        raise UsageError("--target-latency: nothing measures it; give `measure`")
    if iterative < 1:
        raise InputError(f"--iterative {iterative}: must be at least 1")
    rules = Rules(per_layer, min_channels, round_to, ignore, lossless)
    keep = np.ones(graph.count, bool)
    for step in range(1, iterative + 1):
        rated = importance(keep) if callable(importance) else importance
        order = removal(graph, rated, rules, keep)
        taken, timed = _follow(graph, order, goal.part(step, iterative), goal, measure, keep)
        keep = order.keep(taken)
    gone = rated[order.order[:taken]]
    threshold = float(gone.max()) if taken and not per_layer else None
    reached = shares(graph, keep, ignore)
    notes = _held(graph, order, taken, rules)
    if timed is not None and target_latency is not None:
        reached["latency"] = timed.fraction
        notes += (_measured(timed, target_latency),)
    return Plan(keep, threshold, goal.given(), reached, notes)


def shares(graph: ChannelGraph, keep: Array, ignore: tuple[str, ...] = ()) -> dict[str, float]:
    """Say what a mask does: `ratio`, `flops` and `params`, as `Plan.reached` has them."""
    channels = channels_of(graph) * prunable(graph, ignore)
    return {
        "ratio": float(channels[~keep].sum() / max(channels.sum(), 1)),
        "flops": graph.macs(keep) / max(graph.macs(), 1),
        "params": graph.parameters(keep) / max(graph.parameters(), 1),
    }


def _follow(
    graph: ChannelGraph,
    order: Removal,
    goal: Goal,
    final: Goal,
    measure: Measure | None,
    previous: Array,
) -> tuple[int, Timed | None]:
    """Return how many atoms of the order go, at least the previous ones, and the time there."""
    if goal.ratio is not None:
        return order.taken(goal.ratio), None
    before = 1 + int(np.flatnonzero(~previous[order.order]).max(initial=-1))
    if goal.target_latency is not None and measure is not None:
        timed = by_latency(order, measure, goal.target_latency, before)
        return timed.taken, timed
    costs: dict[str, Callable[[Array], int]] = {
        "target-flops": graph.macs,
        "target-params": graph.parameters,
    }
    for name, target in goal.given().items():
        return _fewest(order, costs[name], target, before, (name, final.given()[name])), None
    return len(order.order), None


def _fewest(
    order: Removal,
    cost: Callable[[Array], int],
    target: float,
    before: int,
    asked: tuple[str, float],
) -> int:
    """Return the fewest atoms after which the cost is not above `target` of the whole."""
    whole = cost(order.keep(0)) or 1
    low, high = before, len(order.order)
    least = cost(order.keep(high))
    if least / whole > target:  # as the nearest is told, which can then be asked for
        raise InputError(
            f"--{asked[0]} {asked[1]:g}: cannot be met; the nearest is {_above(least / whole)},"
            " with all gone that may go"
        )
    while low < high:
        middle = (low + high) // 2
        if cost(order.keep(middle)) / whole <= target:
            high = middle
        else:
            low = middle + 1
    return low


def _above(share: float) -> float:
    """Round up to four digits, so that the figure named can be asked for."""
    return math.ceil(share * 1e4) / 1e4


def _held(graph: ChannelGraph, order: Removal, taken: int, rules: Rules) -> tuple[str, ...]:
    asked = order.order[:taken]
    held = int(channels_of(graph)[asked][order.keep(taken)[asked]].sum())
    if not held:
        return ()
    rounded = f", and multiples of {rules.round_to}" if rules.round_to > 1 else ""
    which = "1 channel stays although its" if held == 1 else f"{held} channels stay although their"
    return (f"{which} turn had come: each layer keeps at least {rules.min_channels}{rounded}",)


def _measured(timed: Timed, target: float) -> str:
    text = (
        f"{timed.fraction:.3f} of the time, measured anew after the choice"
        f" ({timed.measurements} measurements in all)"
    )
    if timed.fraction <= target * (1 + TOLERANCE):
        return text
    return f"{text}: above the {target:g} asked for, such is this machine's noise"
