"""Which channels a penalty is on: by layers, by the channel graph, weighted by what they cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import InputError, unknown
from ..norm.convert.selection import Patterns
from .scales import ScaleLayer, Scales, scale_layers

if TYPE_CHECKING:
    from ..graph import ChannelGraph


def choose_scales(
    model: nn.Module,
    include: Patterns = (),
    exclude: Patterns = (),
    graph: ChannelGraph | None = None,
    tied: bool = False,
    shifts: bool = False,
    weights: Mapping[str, float] | None = None,
    flops_weighted: bool = False,
) -> Scales:
    """Return the scales of a model that a penalty is on; see `ScaleRegularizer`.

    Raises:
        InputError: none is left, `tied` or `flops_weighted` without a graph, a graph of another
            model, or weights that do not fit.
    """
    if graph is None and (tied or flops_weighted):
        name = "tied" if tied else "flops_weighted"
        raise InputError(f"{name}=True needs graph=trace_channels(model, inputs)")
    layers = [each for each in scale_layers(model, include, exclude) if each.weight.requires_grad]
    if graph is not None:
        layers = [each for each in layers if each.name in graph.scales]
    if not layers:
        raise InputError(
            f"{type(model).__name__}: no batch norm is left to penalize: all are frozen"
            + (", or not in the graph" if graph is not None else "")
        )
    costs = _costs(layers, graph if flops_weighted else None, weights)
    groups = None if graph is None else _groups(_atoms(layers, graph), graph.free(), tied)
    return Scales(layers, groups, shifts=shifts, costs=costs)


def channel_macs(graph: ChannelGraph) -> np.ndarray:
    """Return the multiply-accumulates that go with one scale channel of each atom, float64 (A,).

    What the network costs less without the atom, shared among its scale channels; all atoms of a
    group cost the same. 0 for atoms outside of the groups.
    """
    whole, found = graph.macs(), np.zeros(graph.count)
    channels = np.zeros(graph.count)
    for atoms in graph.scales.values():
        np.add.at(channels, atoms, 1)
    for group in graph.groups:
        keep = np.ones(graph.count, dtype=bool)
        keep[group.atoms[0]] = False
        found[group.atoms] = whole - graph.macs(keep)
    return found / np.maximum(channels, 1)


def _atoms(layers: Sequence[ScaleLayer], graph: ChannelGraph) -> np.ndarray:
    for layer in layers:
        if len(graph.scales[layer.name]) != len(layer.weight):
            raise InputError(
                f"layer '{layer.name}' has {len(layer.weight)} channels, the graph"
                f" {len(graph.scales[layer.name])}: trace this model"
            )
    return np.concatenate([graph.scales[layer.name] for layer in layers])


def _groups(atoms: np.ndarray, free: np.ndarray, tied: bool) -> list[list[int]]:
    """Positions of the scales of free atoms, each alone or by atoms."""
    found: dict[int, list[int]] = {}
    for position, atom in enumerate(atoms.tolist()):
        if free[atom]:
            found.setdefault(atom if tied else position, []).append(position)
    if not found:
        raise InputError("the graph has no channel that can be cut: nothing to penalize")
    return list(found.values())


def _costs(
    layers: Sequence[ScaleLayer], graph: ChannelGraph | None, weights: Mapping[str, float] | None
) -> Tensor | None:
    if weights is not None and graph is not None:
        raise InputError("weights and flops_weighted exclude each other: give one")
    if graph is not None:
        return torch.from_numpy(channel_macs(graph)[_atoms(layers, graph)])
    return None if weights is None else _by_layer(layers, weights)


def _by_layer(layers: Sequence[ScaleLayer], weights: Mapping[str, float]) -> Tensor:
    names = {layer.name for layer in layers}
    for name, weight in weights.items():
        if name not in names:
            raise unknown("layer in weights", name, names)
        if not 0 < weight < float("inf"):
            raise InputError(f"weights: {weight} of layer '{name}' must be a number above 0")
    for layer in layers:
        if layer.name not in weights:
            raise InputError(f"weights: layer '{layer.name}' has none; exclude it or give it one")
    parts = [torch.full((len(layer.weight),), float(weights[layer.name])) for layer in layers]
    return torch.cat(parts).double()
