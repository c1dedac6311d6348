"""Layer-wise conditioning: how round the inputs and the output gradients of each layer are.

Huang et al. 2020, "Layer-wise Conditioning Analysis in Exploring the Learning Dynamics of DNNs".
A layer's block of the Fisher matrix is nearly Σx ⊗ Σg, of the uncentred second moments of what it
reads and of the gradient that comes back to it, and its condition number κ(Σx)·κ(Σg).
Differs from the paper's code: sums in float64, the rank beside κ, pixels as samples.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..engine.threads import one_thread
from .hooks import Batch, Progress, kind_of, rows_of, watch

PERCENT = (50, 80, 100)
"""The p of κ_p: how many of the eigenvalues, the largest first, it takes."""

WIDEST = 4096
"""Channels of the widest layer that has its eigenvalues computed."""

_CHUNK = 1 << 21
"""Values that are made float64 at a time."""


@dataclass(frozen=True)
class Spectrum:
    """Eigenvalues of a second moment E[xxᵀ] in short.

    Attributes:
        dimensions: d, their number.
        samples: vectors behind it.
        rank: eigenvalues that are more than the rounding of the network's own dtype.
        largest: λ₁.
        kappa: λ₁/λ_⌈pd⌉ for each p of `PERCENT`; inf where ⌈pd⌉ is more than the rank.
    """

    dimensions: int
    samples: int
    rank: int
    largest: float
    kappa: tuple[float, ...]


@dataclass(frozen=True)
class Conditioning:
    """A layer's conditioning.

    Attributes:
        layer: its name.
        kind: in words.
        input: of what it reads; None where it is wider than `WIDEST`.
        gradient: of the gradient at its output, a sample's own; None also where none arrives.
    """

    layer: str
    kind: str
    input: Spectrum | None
    gradient: Spectrum | None

    def fisher(self, number: int = 1) -> float:
        """Return κ_p(Σx)·κ_p(Σg), the condition number of the layer's block of the Fisher matrix.

        Args:
            number: of p in `PERCENT`.

        Returns:
            NaN where one of the two is not known.
        """
        if self.input is None or self.gradient is None:
            return math.nan
        return self.input.kappa[number] * self.gradient.kappa[number]


def conditioning(
    model: nn.Module, batches: Iterable[Batch], progress: Progress | None = None
) -> tuple[Conditioning, ...]:
    """Measure the conditioning of every convolution and linear layer, in the order of execution.

    Args:
        model: a classifier; it comes back as it was. Its norm layers work as in training.
        batches: inputs and labels.

    Raises:
        InputError: the model returns no logits, or the loss is not finite.
    """
    observer = Covariances()
    watch(model, batches, [observer], progress)
    return observer.rows()


class Covariances:
    """Observes the second moments of what layers read and of their gradients."""

    def __init__(self) -> None:
        self._kinds: dict[str, str] = {}
        self._inputs: dict[str, _Sum] = {}
        self._gradients: dict[str, _Sum] = {}

    def begin(self, samples: int) -> None:
        """Nothing: every position is a sample of its own."""

    def forward(self, layer: str, module: nn.Module, x: Tensor, y: Tensor) -> None:
        """Count what a layer reads."""
        self._kinds.setdefault(layer, kind_of(module))
        self._inputs.setdefault(layer, _Sum()).add(rows_of(x, module))

    def backward(self, layer: str, module: nn.Module, gradient: Tensor) -> None:
        """Count the gradient at a layer's output."""
        self._gradients.setdefault(layer, _Sum()).add(rows_of(gradient, module))

    def rows(self) -> tuple[Conditioning, ...]:
        """Return what was found, in the order of the first calls."""
        empty = _Sum()
        return tuple(
            Conditioning(
                layer,
                kind,
                self._inputs[layer].spectrum(),
                self._gradients.get(layer, empty).spectrum(),
            )
            for layer, kind in self._kinds.items()
        )


def spectrum(moment: Tensor, samples: int, rounding: float) -> Spectrum:
    """Say what the eigenvalues of a second moment are.

    Args:
        moment: (D, D) float64, symmetric.
        samples: vectors behind it.
        rounding: relative error of the vectors, such as 1.2e-7 of float32. Eigenvalues below
            D·rounding²·λ₁, and below what float64 itself resolves, count as 0.
    """
    with one_thread():  # of many tiny steps, in which threads wait where a core is taken
        values = torch.linalg.eigvalsh(moment).flip(0).tolist()
    width, largest = len(values), max(values[0], 0.0)
    least = largest * width * max(rounding**2, torch.finfo(torch.float64).eps)
    rank = min(samples, sum(value > least for value in values))
    places = [-(-percent * width // 100) for percent in PERCENT]
    kappa = tuple(largest / values[i - 1] if i <= rank else math.inf for i in places)
    return Spectrum(width, samples, rank, largest, kappa)


class _Sum:
    """Σ xxᵀ in float64."""

    def __init__(self) -> None:
        self._sum: Tensor | None = None
        self._samples, self._rounding, self._is_wide = 0, 0.0, False

    @torch.no_grad()
    def add(self, rows: Tensor) -> None:
        """Count (M, D) vectors."""
        width = rows.shape[1]
        self._is_wide |= width > WIDEST
        if self._is_wide:
            return
        self._samples += len(rows)
        self._rounding = max(self._rounding, torch.finfo(rows.dtype).eps)
        device = "cpu" if rows.device.type == "mps" else rows.device  # Metal has no float64
        if self._sum is None:
            self._sum = torch.zeros(width, width, dtype=torch.float64, device=device)
        for part in rows.split(max(1, _CHUNK // width)):
            wide = part.to(device).double()
            self._sum.addmm_(wide.T, wide)

    def spectrum(self) -> Spectrum | None:
        """Return the eigenvalues of the mean, None of nothing or of what is too wide."""
        if self._sum is None or self._is_wide:
            return None
        return spectrum(self._sum / self._samples, self._samples, self._rounding)
