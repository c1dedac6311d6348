"""High-bias absorption: what a channel almost always has above 0 goes into the biases behind it.

Nagel et al. 2019, Data-Free Quantization, §4.1.3. Equalization can leave channels with large
biases, which widen the range of the activations. relu(x − c) = relu(x) − c where x ≥ c, and with
c = max(0, μ − 3 σ) that is all but 0.13 % of a normal channel.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, MutableMapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..errors import InputError
from ..graph.comparison import difference_of
from ..graph.layer_graph import Layer, LayerGraph
from ..graph.shifting import trace_shifts
from ..norm.moments import Moments
from ..norm.nesting import detached_copy
from ..norm.undo import Undo
from .clip import bounds_of, shift_clips_
from .rescale import write_

Shifts = NDArray[np.float64]


class Absorption(Undo):
    """What `absorb_` did, and how to take it back.

    Attributes:
        absorbed: c of each layer's output channels, (O,) float64, by the layer's name; only of
            layers of which one is not 0.
        padded: layers that read such channels and pad with zeros, where c is missing: their
            outputs at the border are off by a part of Σ W c, as in the paper.
        left: (layer, why its channels were left) of layers with statistics and a c above 0.
        difference: of the outputs on the inputs given, relative: what the padding and the values
            below c cost.
    """

    def __init__(self) -> None:
        super().__init__()
        self.absorbed: dict[str, Tensor] = {}
        self.padded: tuple[str, ...] = ()
        self.left: tuple[tuple[str, str], ...] = ()
        self.difference = 0.0


def absorb_(
    model: nn.Module,
    inputs: Tensor | tuple[Any, ...],
    statistics: MutableMapping[str, Moments],
    *,
    deviations: float = 3.0,
) -> Absorption:
    """Move high biases through ReLUs into the layers that read them.

    c = max(0, μ − deviations · σ) of each channel in front of a ReLU: b1 −= c, μ −= c, and
    b2 += Σ W2 c for every layer that reads the channel; one without a bias gets one. The upper
    bound of ReLU6, or of what equalization made of it, goes down by c, which is at most all of it.
    What lies between may pool, move and join channels; a sum or product leaves them as they are.

    Not exact, unlike equalization: `difference` says how far it is off on these inputs.

    Args:
        model: folded; changed in place.
        inputs: what `model(*inputs)` takes: images, if `difference` is to mean something.
        statistics: moments of each layer's output by its name, equalized along with the model;
            changed along, and restored.
        deviations: σ below the mean that are kept above 0.

    Raises:
        InputError: the model does not run on the inputs, or `deviations` is negative.
    """
    if deviations < 0:
        raise InputError(f"deviations {deviations}: must not be negative")
    graph = trace_shifts(model, inputs)
    wanted = np.minimum(_wanted(graph, statistics, deviations), _bounds(model, graph))
    free = graph.free() & graph.rectified & _made_once(graph) & ~_without_bias(model, graph)
    shifts = np.where(free, wanted, 0.0)
    undo, before, known = Absorption(), detached_copy(model), dict(statistics)
    undo.add(lambda: statistics.update(known))
    for layer in graph.layers:
        _take_(model, layer, shifts, statistics, undo)
        _give_(model, layer, shifts, undo)
    shift_clips_(model, graph.clips, shifts, undo)
    undo.padded = tuple(each.module for each in _readers(graph, shifts) if each.padded)
    undo.left = _left(graph, wanted, free)
    undo.difference = difference_of(before, model, inputs)
    return undo


def _wanted(graph: LayerGraph, statistics: Mapping[str, Moments], deviations: float) -> Shifts:
    """(count,) c of every atom that a layer with statistics makes."""
    found = np.zeros(graph.count)
    for layer in graph.layers:
        moments = statistics.get(layer.module)
        if moments is not None:
            mean, std = moments.mean.double().flatten(), moments.std().double().flatten()
            c = (mean - deviations * std).clamp_min(0).cpu().numpy()
            found[layer.out] = np.nan_to_num(c, posinf=0.0)
    return found


def _bounds(model: nn.Module, graph: LayerGraph) -> Shifts:
    """(count,) where the lowest clip of every atom is: more than that is never above it."""
    found = np.full(graph.count, np.inf)
    for clip in graph.clips:
        high = bounds_of(model.get_submodule(clip.module))[1].cpu().expand(len(clip.atoms))
        np.minimum.at(found, clip.atoms, high.numpy())
    return found


def _made_once(graph: LayerGraph) -> NDArray[np.bool_]:
    """Atoms of one output channel of one layer; of others the statistics do not tell."""
    made = np.zeros(graph.count, np.int64)
    for layer in graph.layers:
        np.add.at(made, layer.out, 1)
    once: NDArray[np.bool_] = made == 1
    return once


def _without_bias(model: nn.Module, graph: LayerGraph) -> NDArray[np.bool_]:
    """Atoms that a layer reads whose module cannot be given a bias."""
    found = np.zeros(graph.count, bool)
    for layer in graph.layers:
        module = model.get_submodule(layer.module)
        if not layer.biases and getattr(module, "bias", 0) is not None:
            found[layer.inputs] = True
    return found


def _take_(
    model: nn.Module,
    layer: Layer,
    shifts: Shifts,
    statistics: MutableMapping[str, Moments],
    undo: Absorption,
) -> None:
    c = torch.from_numpy(shifts[layer.out])
    if not c.any():
        return
    undo.absorbed[layer.module] = c
    _add_(model, layer, -c, undo)
    moments = statistics[layer.module]
    mean = moments.mean.double() - c.to(moments.mean.device).reshape(moments.mean.shape)
    statistics[layer.module] = dataclasses.replace(moments, mean=mean.to(moments.mean))


def _give_(model: nn.Module, layer: Layer, shifts: Shifts, undo: Undo) -> None:
    if shifts[layer.inputs].any():
        weight = model.get_parameter(layer.weight).detach().double()
        c = torch.from_numpy(shifts[layer.rows()[1]]).to(weight.device)
        _add_(model, layer, (weight.reshape(*weight.shape[:2], -1).sum(2) * c).sum(1), undo)


def _add_(model: nn.Module, layer: Layer, more: Tensor, undo: Undo) -> None:
    """Add to a layer's bias; one without gets one, of zeros."""
    if not layer.biases:
        module = model.get_submodule(layer.module)
        weight = model.get_parameter(layer.weight)
        zeros = weight.detach().new_zeros(len(layer.out))
        module.bias = nn.Parameter(zeros, weight.requires_grad)
        undo.add(lambda: setattr(module, "bias", None))
    for name in layer.biases or (f"{layer.module}.bias",):
        write_(model, name, lambda bias: bias + more.to(bias.device), undo)


def _readers(graph: LayerGraph, shifts: Shifts) -> list[Layer]:
    return [layer for layer in graph.layers if shifts[layer.inputs].any()]


def _left(
    graph: LayerGraph, wanted: Shifts, free: NDArray[np.bool_]
) -> tuple[tuple[str, str], ...]:
    found = []
    for layer in graph.layers:
        stuck = [int(atom) for atom in layer.out if wanted[atom] > 0 and not free[atom]]
        if stuck:
            reason = graph.pinned.get(stuck[0], "no ReLU and layer of their own read them")
            found.append((layer.module, reason))
    return tuple(found)
