"""The order in which channels leave a network, and what must stay whatever the order says.

An order is made once (by one threshold over the whole network, as Liu et al. 2017, or group by
group); how far it is followed is a number, so a target is found by bisection over that number:
what stays after k + 1 atoms is a subset of what stays after k.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, unknown
from ..graph.graph import ChannelGraph, Group

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Rules:
    """What every plan of one command keeps to.

    Attributes:
        per_layer: take the same share of each group of tied layers, not the least of all.
        min_channels: every group keeps as many in each of its norm layers, or all it has.
        round_to: what a group keeps is rounded up to a multiple of this in each of its norm
            layers, and never above what there is.
        ignore: globs of layer names (norm, convolution or linear; a parent's name holds for all
            below it) whose output channels stay.
        only: (count,) bool: the atoms that may go at all; None: all that are free.

    Raises:
        InputError: min_channels or round_to below 1.
    """

    per_layer: bool = False
    min_channels: int = 1
    round_to: int = 1
    ignore: tuple[str, ...] = ()
    only: Array | None = None

    def __post_init__(self) -> None:
        for flag, value in (("min-channels", self.min_channels), ("round-to", self.round_to)):
            if value < 1:
                raise InputError(f"--{flag} {value}: must be at least 1")


@dataclass(frozen=True, eq=False)
class Removal:
    """An order of removal, with the floors and multiples that hold wherever it is stopped.

    Attributes:
        order: (n,) atoms that may go, the first to go first.
        share: (n,) rising: when that atom has gone, the fraction of the prunable channels (of the
            network, or with `per_layer` of its group) that the order has taken.
        group: (count,) the group of each atom, -1 for none.
        position: (count,) rank of each atom within its group, 0 for the last to go.
        sizes, floors, steps: (groups,) atoms: how many there are, how many stay at least, and
            the multiple that is kept.
    """

    order: Array
    share: Array
    group: Array
    position: Array
    sizes: Array
    floors: Array
    steps: Array

    def keep(self, taken: int) -> Array:
        """Return the (count,) mask of what stays when the order is followed `taken` atoms far."""
        gone = np.bincount(self.group[self.order[:taken]], minlength=len(self.sizes))
        left = np.maximum(self.sizes - gone, self.floors)
        left = np.minimum(-(-left // self.steps) * self.steps, self.sizes)
        inside = self.group >= 0
        keep = np.ones(len(self.group), bool)
        keep[inside] = self.position[inside] < left[self.group[inside]]
        return keep

    def taken(self, ratio: float) -> int:
        """Return how many atoms go so that no more than `ratio` of the channels does."""
        return int(np.searchsorted(self.share, ratio + 1e-9, side="right"))


def channels_of(graph: ChannelGraph) -> Array:
    """Return (count,) the scale-layer channels of each atom: 0 where no batch norm scales it."""
    return sum(
        (np.bincount(atoms, minlength=graph.count) for atoms in graph.scales.values()),
        np.zeros(graph.count, np.int64),
    )


def prunable(graph: ChannelGraph, ignore: Iterable[str] = ()) -> Array:
    """Return (count,) bool: free atoms of a group, in no layer that is ignored.

    Raises:
        InputError: a glob that no layer matches.
    """
    grouped = np.zeros(graph.count, bool)
    for group in graph.groups:
        grouped[group.atoms] = True
    free: Array = graph.free() & grouped
    layers = _layers(graph)
    for glob in ignore:
        found = [name for name in layers if _matches(name, glob)]
        if not found:
            raise unknown("layer in --ignore:", glob, layers)
        for name in found:
            free[layers[name]] = False
    return free


def removal(graph: ChannelGraph, importance: Array, rules: Rules, previous: Array) -> Removal:
    """Put the atoms in the order in which they go.

    Atoms of equal importance go in a fixed random order, so that a tie takes no layer before
    the others.

    Args:
        graph: the network's channels.
        importance: (count,) finite, the lowest goes first.
        rules: floors, multiples, what is ignored.
        previous: (count,) bool: what is False has gone already and is the first to go.

    Raises:
        InputError: importance of another shape, or not finite; a glob that matches nothing; no
            channel that may go.
    """
    if importance.shape != (graph.count,) or not np.isfinite(importance).all():
        raise InputError(
            f"importance: must be {graph.count} finite numbers, one an atom of the graph;"
            f" has shape {importance.shape}"
        )
    able = prunable(graph, rules.ignore)
    if not able.any():
        raise InputError("no channel of this network may go: " + _why(graph, rules))
    tie = np.random.default_rng(0).permutation(graph.count)
    rank = np.empty(graph.count, np.int64)
    rank[np.lexsort((tie, importance, previous))] = np.arange(graph.count)
    group = _group_of(graph)
    going = able if rules.only is None else able & rules.only
    pool = group if rules.per_layer else np.zeros_like(group)
    share = _shares(channels_of(graph), rank, able, going, pool)
    order = np.flatnonzero(going)
    order = order[np.lexsort((rank[order], share[order]))]
    return Removal(order, share[order], group, *_within(graph, order, rules))


def _shares(channels: Array, rank: Array, able: Array, going: Array, pool: Array) -> Array:
    """Return (count,): the share of its pool's prunable channels gone when an atom has gone."""
    share = np.full(len(channels), np.inf)
    for number in np.unique(pool[going]):
        members = np.flatnonzero(going & (pool == number))
        members = members[np.argsort(rank[members])]
        whole = channels[able & (pool == number)].sum()
        share[members] = np.cumsum(channels[members]) / whole
    return share


