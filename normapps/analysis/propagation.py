"""Propagation: how large activations and gradients are from layer to layer.

The forward and backward view of initialization and normalization (Glorot & Bengio 2010; He et al.
2015): where either grows or shrinks layer by layer, the deep layers learn at another rate than the
first, or not at all.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from .hooks import Batch, Progress, kind_of, watch

_CHUNK = 1 << 21
"""Values that are made float64 at a time."""


@dataclass(frozen=True)
class Propagation:
    """Sizes at a layer.

    Attributes:
        layer: its name.
        kind: in words.
        input, output: root mean square of the values that it reads and that it makes.
        norm: ‖output‖ of a sample, root mean square over the samples.
        gradient: ‖∂loss/∂output‖ of a sample with respect to its own loss, likewise; NaN where no
            gradient arrives.
    """

    layer: str
    kind: str
    input: float
    output: float
    norm: float
    gradient: float


def propagation(
    model: nn.Module, batches: Iterable[Batch], progress: Progress | None = None
) -> tuple[Propagation, ...]:
    """Measure activations and gradients of every convolution and linear layer, as they follow.

    Args:
        model: a classifier; it comes back as it was. Its norm layers work as in training.
        batches: inputs and labels.

    Raises:
        InputError: the model returns no logits, or the loss is not finite.
    """
    observer = Sizes()
    watch(model, batches, [observer], progress)
    return observer.rows()


class Sizes:
    """Observes the sums of squares of what layers read and make, and of their gradients."""

    def __init__(self) -> None:
        self._samples = 0
        self._layers: dict[str, _Squares] = {}

    def begin(self, samples: int) -> None:
        """Count the samples of a batch."""
        self._samples += samples

    def forward(self, layer: str, module: nn.Module, x: Tensor, y: Tensor) -> None:
        """Count what a layer reads and makes."""
        found = self._layers.setdefault(layer, _Squares(kind_of(module)))
        for name, tensor in (("input", x), ("output", y)):
            found.add(name, tensor)

    def backward(self, layer: str, module: nn.Module, gradient: Tensor) -> None:
        """Count the gradient at a layer's output."""
        self._layers[layer].add("gradient", gradient)

    def rows(self) -> tuple[Propagation, ...]:
        """Return what was found, in the order of the first calls."""
        return tuple(self._row(name, found) for name, found in self._layers.items())

    def _row(self, layer: str, found: _Squares) -> Propagation:
        def norm(name: str) -> float:
            return math.sqrt(found.sums[name] / self._samples) if name in found.sums else math.nan

        read, made = (math.sqrt(found.sums[key] / found.counts[key]) for key in ("input", "output"))
        return Propagation(layer, found.kind, read, made, norm("output"), norm("gradient"))


@dataclass
class _Squares:
    kind: str
    sums: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    @torch.no_grad()
    def add(self, name: str, x: Tensor) -> None:
        wide = torch.float32 if x.device.type == "mps" else torch.float64
        each = max(1, _CHUNK // max(1, x[0].numel()))
        norms = [torch.linalg.vector_norm(part, dtype=wide) for part in x.split(each)]
        square = float(torch.stack(norms).square().sum())
        self.sums[name] = self.sums.get(name, 0.0) + square
        self.counts[name] = self.counts.get(name, 0) + x.numel()
