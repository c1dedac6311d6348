"""The gap between training and inference: what a norm layer of the batch does differently.

While a network trains, such a layer normalizes with the moments of the batch; afterwards with its
running ones. Two reasons make them differ: a batch is a small sample, and the data may not be those
that the running moments were taken on (Singh & Shrivastava 2019; Schneider et al. 2020).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..engine.device import evaluating
from ..errors import InputError
from ..models.outputs import logits_of
from ..norm.convert.sites import find_sites
from ..norm.population.algebra import distance, merge
from ..norm.population.batch_moments import batch_moments
from ..norm.population.listening import listening
from ..norm.population.measuring import measure
from ..norm.population.statistics import Population, population_layers
from ..norm.population.tally import Tally
from .hooks import Batch, Progress, as_in_training
from .stochasticity import batch_layers

_PLAIN = ("BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "BatchNormAct2d")
"""Classes, of torch and timm, that normalize as `measure` does in their place."""


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
    parts = []
    for x, _ in batches:
        parts.append(measure(model, [x]))
        if progress is not None:
            progress()
    return _compare(Population.of(model), parts)


class BatchMoments:
    """The moments of batches that run through a model, as in training, for another analysis.

    For a model that `shares_a_pass`: in one of its own `gap` finds the same, to the rounding of the
    moments that torch itself trains with.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._batches: list[tuple[int, Tally]] = []

    @contextmanager
    def over(self, batches: Iterable[Batch]) -> Iterator[Iterator[Batch]]:
        """Hear the norm layers while these batches, as they are given back, go through."""
        with listening(population_layers(self._model), self._hear):
            yield self._counted(batches)

    def rows(self) -> tuple[Gap, ...]:
        """Return what `gap` does.

        Raises:
            InputError: activations were not finite.
        """
        own, parts = Population.of(self._model), []
        for samples, tally in self._batches:
            tally.close()
            parts.append(Population(tally.result(), own.fingerprint, samples))
        return _compare(own, parts)

    def _counted(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        for x, labels in batches:
            self._batches.append((len(x), Tally()))
            yield x, labels

    def _hear(self, layer: str, x: Tensor) -> None:
        self._batches[-1][1].add(layer, batch_moments(x.detach()))


def shares_a_pass(model: nn.Module) -> bool:
    """Return whether all layers with running statistics train with the moments of the batch."""
    found = [site for site in find_sites(model) if "running_mean" in site.module._buffers]
    return bool(found) and all(
        site.norm == "batch" and not site.is_frozen and type(site.module).__name__ in _PLAIN
        for site in found
    )


def output_gap(model: nn.Module, batch: Batch, trained: Tensor | None = None) -> OutputGap:
    """Compare the logits of one batch as in training with those as in inference.

    Args:
        model: comes back as it was.
        batch: inputs; labels do not count.
        trained: the logits as in training, where they are known.

    Raises:
        InputError: the model returns no logits.
    """
    x, _ = batch
    with evaluating(model):
        inferred = logits_of(model(x)).double()
        if trained is None:
            with as_in_training(model):
                trained = logits_of(model(x))
    agreement = (trained.argmax(1) == inferred.argmax(1)).double().mean()
    change = (trained.double() - inferred).norm() / inferred.norm()
    return OutputGap(float(change), float(agreement))


def _compare(own: Population, batches: Sequence[Population]) -> tuple[Gap, ...]:
    """Compare what was measured of each batch with the running moments."""
    apart = [distance(_among(own, found), found) for found in batches]
    whole = merge(batches)
    together = distance(_among(own, whole), whole)
    return tuple(
        _row(name, [each[name] for each in apart if name in each], together[name])
        for name in whole.layers
    )


def _among(own: Population, found: Population) -> Population:
    """The running moments of those layers that were reached."""
    return Population({name: own.layers[name] for name in found.layers}, own.fingerprint)


def _row(layer: str, batches: list[Tensor], data: Tensor) -> Gap:
    channel = int(data.argmax())
    batch = float(torch.stack(batches).mean())
    return Gap(layer, len(data), batch, float(data.mean()), float(data[channel]), channel)