def _group_of(graph: ChannelGraph) -> Array:
    found = np.full(graph.count, -1)
    for number, group in enumerate(graph.groups):
        found[group.atoms] = number
    return found


def _within(graph: ChannelGraph, order: Array, rules: Rules) -> tuple[Array, Array, Array, Array]:
    """Return position, sizes, floors and steps, as `Removal` has them."""
    late = np.full(graph.count, len(order))
    late[order] = np.arange(len(order))
    position = np.zeros(graph.count, np.int64)
    channels = {
        name: np.bincount(each, minlength=graph.count) for name, each in graph.scales.items()
    }
    rows = []
    for group in graph.groups:
        position[group.atoms[np.argsort(-late[group.atoms], kind="stable")]] = np.arange(
            len(group.atoms)
        )
        rows.append((len(group.atoms), *_floor_and_step(group, channels, rules)))
    sizes, floors, steps = np.array(rows, np.int64).T
    return position, sizes, np.minimum(floors, sizes), steps


def _floor_and_step(group: Group, channels: dict[str, Array], rules: Rules) -> tuple[int, int]:
    """Return in atoms what a group keeps at least and the multiple that it keeps."""
    floor = step = 1
    for layer in group.layers:
        each = channels[layer][group.atoms]
        floor = max(floor, -(-rules.min_channels // max(int(each.min()), 1)))
        step = math.lcm(step, rules.round_to // math.gcd(rules.round_to, *each.tolist()))
    return floor, step


def _layers(graph: ChannelGraph) -> dict[str, Array]:
    """Return the atoms that each norm layer scales and each filter puts out, by its name."""
    filters = {cost.module: cost.out for cost in graph.costs if cost.out is not None}
    return {**filters, **graph.scales}


def _matches(name: str, glob: str) -> bool:
    parts = name.split(".")
    return any(fnmatch.fnmatchcase(".".join(parts[:end]), glob) for end in range(1, len(parts) + 1))


def _why(graph: ChannelGraph, rules: Rules) -> str:
    if rules.ignore and prunable(graph).any():
        return f"--ignore {' '.join(rules.ignore)} covers all of them"
    reasons = sorted({group.reason for group in graph.groups if group.reason})
    return reasons[0] if reasons else "no batch norm scales channels that could be followed"
