"""Rescaling a network's channels exactly: the same function, other ranges.

Multiply a channel by s > 0 where it is made and divide by s where it is read. Equalization chooses
s to make ranges alike; `rescale_` draws it at random, which makes of any trained network one whose
channels are as badly scaled as MobileNetV2's (Nagel et al. 2019, Data-Free Quantization, fig. 2).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, MutableMapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..errors import InputError
from ..graph.comparison import difference_of
from ..graph.graph import Atoms
from ..graph.layer_graph import LayerGraph
from ..graph.probes import other_sizes
from ..graph.scaling import trace_scales
from ..norm.moments import Moments
from ..norm.nesting import detached_copy
from ..norm.undo import Undo
from .clip import ClipMode, prepare_clips_, scale_clips_

Statistics = MutableMapping[str, Moments]


class Rescaling(Undo):
    """What `rescale_` did, and how to take it back.

    Attributes:
        factors: of each layer's output channels, (O,) float64, by the layer's name; only of
            layers of which one is not 1.
        left: (layer, why some of its output channels were left as they are).
        clipped: module replaced by ReLU → share of its values expected above its bound.
        difference: of the outputs, relative, before and after the rescaling itself.
    """

    def __init__(self) -> None:
        super().__init__()
        self.factors: dict[str, Tensor] = {}
        self.left: tuple[tuple[str, str], ...] = ()
        self.clipped: dict[str, float] = {}
        self.difference = 0.0


Chosen = Callable[[LayerGraph], NDArray[np.float64]]


def rescale_(
    model: nn.Module,
    inputs: Tensor | tuple[Any, ...],
    factors: Chosen | None = None,
    *,
    seed: int = 0,
    spread: float = 1.0,
    statistics: Statistics | None = None,
    relu6: ClipMode = "scale",
) -> Rescaling:
    """Multiply the channels of a network by factors, divided out where they are read.

    What the network computes stays: this is shown on the inputs and, where it runs on them, on some
    of another batch size, height and width, to a relative difference of 1e-5 in float32 and 1e-10
    in float64, and what fails is left out and named.

    Args:
        model: changed in place; batch norms that are left in it pin their channels.
        inputs: what `model(*inputs)` takes; a batch of one is enough.
        factors: from the graph to (count,) factors > 0, one an atom; drawn if not given.
        seed: of the draw.
        spread: factors are 10^u, u uniform in ±spread.
        statistics: moments of each layer's output by its name; changed along.
        relu6: what becomes of clips at fixed bounds, as of `equalize_`; "scale" is exact.

    Example:
        >>> with rescale_(model, images, seed=0, spread=1.5):
        ...     evaluate(model)

    Raises:
        InputError: the model does not run on the inputs, is not in float32 or float64, or a
            factor is not a positive number.
    """
    undo = Rescaling()
    known = {} if statistics is None else statistics
    graph = scalable_(model, inputs, known, relu6, undo)

    def drawn(graph: LayerGraph) -> NDArray[np.float64]:
        return 10 ** np.random.default_rng(seed).uniform(-spread, spread, graph.count)

    multiply_(model, inputs, graph, (factors or drawn)(graph), known, undo)
    return undo


def scalable_(
    model: nn.Module,
    inputs: Tensor | tuple[Any, ...],
    statistics: Statistics,
    relu6: ClipMode,
    undo: Rescaling,
) -> LayerGraph:
    """Return the graph of a model whose clips have been dealt with, as `prepare_clips_` does.

    Raises:
        InputError: the model has no parameters of float32 or float64, or does not run.
    """
    kinds = {each.dtype for each in model.parameters() if each.is_floating_point()}
    if not kinds or kinds - {torch.float32, torch.float64}:
        said = ", ".join(sorted(map(str, kinds))) or "no parameters"
        raise InputError(f"{type(model).__name__} has {said}: rescale it in float32 or float64")
    graph = trace_scales(model, inputs)
    graph, undo.clipped = prepare_clips_(model, graph, statistics, relu6, undo)
    return graph if relu6 == "scale" else dataclasses.replace(graph, clips=())


def multiply_(
    model: nn.Module,
    inputs: Tensor | tuple[Any, ...],
    graph: LayerGraph,
    factors: NDArray[np.float64],
    statistics: Statistics,
    undo: Rescaling,
) -> None:
    """Apply factors, prove that the network's function is the same, and leave out what changes it.

    Args:
        model: changed in place.
        inputs: to compare on, and on others of other sizes.
        graph: of the model.
        factors: (count,) > 0; those of atoms that are not free count as 1.
        statistics: changed along.
        undo: gets the steps, `factors`, `left` and `difference`.

    Raises:
        InputError: a factor is not a positive number.
    """
    if not bool((np.isfinite(factors) & (factors > 0)).all()):
        raise InputError(f"factor {factors.min():.3g}: factors must be positive numbers")
    single = any(each.dtype == torch.float32 for each in model.parameters())
    tolerance = 1e-5 if single else 1e-10
    before = detached_copy(model)
    proofs = (inputs, *other_sizes(before, inputs, tolerance))

    def tried(groups: Sequence[Atoms]) -> tuple[Undo, float]:
        steps = Undo()
        known = dict(statistics)
        scale_(model, graph, _only(factors, groups), statistics, steps)
        steps.add(lambda: statistics.update(known))
        found = (difference_of(before, model, each, tolerance) for each in proofs)
        return steps, max(found, key=lambda each: (math.isnan(each), each))

    def fails(groups: Sequence[Atoms]) -> bool:
        steps, difference = tried(groups)
        steps()
        return not difference <= tolerance

    groups = kept = list(graph.groups())
    steps, undo.difference = tried(kept)
    if not undo.difference <= tolerance:
        steps()
        kept = _innocent(fails, groups)
        steps, undo.difference = tried(kept)
    undo.add(steps)
    for atoms in groups:
        if not any(atoms is each for each in kept):
            graph = graph.pin(atoms, "scaling them changes what the network computes")
    undo.left = graph.left()
    undo.factors = _by_layer(graph, _only(factors, kept))


def scale_(
    model: nn.Module,
    graph: LayerGraph,
    factors: NDArray[np.float64],
    statistics: Statistics,
    undo: Undo,
) -> None:
    """Multiply weights by s[out] / s[inputs], biases, means and deviations by s[out], bounds by s.

    Each weight is rounded once. Nothing is checked.

    Args:
        model: changed in place.
        graph: of the model.
        factors: (count,) of each atom.
        statistics: changed in place; not by the undo.
        undo: gets the steps of the model.
    """
    done: set[str] = set()
    for layer in graph.layers:
        out, inputs = layer.rows()
        ratio = torch.from_numpy(factors[out] / factors[inputs])
        made = torch.from_numpy(factors[layer.out])
        write_(model, layer.weight, lambda w, r=ratio: _times(w, r), undo)  # type: ignore[misc]
        for bias in set(layer.biases) - done:
            write_(model, bias, lambda b, s=made: _times(b, s), undo)  # type: ignore[misc]
        done |= set(layer.biases)
        if layer.module in statistics:
            statistics[layer.module] = _scaled(statistics[layer.module], made)
    scale_clips_(model, graph.clips, factors, undo)


@torch.no_grad()
def write_(model: nn.Module, name: str, change: Callable[[Tensor], Tensor], undo: Undo) -> None:
    """Change a parameter in float64 and round it once; the undo restores every bit."""
    parameter = model.get_parameter(name)
    old = parameter.detach().clone()

    @torch.no_grad()
    def restore() -> None:
        parameter.copy_(old)

    undo.add(restore)
    parameter.copy_(change(parameter.double()))


def _times(tensor: Tensor, factors: Tensor) -> Tensor:
    """Multiply along the first dimensions."""
    shape = (*factors.shape, *[1] * (tensor.dim() - factors.dim()))
    return tensor * factors.to(tensor.device).reshape(shape)


def _scaled(moments: Moments, s: Tensor) -> Moments:
    s = s.to(moments.mean.device).reshape(moments.mean.shape)
    mean, var = (moments.mean * s), (moments.var * s.square())
    return dataclasses.replace(
        moments, mean=mean.to(moments.mean), var=var.to(moments.var), cov=None
    )


def _only(factors: NDArray[np.float64], groups: Sequence[Atoms]) -> NDArray[np.float64]:
    chosen = np.ones_like(factors)
    for atoms in groups:
        chosen[atoms] = factors[atoms]
    return chosen


def _innocent(fails: Callable[[Sequence[Atoms]], bool], groups: Sequence[Atoms]) -> list[Atoms]:
    """The groups that do not fail alone; none where they fail together."""
    guilty = _guilty(fails, groups)
    kept = [atoms for atoms in groups if not any(atoms is each for each in guilty)]
    return [] if fails(kept) else kept


def _guilty(fails: Callable[[Sequence[Atoms]], bool], groups: Sequence[Atoms]) -> list[Atoms]:
    """The groups that fail alone, found by halving."""
    if not groups or not fails(groups):
        return []
    if len(groups) == 1:
        return list(groups)
    half = len(groups) // 2
    return _guilty(fails, groups[:half]) + _guilty(fails, groups[half:])


def _by_layer(graph: LayerGraph, factors: NDArray[np.float64]) -> dict[str, Tensor]:
    found = {layer.module: torch.from_numpy(factors[layer.out]) for layer in graph.layers}
    return {name: s for name, s in found.items() if bool((s != 1).any())}
