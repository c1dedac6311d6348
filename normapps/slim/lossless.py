"""Which channels can go without changing what a network computes.

A channel whose scales are all exactly 0 is a constant: its batch norm's β, and after an
activation act(β). If what every layer reads of it is 0, it goes as it is. If it is another
constant, `compensate_` moves it into the next bias, which is exact where no zero-padded border
comes between: linear layers and convolutions without padding. Neither follows from patterns of
layers here: the network is run, and every convolution and linear layer is asked what it reads.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..engine.device import evaluating
from ..graph.graph import ChannelGraph
from .importance import scales_of
from .reading import FORWARD, LAYERS, Product, ProductListener, owner_of, rows_of

LOUDNESS = (0.01, 0.1, 1.0, 1.0, 10.0, 100.0)
"""Standard deviations of the noise, so that a gate that one of them saturates moves in another."""

ROUNDING = 1e-6
"""Spread of a constant, relative to it: a vectorized activation and its tail differ that much."""


def lossless(model: nn.Module, graph: ChannelGraph, inputs: Tensor) -> NDArray[np.bool_]:
    """Find the atoms whose removal, after `compensate_`, changes no output.

    Args:
        model: the one that `graph` was traced from; run once in evaluation mode, not changed.
        graph: of it.
        inputs: (N, ...) floating, of which size, dtype and device are taken.

    Returns:
        (count,) bool: True for free atoms whose scales are all exactly 0, and of which every
        layer that mixes channels reads the constant 0, or another constant that it can take into
        its bias exactly. Any subset of them is lossless too.

    Raises:
        InputError: a scale that is not finite.
    """
    able = graph.free()
    for layer, values in scales_of(model, graph).items():
        able[graph.scales[layer][values != 0]] = False
    if not able.any():
        return able
    listener = _Listener(model)
    with evaluating(model), listener:
        model(_noise(inputs))
    calls = Counter(cost.weight for cost in graph.costs)
    for cost in graph.costs:
        if cost.in_ is None or cost.inputs is None:
            continue  # one channel a group: its output belongs to the same atom
        heard = listener.heard.get(cost.weight or "")
        if heard is None or heard.calls != calls[cost.weight]:
            able[cost.inputs] = False
        else:
            able[cost.inputs[~heard.exact()]] = False
    return able


@dataclass
class _Heard:
    """The extremes (I,) that one weight read of each input channel, over all its calls."""

    low: Tensor
    high: Tensor
    takes_constants: bool
    calls: int = 1

    def exact(self) -> NDArray[np.bool_]:
        """Say of which channels the loss can be made up for exactly: (I,) bool."""
        size = torch.maximum(self.low.abs(), self.high.abs())
        fine = size == 0
        if self.takes_constants:
            fine |= self.high - self.low <= ROUNDING * size
        return fine.numpy(force=True)

    def merged(self, other: _Heard) -> _Heard:
        """Take another call of the same weight."""
        return _Heard(
            torch.minimum(self.low, other.low),
            torch.maximum(self.high, other.high),
            self.takes_constants and other.takes_constants,
            self.calls + other.calls,
        )


class _Listener(ProductListener):
    """Hears what convolutions and linear layers read."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__({id(each): name for name, each in model.named_parameters()})
        self._model = model
        self.heard: dict[str, _Heard] = {}

    def hear(self, product: Product) -> None:
        """Note the extremes of what a weight reads."""
        named, name = product.named, product.name
        rows = rows_of(named["input"], 1 - named["weight"].dim())
        is_unpadded = product.func in FORWARD and _is_unpadded(named.get("padding", 0))
        is_layer = isinstance(owner_of(self._model, name), LAYERS)
        heard = _Heard(rows.amin(0), rows.amax(0), is_unpadded and is_layer)
        before = self.heard.get(name)
        self.heard[name] = heard if before is None else before.merged(heard)


def _is_unpadded(padding: Any) -> bool:
    if isinstance(padding, str):
        return padding == "valid"
    return not np.any(padding)


def _noise(inputs: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (len(LOUDNESS), *inputs.shape[1:])
    loudness = torch.tensor(LOUDNESS).view(-1, *[1] * (inputs.dim() - 1))
    return (torch.randn(shape, generator=generator) * loudness).to(inputs)
