"""Following a stream: running statistics that move with each batch before they are used."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import InputError
from ..moments import Moments
from ..partition import BATCH
from .batch_moments import batch_moments
from .fingerprint import Fingerprint
from .listening import Borrowed, Source, inference, listening
from .statistics import Population, partition_of, population_layers, stored_moments


def follow(
    model: nn.Module,
    loader: Iterable[Any],
    momentum: float | None,
    *,
    limit: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> Population:
    """Let running statistics follow a stream, each batch normalized with the updated ones.

    The model comes back as it was, to the bit. Unlike `measure` the order of the batches counts.

    Args:
        model: called as `model(x)`, in inference mode.
        loader: batches, as `measure` takes them.
        momentum: m of running ← (1−m)·running + m·batch with the batch's biased variance (the
            robust batch norm of Yuan et al. 2023), from the model's own statistics on; a layer
            does not move where a batch has one value a channel. None pools all batches by count
            (Chan et al. 1983), without the model's own.
        limit, progress: as `measure`.

    Returns:
        The statistics behind the last batch, on the CPU; pooled ones with counts and samples.
        Layers that no batch came to are in its `unreached`.

    Raises:
        InputError: the model has no population layer, or none is reached; a loader that is empty;
            a batch without a tensor; and, naming the layer: activations not finite, statistics too
            large for the dtype of the layer's own, pooled ones of one value a channel.
    """
    layers = population_layers(model)
    source = Source(model, loader, limit, progress)
    follower = _Follower(layers, momentum)
    with torch.no_grad(), inference(model), Borrowed(layers) as borrowed:
        follower.borrowed = borrowed
        with listening(layers, follower.hear):
            for x in source:
                model(x)
    return follower.population(model, source.samples)


class _Follower:
    """Moments by layer that move with every call."""

    borrowed: Borrowed

    def __init__(self, layers: dict[str, nn.Module], momentum: float | None) -> None:
        self.momentum = momentum
        self.partitions = {name: partition_of(layer) for name, layer in layers.items()}
        self.own = {name: stored_moments(layer) for name, layer in layers.items()}
        self.running: dict[str, Moments] = {}

    def hear(self, name: str, x: Tensor) -> None:
        """Move a layer's statistics by one call and let it normalize with them."""
        partition = self.partitions[name]
        batch = batch_moments(x) if partition == BATCH else Moments.of(x, partition, full=True)
        batch = batch if x.device.type == "mps" else batch.to(torch.float64)  # Metal has none
        moved = self.pooled(name, batch) if self.momentum is None else self.moved(name, batch)
        self.running[name] = moved
        # as a layer normalizes: with the biased variance
        self.borrowed.write(name, moved.mean.flatten(), _spread(moved))

    def pooled(self, name: str, batch: Moments) -> Moments:
        """Return the moments of all calls so far.

        Raises:
            InputError: they are of one value a channel.
        """
        earlier = self.running.get(name)
        whole = batch if earlier is None else earlier.merge(batch)
        if earlier is None and batch.count[0] < 2:
            raise InputError(
                f"layer '{name}': the first batch gives one value a channel, and a variance needs"
                " two: give a larger batch first, or a momentum, or fewer layers"
            )
        return whole

    def moved(self, name: str, batch: Moments) -> Moments:
        """Return the running moments, moved towards a batch's."""
        running = self.running.get(name)
        running = self.own[name].to(batch.mean) if running is None else running
        if batch.count[0] < 2:
            return running
        return _lerp(running, batch, float(self.momentum or 0))

    def population(self, model: nn.Module, samples: int) -> Population:
        """Check what was found and make it a population in the order of the model.

        Raises:
            InputError: nothing was read or reached, or activations are not finite.
        """
        if samples == 0:
            raise InputError("the loader gave no inputs: there is nothing to follow")
        if not self.running:
            raise InputError(
                f"the forward pass of {type(model).__name__} comes to none of its {len(self.own)}"
                " layers with running statistics: follow the model itself, not a compiled copy"
            )
        for name, moments in self.running.items():  # in the order of the calls
            _check_finite(name, moments)
        found = {name: self.running[name].to("cpu") for name in self.own if name in self.running}
        unreached = tuple(name for name in self.own if name not in found)
        known = samples if self.momentum is None else None
        return Population(found, Fingerprint.of(model), known, unreached)


def _lerp(running: Moments, batch: Moments, share: float) -> Moments:
    """(1−share)·running + share·batch, without a count."""
    mean, var = (
        old.lerp(new, share) for old, new in ((running.mean, batch.mean), (running.var, batch.var))
    )
    if running.cov is None or batch.cov is None:
        return replace(running, mean=mean, var=var)
    return replace(running, mean=mean, var=var, cov=running.cov.lerp(batch.cov, share))


def _spread(moments: Moments) -> Tensor:
    return moments.var.flatten() if moments.cov is None else moments.cov


def _check_finite(name: str, moments: Moments) -> None:
    if not bool(torch.isfinite(moments.mean + moments.var).all()):
        raise InputError(
            f"layer '{name}': activations are not finite; look for NaN or infinity in the inputs"
            " and the weights, or for overflow in half precision"
        )
