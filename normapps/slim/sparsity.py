"""How sparse the scales of a network are, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..graph.graph import ChannelGraph
from .scales import scale_layers

SMALL = 0.01
"""A scale is small that is at most this share of the largest of its layer."""


@dataclass(frozen=True)
class LayerScales:
    """The scales of one batch norm that pruning could take.

    Attributes:
        name: of the layer.
        values: |γ| (C,) float32 on the CPU.
    """

    name: str
    values: Tensor

    @property
    def zeros(self) -> int:
        """How many are exactly 0."""
        return int((self.values == 0).sum())

    @property
    def small(self) -> int:
        """How many are small beside the layer's largest, those that are 0 among them."""
        return int((self.values <= SMALL * self.values.max()).sum())


@dataclass(frozen=True)
class Sparsity:
    """The scales of a network.

    Attributes:
        layers: those with scales that pruning could take, in the model's order.
    """

    layers: tuple[LayerScales, ...]

    @property
    def values(self) -> Tensor:
        """|γ| of all layers, (N,)."""
        return torch.cat([each.values for each in self.layers])

    @property
    def zeros(self) -> float:
        """The share that is exactly 0."""
        return sum(each.zeros for each in self.layers) / len(self.values)

    @property
    def small(self) -> float:
        """The share that is small beside its layer's largest."""
        return sum(each.small for each in self.layers) / len(self.values)


def prunable_scales(graph: ChannelGraph) -> dict[str, Tensor]:
    """Return which channels of each batch norm pruning could take: (C,) bool by layer name.

    Layers of which none could go are left out.

    Raises:
        InputError: there is no such channel in the network.
    """
    free = graph.free()
    found = {
        name: torch.from_numpy(free[atoms])
        for name, atoms in graph.scales.items()
        if free[atoms].any()
    }
    if not found:
        reasons = sorted(set(graph.pinned.values()))
        why = f" ({reasons[0]})" if reasons else ""
        raise InputError(f"the network has no batch norm whose channels could be cut out{why}")
    return found


def measure_sparsity(model: nn.Module, chosen: Mapping[str, Tensor] | None = None) -> Sparsity:
    """Read the scales of a network's batch norms.

    Args:
        model: any network with batch norms.
        chosen: of `prunable_scales`; all scales without it.

    Raises:
        InputError: there is no batch norm with a scale.
    """
    found = []
    for layer in scale_layers(model):
        values = layer.weight.detach().abs().float().cpu()
        if chosen is None:
            found.append(LayerScales(layer.name, values))
        elif layer.name in chosen:
            found.append(LayerScales(layer.name, values[chosen[layer.name]]))
    return Sparsity(tuple(found))
