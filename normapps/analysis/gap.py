"""The gap between training and inference: what a norm layer of the batch does differently.

While a network trains, such a layer normalizes with the moments of the batch; afterwards with its
running ones. Two reasons make them differ: a batch is a small sample, and the data may not be those
that the running moments were taken on (Singh & Shrivastava 2019; Schneider et al. 2020).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..engine.device import evaluating
from ..errors import InputError
from ..models.outputs import logits_of
from ..norm.population.algebra import distance, merge
from ..norm.population.measuring import measure
from ..norm.population.statistics import Population
from .hooks import Batch, Progress, as_in_training
from .stochasticity import batch_layers


@dataclass(frozen=True)
class Gap:
    """How far a layer's moments are from its running ones: symmetric KL divergence in nats.

    Attributes:
        layer: its name.
        channels: their number.
        batch: of the moments of one batch, mean over channels and batches.
        data: of the moments of all batches together, mean over the channels.
        worst: of all batches together, the channel that differs most.
        channel: which one.
    """

    layer: str
    channels: int
    batch: float
    data: float
    worst: float
    channel: int


@dataclass(frozen=True)
class OutputGap:
    """How far the logits of one batch are apart with either moments.

    Attributes:
        change: ‖F_train − F_inference‖/‖F_inference‖.
        agreement: share of the inputs for which both prefer the same class.
    """

    change: float
    agreement: float


def gap(
    model: nn.Module, batches: Iterable[Batch], progress: Progress | None = None
) -> tuple[Gap, ...]:
    """Compare the moments of batches with the running ones, layer by layer.

    Args:
        model: has layers with running statistics; it comes back as it was.
        batches: inputs; labels do not count.

    Raises:
        InputError: no layer takes statistics of the batch and keeps running ones, or activations
            are not finite.
    """
    if not batch_layers(model):
        raise InputError("no norm layer takes statistics of the batch: training equals inference")
    own = Population.of(model)
    parts, apart = [], []
    for x, _ in batches:
        found = measure(model, [x])
        parts.append(found)
        apart.append(distance(_among(own, found), found))
        if progress is not None:
            progress()
    whole = merge(parts)
    together = distance(_among(own, whole), whole)
    return tuple(
        _row(name, [each[name] for each in apart if name in each], together[name])
        for name in whole.layers
    )


def output_gap(model: nn.Module, batch: Batch) -> OutputGap:
    """Compare the logits of one batch as in training with those as in inference.

    Raises:
        InputError: the model returns no logits.
    """
    x, _ = batch
    with evaluating(model):
        inferred = logits_of(model(x)).double()
        with as_in_training(model):
            trained = logits_of(model(x)).double()
    agreement = (trained.argmax(1) == inferred.argmax(1)).double().mean()
    return OutputGap(float((trained - inferred).norm() / inferred.norm()), float(agreement))


def _among(own: Population, found: Population) -> Population:
    """The running moments of those layers that were reached."""
    return Population({name: own.layers[name] for name in found.layers}, own.fingerprint)


def _row(layer: str, batches: list[Tensor], data: Tensor) -> Gap:
    channel = int(data.argmax())
    batch = float(torch.stack(batches).mean())
    return Gap(layer, len(data), batch, float(data.mean()), float(data[channel]), channel)
