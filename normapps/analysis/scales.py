"""Scales: how much of its channels a network needs, by the γ of its norm layers.

A channel whose scale is next to 0 says nothing to the layers behind it (Liu et al. 2017, network
slimming).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..norm.convert.sites import find_sites


@dataclass(frozen=True)
class ScaleRow:
    """The |γ| of a layer.

    Attributes:
        layer: its name.
        channels: their number.
        small: share of them below τ.
        smallest, median, largest: of |γ|.
    """

    layer: str
    channels: int
    small: float
    smallest: float
    median: float
    largest: float


@dataclass(frozen=True)
class Scales:
    """What `scales` found.

    Attributes:
        rows: a layer each, in the order of the model.
        small: share below τ of all scales that count.
        untouched: layers that do not count, because all their scales are exactly 0: so residual
            branches are initialized on purpose.
        values: |γ| of every channel that counts.
    """

    rows: tuple[ScaleRow, ...]
    small: float
    untouched: tuple[str, ...]
    values: tuple[float, ...]


def scales(model: nn.Module, tau: float = 0.01) -> Scales:
    """Look at the scale of every channel of the norm layers.

    Args:
        model: any network.
        tau: τ, below which a scale is small.

    Raises:
        InputError: no norm layer has a scale.
    """
    layers = _scales(model)
    if not layers:
        raise InputError("no norm layer has a scale")
    untouched = tuple(name for name, values in layers.items() if not bool(values.any()))
    counted = {name: values for name, values in layers.items() if name not in untouched}
    rows = tuple(_row(name, values, tau) for name, values in counted.items())
    whole = torch.cat(list(counted.values())) if counted else torch.zeros(0)
    small = float((whole < tau).double().mean()) if counted else 0.0
    return Scales(rows, small, untouched, tuple(whole.tolist()))


def _scales(model: nn.Module) -> dict[str, Tensor]:
    """|γ| (C,) by layer; one that stands in two places, or two that share a scale, are one."""
    found: dict[int, tuple[str, Tensor]] = {}
    for site in find_sites(model):
        weight = site.tensor("weight")
        if weight is not None and weight.dim() == 1:
            found.setdefault(id(weight), (site.name, weight.detach().cpu().double().abs()))
    return dict(found.values())


def _row(layer: str, values: Tensor, tau: float) -> ScaleRow:
    small = float((values < tau).double().mean())
    spread = (float(each) for each in (values.min(), values.median(), values.max()))
    return ScaleRow(layer, len(values), small, *spread)
