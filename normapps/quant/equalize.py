"""Cross-layer equalization: give the channels of each weight like ranges, the function unchanged.

Nagel et al. 2019, Data-Free Quantization Through Weight Equalization and Bias Correction, §4.1. One
scale for a whole tensor wastes its steps on the channels of the widest range; a channel's range can
be moved into the layer behind, as far as what is between is positively homogeneous.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from ..errors import InputError
from ..graph.graph import Atoms
from ..graph.layer_graph import LayerGraph, Sizes
from .clip import ClipMode
from .rescale import Rescaling, Statistics, multiply_, scalable_

Factors = NDArray[np.float64]


class Equalization(Rescaling):
    """What `equalize_` did, and how to take it back; see `Rescaling` for what else it says.

    Attributes:
        sweeps: passes over all channels.
        change: the largest |log s| of the last one, less its mean in the group of channels, which
            changes no tensor's rounding; converged where it is below the tolerance.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sweeps = 0
        self.change = 0.0


def equalize_(
    model: nn.Module,
    inputs: Tensor | tuple[Any, ...],
    statistics: Statistics | None = None,
    *,
    iterations: int = 100,
    tolerance: float = 1e-2,
    relu6: ClipMode = "scale",
) -> Equalization:
    """Equalize the ranges of a folded network's channels.

    A channel made with range r1 (the largest |w| of its row in W1) and read with range r2 (that of
    its column in W2) is multiplied by s = √(r2 / r1): both ranges become √(r1 r2). W1[i], b1[i] and
    the mean and standard deviation of what W1 gives are multiplied by s, W2[:, i] is divided by it;
    b2 stays.

    The paper goes from pair to pair along a chain. Here the channels of the whole network are
    followed: a channel that several layers make (a residual sum) or read has one s, with r1 the
    largest range of those that make it and r2 of those that read it. With one of each it is the
    paper's formula. A depthwise convolution makes and reads its channels by the same rows, so it
    passes what it is given on, until the sweeps over all channels converge.

    A channel that is made or read with zeros only keeps its scale, as does one that meets what
    is not positively homogeneous: it is in `left`, with the reason.

    Args:
        model: folded, in float32 or float64; changed in place.
        inputs: what `model(*inputs)` takes; a batch of one is enough.
        statistics: moments of each layer's output by its name; changed along, and restored.
        iterations: sweeps at most.
        tolerance: stop where no |log s| of a sweep exceeds it, as `Equalization.change` is taken.
        relu6: "scale" the bound of ReLU6 channel by channel (exact), "replace" it by ReLU as the
            paper does (another function: `clipped` says how often it clipped, and a network that
            needs its clips is lost), or "keep" it, and its channels as they are. The same holds of
            Hardtanh, which "replace" leaves alone where it clips below 0.

    Raises:
        InputError: the model does not run on the inputs or is not in float32 or float64, or
            `iterations` is negative.
    """
    if iterations < 0:
        raise InputError(f"iterations {iterations}: must not be negative")
    undo = Equalization()
    known = {} if statistics is None else statistics
    graph = scalable_(model, inputs, known, relu6, undo)
    factors = np.ones(graph.count)
    sweep = _Sweep(model, graph)
    for undo.sweeps in range(1, iterations + 1):
        undo.change = sweep(factors)
        if undo.change <= tolerance:
            break
    multiply_(model, inputs, graph, factors, known, undo)
    return undo


@dataclass(frozen=True, eq=False)
class _Side:
    """What one layer makes, or reads, of one group of atoms.

    Attributes:
        at: for each of its channels in the group, which of the group's atoms it is, (C,).
        sizes: (C, K) largest |w| over the kernel.
        others: atoms of the other side, (C, K) or (1, K).
    """

    at: Atoms
    sizes: Sizes
    others: Atoms

    def ranges(self, factors: Factors) -> Factors:
        """(C,) the largest |w| of each channel, the other side multiplied by its factors."""
        found: Factors = (self.sizes * factors[self.others]).max(1)
        return found


class _Sweep:
    """One pass over all groups of channels, the first made first."""

    def __init__(self, model: nn.Module, graph: LayerGraph) -> None:
        sizes = [_sizes(model.get_parameter(layer.weight)) for layer in graph.layers]
        self._plan: list[tuple[Atoms, list[_Side], list[_Side], float]] = []
        for atoms in graph.groups():
            place = np.full(graph.count, -1)
            place[atoms] = np.arange(len(atoms))
            made, read, power = [], [], 0.5
            for layer, each in zip(graph.layers, sizes, strict=True):
                sides = (
                    _side(place[layer.out], layer.by_output, each),
                    _side(place[layer.inputs], layer.by_input, each),
                )
                made += sides[0]
                read += sides[1]
                if all(sides):  # a weight between atoms of one group: half a step each
                    power = 0.25
            self._plan.append((atoms, made, read, power))

    def __call__(self, factors: Factors) -> float:
        """Change the factors in place; returns the largest |log s|, less its mean in a group."""
        largest = 0.0
        for atoms, made, read, power in self._plan:
            r1, r2 = np.zeros((2, len(atoms)))
            for side in made:
                np.maximum.at(r1, side.at, side.ranges(1 / factors))
            for side in read:
                np.maximum.at(r2, side.at, side.ranges(factors))
            r1, r2 = r1 * factors[atoms], r2 / factors[atoms]
            known = (r1 > 0) & (r2 > 0)
            s = np.divide(r2, r1, out=np.ones_like(r1), where=known) ** power
            factors[atoms] *= s
            logs = np.log(s)
            largest = max(largest, float(np.abs(logs - logs.mean()).max()))
        return largest


def _side(
    places: Atoms, by_channel: Callable[[Sizes], tuple[Sizes, Atoms]], sizes: Sizes
) -> list[_Side]:
    """One layer's part in a group, by the place of each of its channels there; −1 is none."""
    chosen = np.flatnonzero(places >= 0)
    if not len(chosen):
        return []
    own, others = by_channel(sizes)
    if len(chosen) < len(places):  # a copy, where a view will not do
        own = own[chosen]
        others = others[chosen] if len(others) > 1 else others
    return [_Side(places[chosen], own, others)]


def _sizes(weight: Tensor) -> Sizes:
    """(rows, columns): the largest |w| over the kernel."""
    flat = weight.detach().reshape(*weight.shape[:2], -1)
    found: Sizes = flat.abs().amax(2).float().cpu().numpy()
    return found
