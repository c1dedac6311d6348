"""Stochasticity: how much the output for one picture depends on the others in its batch.

Huang et al. 2020, "An Investigation into the Stochasticity of Batch Whitening". The stochastic
normalization disturbance Δ(x) = meanᵢ ‖F(Xᵢ; x) − meanⱼ F(Xⱼ; x)‖ of random batches Xᵢ that contain
x. Differs from the paper: beside Δ its share of the output's own size, which layers can be
compared by.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..models.outputs import logits_of
from ..norm.convert.sites import find_sites
from .hooks import as_in_training

OUTPUT = "the model's output"

_KEPT = 1 << 14
"""Values of a layer's output that are looked at, evenly spread over it."""


class Drawable(Protocol):
    """Pictures that batches are drawn from."""

    def __len__(self) -> int:
        """Return their number."""

    def __getitem__(self, index: int) -> Tensor:
        """Return one, (C, H, W)."""


@dataclass(frozen=True)
class Stochasticity:
    """The disturbance at one place for one size of batches.

    Attributes:
        layer: a norm layer, or `OUTPUT`.
        batch_size: B, pictures a batch.
        disturbance: Δ, a mean over the pictures x. Of a layer that makes more than 16384 values of
            a picture, it is over as many of them, evenly spread.
        share: mean over the pictures of Δ/‖mean output‖.
    """

    layer: str
    batch_size: int
    disturbance: float
    share: float


def disturbance(outputs: Tensor) -> tuple[float, float]:
    """Return Δ of the outputs (R, ...) for one input in R random batches, and Δ/‖their mean‖."""
    values = outputs.flatten(1).double()
    mean = values.mean(0)
    delta = float((values - mean).norm(dim=1).mean())
    size = float(mean.norm())
    return delta, delta / size if size else 0.0


def batch_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the norm layers that take statistics of the batch while they train, by name."""
    return {
        site.names[0]: site.module
        for site in find_sites(model)
        if not site.is_frozen and ("batch" in site.kinds or "running_mean" in site.module._buffers)
    }


def stochasticity(
    model: nn.Module,
    pictures: Drawable | Tensor,
    batch_sizes: Sequence[int] = (2, 4, 8, 16, 32),
    *,
    draws: int = 8,
    inputs: int = 2,
    seed: int = 0,
    progress: Callable[[], object] | None = None,
) -> tuple[Stochasticity, ...]:
    """Measure the disturbance of the output and of every norm layer of the batch.

    Args:
        model: returns logits; it comes back as it was.
        pictures: (N, C, H, W) inputs, or what gives them out one by one, to draw batches from.
        batch_sizes: B of the batches, from 2 to N.
        draws: R, batches for each input and size. The mean of R outputs is nearer to each of them
            than the true mean: Δ is low by about 1/(2R) of itself.
        inputs: how many pictures are x in turn, the first ones.
        seed: of the draws.
        progress: called after each input and size of batches.

    Returns:
        For each size the model's output, then the layers in the order of the model.

    Raises:
        InputError: no layer takes statistics of the batch, or a size does not fit the pictures.
    """
    layers = batch_layers(model)
    if not layers:
        raise InputError("no norm layer takes statistics of the batch: nothing is stochastic")
    for size in batch_sizes:
        if not 2 <= size <= len(pictures):
            raise InputError(f"batches of {size}: must be of 2 to {len(pictures)} pictures")
    generator = torch.Generator().manual_seed(seed)
    rows: list[Stochasticity] = []
    with torch.no_grad(), as_in_training(model), _noting(layers) as noted:
        for size in batch_sizes:
            found: dict[str, list[tuple[float, float]]] = {}
            for index in range(min(inputs, len(pictures))):
                for _ in range(draws):
                    chosen = _drawn(len(pictures), index, size, generator)
                    x = torch.stack([pictures[i] for i in chosen])
                    noted.setdefault(OUTPUT, []).append(logits_of(model(x))[0].clone())
                for name, outputs in noted.items():
                    found.setdefault(name, []).append(disturbance(torch.stack(outputs)))
                noted.clear()
                if progress is not None:
                    progress()
            rows += _rows(found, size, [OUTPUT, *layers])
    return tuple(rows)


def _drawn(count: int, index: int, size: int, generator: torch.Generator) -> list[int]:
    """The picture itself, first, and others by chance."""
    order = torch.randperm(count, generator=generator).tolist()
    return [index, *(other for other in order if other != index)][:size]


def _rows(
    found: dict[str, list[tuple[float, float]]], size: int, names: Sequence[str]
) -> list[Stochasticity]:
    means = {
        name: [sum(values) / len(values) for values in zip(*found[name], strict=True)]
        for name in names
        if name in found
    }
    return [Stochasticity(name, size, delta, share) for name, (delta, share) in means.items()]


@contextmanager
def _noting(layers: dict[str, nn.Module]) -> Iterator[dict[str, list[Tensor]]]:
    """Note what layers make of the first input of each batch."""
    noted: dict[str, list[Tensor]] = {}

    def note(name: str) -> Callable[[nn.Module, object, Tensor], None]:
        def hook(_: nn.Module, __: object, y: Tensor) -> None:
            values = y[0].flatten()
            noted.setdefault(name, []).append(values[:: -(-len(values) // _KEPT)].clone())

        return hook

    handles = [layer.register_forward_hook(note(name)) for name, layer in layers.items()]
    try:
        yield noted
    finally:
        for handle in handles:
            handle.remove()
