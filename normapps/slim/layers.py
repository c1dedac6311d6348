"""A pruned network layer by layer: channels, parameters and multiplications, before and after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray
from torch import Tensor, nn

from ..graph.graph import ChannelGraph

_WIDTHS = ("out_channels", "out_features", "num_features", "num_channels")


@dataclass(frozen=True)
class Row:
    """What a layer was and is.

    Attributes:
        name: in the model.
        kind: its class.
        channels: that it puts out, before and after.
        parameters: of its own, before and after.
        macs: multiply-accumulates of one picture, before and after; 0 of what multiplies nothing.
    """

    name: str
    kind: str
    channels: tuple[int, int]
    parameters: tuple[int, int]
    macs: tuple[int, int]

    @property
    def is_smaller(self) -> bool:
        """Whether it lost anything."""
        return self.parameters[0] > self.parameters[1] or self.macs[0] > self.macs[1]


def layer_rows(
    base: nn.Module, slimmed: nn.Module, graph: ChannelGraph, keep: NDArray[Any]
) -> tuple[Row, ...]:
    """Compare two networks layer by layer, in the order of the model.

    Args:
        base: with all channels.
        slimmed: the same network without some.
        graph: of the base.
        keep: (count,) bool, True for atoms that the slimmed one has.

    Returns:
        A row for each module that has parameters of its own or multiplies; a layer that the model
        knows under several names has one row.
    """
    modules = dict(slimmed.named_modules())
    macs = graph.layer_macs(), graph.layer_macs(keep)
    rows = []
    for name, module in base.named_modules():
        pair = module, modules[name]
        row = Row(
            name or type(module).__name__,
            type(module).__name__,
            _both(_channels(each) for each in pair),
            _both(_parameters(each) for each in pair),
            _both(each.get(name, 0) for each in macs),
        )
        if row.parameters[0] or row.macs[0]:
            rows.append(row)
    return tuple(rows)


def reduction(before: float, after: float) -> float:
    """Return the share that is gone, 0 of nothing."""
    return 1 - after / before if before else 0.0


def counted(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """Return rows as JSON values by the layer's name."""
    return {
        row.name: {
            "kind": row.kind,
            "channels": list(row.channels),
            "parameters": list(row.parameters),
            "macs": list(row.macs),
        }
        for row in rows
    }


def _both(values: Any) -> tuple[int, int]:
    before, after = values
    return before, after


def _channels(layer: nn.Module) -> int:
    """Channels that a layer puts out, 0 where it does not say."""
    found = (getattr(layer, name, None) for name in _WIDTHS)
    said = next((each for each in found if isinstance(each, int)), None)
    if said is not None:
        return said
    weight = getattr(layer, "weight", None)
    return len(weight) if isinstance(weight, Tensor) and weight.ndim else 0


def _parameters(layer: nn.Module) -> int:
    return sum(each.numel() for each in layer.parameters(recurse=False))
