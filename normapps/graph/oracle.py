"""The proof of a cut: silenced channels and missing channels must give the same output.

A doomed channel of a batch norm is silenced by γ = β = 0 in a copy of the whole network, and both
networks run. Nothing here knows how the graph was found, so what it got wrong shows.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import InputError
from ..models.slimmed import Edits, set_attributes_
from .comparison import Inputs, compared, difference_of, kept_channels, settled
from .declared import Declared, declared_sizes
from .graph import ChannelGraph, Group, Keep
from .surgery import slim_model

TRIALS = 64
"""Cuts that the search for guilty groups tries: about 2 log₂(groups) for each guilty one."""


@dataclass(frozen=True)
class Slimmed:
    """A network that was cut, and how far it is from the silenced one.

    Attributes:
        model: the slimmed network, in the mode of the original.
        edits: by which a fresh original becomes its equal.
        keep: (count,) bool, of the atoms that stayed: more than asked where groups were left.
        difference: relative, as `verify` measures it; NaN if it was not measured.
        left: name of each group that was left whole though it had channels to lose, and why.
    """

    model: nn.Module
    edits: Edits
    keep: Keep
    difference: float
    left: tuple[tuple[str, str], ...] = ()


@torch.no_grad()
def silenced(model: nn.Module, graph: ChannelGraph, keep: Keep) -> nn.Module:
    """Copy a network and make the channels that go silent: γ = β = 0 in every batch norm of theirs.

    Args:
        model: stays as it is.
        graph: says which channels of which batch norms an atom is.
        keep: (count,) bool, True for atoms that stay.
    """
    silent = copy.deepcopy(model)
    for name, atoms in graph.scales.items():
        layer = silent.get_submodule(name)
        gone = torch.from_numpy(~keep[atoms])
        for scale in (layer.weight, layer.bias):
            if isinstance(scale, Tensor):
                scale[gone.to(scale.device)] = 0
    return silent


def verify(
    model: nn.Module,
    slimmed: nn.Module,
    graph: ChannelGraph,
    keep: Keep,
    inputs: Inputs,
    tolerance: float = 1e-5,
) -> float:
    """Compare a slimmed network with the original whose doomed channels are silenced.

    Both run in eval mode without autocast; in float64, too, if they differ by more than the
    tolerance in their own precision, which rounding alone can do.

    Args:
        model: the original; stays as it is.
        slimmed: what the oracle is asked about; stays as it is.
        inputs: a tensor, or a tuple of arguments.
        tolerance: beyond which float64 decides.

    Returns:
        max|a − b| / max|a| of each output (tensors in tuples, lists and dicts, too), and of the
        kept channels' means and sizes before and after each batch norm, which show what a dead
        unit would hide; the largest of them. Infinite if an output is not finite, or has another
        shape or structure.

    Raises:
        Exception: whatever the slimmed network raises on these inputs.
    """
    layers = kept_channels(graph, keep)
    return difference_of(silenced(model, graph, keep), slimmed, inputs, tolerance, layers)


def slim_verified(
    model: nn.Module,
    graph: ChannelGraph,
    keep: Keep,
    inputs: Inputs,
    tolerance: float = 1e-5,
) -> Slimmed:
    """Cut channels out of a network and prove it; what cannot be proven stays.

    Where the cut network fails, or its outputs differ, the groups at fault are found by halving and
    left whole, each with the reason. That takes two forward passes a cut, and `TRIALS` cuts at
    most; what is not proven by then is left whole, too. The result is always one that was verified.

    Args:
        model: stays as it is.
        graph: of this model.
        keep: (count,) bool, True for atoms that stay.
        inputs: a tensor, or a tuple of arguments, on the model's device; not constant.
        tolerance: largest relative difference that counts as equal.

    Raises:
        InputError: the network itself, uncut, does not give finite outputs, or not the same ones
            twice.
    """
    keep = np.array(keep, dtype=bool)
    trial = _Trial(model, graph, inputs, tolerance)
    found, reason = trial(keep)
    if found is not None:
        return found
    base, why = trial(np.ones_like(keep))
    if base is None:
        raise InputError(f"{type(model).__name__} cannot be verified: {why}")
    touched = [group for group in graph.groups if not keep[group.atoms].all()]
    left: list[tuple[str, str]] = []
    base = _accumulate(trial, keep, base, touched, left, reason)
    return dataclasses.replace(base, left=tuple(left))


class _Trial:
    """Cuts and compares; counts as failed what raises or differs."""

    def __init__(
        self, model: nn.Module, graph: ChannelGraph, inputs: Inputs, tolerance: float
    ) -> None:
        self.model, self.graph = model, graph
        self.inputs, self.tolerance = inputs, tolerance
        self.left = TRIALS

    def __call__(self, keep: Keep) -> tuple[Slimmed | None, str]:
        """Return the slimmed network, or None and why not."""
        self.left -= 1
        try:
            slim, edits = slim_model(self.model, self.graph, keep)
            silent = silenced(self.model, self.graph, keep)
            layers = kept_channels(self.graph, keep)
            with Declared(silent) as before, Declared(slim) as after:
                difference = compared(silent, slim, self.inputs, layers)
            difference = settled(difference, silent, slim, self.inputs, self.tolerance, layers)
        except Exception as error:  # somebody else's forward may raise anything
            return None, " ".join(f"{type(error).__name__}: {error}".split())[:200]
        if not difference <= self.tolerance:
            return None, f"the output differs by {difference:.2g} of its size"
        sizes = declared_sizes(slim, before.sizes, after.sizes)
        edits = dataclasses.replace(edits, attributes=_joined(edits.attributes, sizes))
        for name, values in sizes.items():
            set_attributes_(slim.get_submodule(name), name, values)
        return Slimmed(slim, edits, keep, difference), ""


def _joined(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    return {name: {**one.get(name, {}), **other.get(name, {})} for name in [*one, *other]}


def _accumulate(
    trial: _Trial,
    keep: Keep,
    base: Slimmed,
    groups: Sequence[Group],
    left: list[tuple[str, str]],
    reason: str,
) -> Slimmed:
    """Add groups to what is verified, halving where they fail; `left` gets those that do alone.

    Returns what was verified last: `base`, whose cuts are always part of it, or more.
    """
    half = len(groups) // 2
    if half == 0 or trial.left <= 0:
        spent = "" if half == 0 else f"not proven within {TRIALS} trials; together: "
        left += [(group.name, spent + reason) for group in groups]
        return base
    for part in (groups[:half], groups[half:]):
        wanted = base.keep.copy()
        for group in part:
            wanted[group.atoms] = keep[group.atoms]
        found, why = trial(wanted)
        base = found or _accumulate(trial, keep, base, part, left, why)
    return base
