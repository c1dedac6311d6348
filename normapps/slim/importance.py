"""How much a network needs each of its channels, read off its weights.

`scale` is the criterion of network slimming (Liu et al. 2017, 'Learning Efficient Convolutional
Networks through Network Slimming', section 3.2): the batch norm's |γ|. Where several batch norms
scale one channel (a residual stream), the paper leaves the choice open; here it is the root of
their mean square: one large scale among small ones says that the channel is needed. A channel of
one batch norm has its |γ|.
`l2` is for models whose scales were never made sparse (cf. Li et al. 2017, 'Pruning Filters for
Efficient ConvNets', who rank filters by their norm within a layer): the norm of the weights that
a channel owns, relative to the layer's other channels, so that layers of different width and
depth can share one threshold. `random` is the control that every criterion has to beat.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..errors import InputError, unknown
from ..graph.graph import ChannelGraph

Array = NDArray[Any]


def importance(
    model: nn.Module, graph: ChannelGraph, kind: str = "scale", *, seed: int = 0
) -> Array:
    """Rate every atom of a channel graph: the lowest go first.

    Args:
        model: the one that `graph` was traced from; not changed.
        kind: scale, l2 or random.
        seed: of `random`; the other two draw nothing.

    Returns:
        (count,) float64, at least 0; `scale` is the root mean square of an atom's |γ|. Atoms
        without a slot of that kind have 0; they are not free to go anyway.

    Raises:
        InputError: an unknown kind; a model without a batch norm that can be pruned; a scale or
            weight that is not finite; with `scale`, scales that are all equal within each layer.
    """
    kinds: Mapping[str, Callable[[], Array]] = {
        "scale": lambda: _by_scale(model, graph),
        "l2": lambda: _by_weights(model, graph),
        "random": lambda: np.random.default_rng(seed).random(graph.count),
    }
    if kind not in kinds:
        raise unknown("importance", kind, kinds)
    if not graph.scales:
        raise InputError(
            "no batch norm with a scale in this model: there is nothing to slim it by;"
            " choose a model with batch norm layers"
        )
    return kinds[kind]()


def scales_of(model: nn.Module, graph: ChannelGraph) -> dict[str, Array]:
    """Return |γ| of every batch norm of the graph, float64, by the layer's name.

    Raises:
        InputError: a layer that the model lacks, or a scale that is not finite.
    """
    return {layer: _scale(model, layer) for layer in graph.scales}


def all_equal(scales: Mapping[str, Array]) -> bool:
    """Whether no layer's scales rank its channels, as in a network that was not trained."""
    return all(np.ptp(values) == 0 for values in scales.values())


def _by_scale(model: nn.Module, graph: ChannelGraph) -> Array:
    scales = scales_of(model, graph)
    if all_equal(scales):
        raise InputError(
            "the scales are all equal within each batch norm, so they rank no channel: train them"
            " sparse first (`normapps slim train`), or choose --importance l2"
        )
    squares = [(graph.scales[layer], values**2) for layer, values in scales.items()]
    return np.sqrt(_mean_by_atom(squares, graph.count))


def _by_weights(model: nn.Module, graph: ChannelGraph) -> Array:
    """Average, over the filters an atom has part in, the norm of its slice over their mean."""
    filters = {name: each for name, each in model.named_parameters() if each.ndim > 1}
    parts = []
    for name, dims in graph.slots.items():
        for dim, atoms in enumerate(dims if name in filters else ()):
            if atoms is not None:
                norms = _slice_norms(name, filters[name], dim)
                parts.append((atoms, norms / (norms.mean() or 1.0)))
    return _mean_by_atom(parts, graph.count)


def _slice_norms(name: str, weight: Tensor, dim: int) -> Array:
    others = [each for each in range(weight.ndim) if each != dim]
    norms = torch.linalg.vector_norm(weight.detach(), dim=others, dtype=torch.float64)
    return _finite(norms, name, "weight")


def _mean_by_atom(parts: list[tuple[Array, Array]], count: int) -> Array:
    sums, slots = np.zeros(count), np.zeros(count)
    for atoms, values in parts:
        sums += np.bincount(atoms, values, count)
        slots += np.bincount(atoms, minlength=count)
    return sums / np.maximum(slots, 1)


def _scale(model: nn.Module, layer: str) -> Array:
    try:
        values = model.get_parameter(f"{layer}.weight").detach()
    except AttributeError:
        raise InputError(
            f"{layer}: the model has no such batch norm; give the model that was traced"
        ) from None
    return np.abs(_finite(values, layer, "scale"))


def _finite(values: Tensor, place: str, what: str) -> Array:
    if not torch.isfinite(values).all():
        raise InputError(
            f"{place}: a {what} is not finite; train again, or start from a sound checkpoint"
        )
    found: Array = values.to("cpu", torch.float64).numpy()
    return found
