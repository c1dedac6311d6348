"""Measuring a population: forward passes that are listened to, in a model that stays as it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ...allocator import freed_memory_kept
from ...errors import InputError, unknown
from ..layers.l1 import L1BatchNorm
from ..moments import Moments
from ..partition import BATCH, Partition
from .agreement import agreeing
from .batch_moments import batch_moments
from .feeding import Feed
from .fingerprint import Fingerprint
from .listening import Borrowed, Source, inference, listening
from .statistics import (
    Population,
    digest,
    partition_of,
    population_layers,
    stored,
    stored_moments,
)
from .tally import Tally, join

MODES = ("one-pass", "layerwise", "fixed")

Then = Callable[[str, Tensor, Moments], None]
"""What is done with a layer's name, its input (N, C, *S) and the moments of that."""


def measure(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    mode: str = "one-pass",
    sync: bool = False,
    group: Any = None,
    limit: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> Population:
    """Measure the statistics of all norm layers of a model over a data set.

    The model is in inference mode but for the statistics, without gradient, and comes back as it
    was to the bit, flags and hooks included, whatever happens. Every layer's pooled mean and
    biased variance over all batches and calls are exact: a batch counts by its size, and the
    variance between the batches' means is part of the whole. A batch is measured in float32 or
    better, also under autocast and in half-precision models, and batches are pooled in float64.

    Args:
        model: called as `model(x)`.
        loader: batches: a tensor (N, ...), a tuple or list whose first element is one, or a
            mapping with 'image' or 'pixel_values'. They go to the model's device and, floating
            ones, to its dtype; on a CPU those for a convolutional network also to channels_last,
            if it can take that: there it is the faster one, and changes no more than rounding.
            There, too, memory that one batch frees is kept for the next until the end (glibc).
        mode: what the layers normalize with while they are measured:

            - `one-pass`: each batch with its own statistics, as in training, frozen layers too:
              AdaBN as it is commonly done. The batches matter: give large, mixed ones. Where a
              batch has one value a channel, as a last one of one input behind a global pooling,
              the layer normalizes it with what this process measured before.
            - `layerwise`: layer by layer in order of execution, all earlier ones with what was
              measured for them: exact, and mode `fixed` finds the same again once it is
              applied. Reads the loader once a layer, each time through half of the network on
              average, so samples and augmentations must repeat themselves. A layer that is
              called several times has the model's own statistics while it is measured.
            - `fixed`: every layer with the model's own statistics, whatever the batches. Shards
              that were measured apart merge exactly.
        sync: merge over the processes of `group`, each of which reads its part of the data, be it
            none: in one-pass and fixed mode at the end, layerwise after each layer. One-pass so
            equals one process that reads the same batches. An error in one process is raised
            in all of them.
        group: a `torch.distributed` process group; all processes without it.
        limit: at most so many inputs, in each process; the last batch is cut.
        progress: called after each batch with its number of inputs; empty batches are skipped.

    Returns:
        A population on the CPU; layers that no batch came to are in its `unreached`.

    Raises:
        InputError: the model has no population layer, or none is reached; an unknown mode; a
            loader that is empty or, layerwise, gone after one pass; a batch without a tensor;
            and, naming the layer: fewer than two values a channel, activations not finite, or
            statistics too large for the dtype of the layer's own; with `sync`, an error in another
            process.
    """
    if mode not in MODES:
        raise unknown("mode", mode, MODES)
    layers = population_layers(model)
    source = Source(model, loader, limit, progress)
    listener = _Listener(model, layers, source, group if sync else _ALONE)
    with torch.no_grad(), inference(model), _memory(source.device):
        if mode == "layerwise":
            found = listener.layer_by_layer()
        else:
            found = listener.at_once(batchwise=mode == "one-pass")
    based_on = digest(layers) if mode == "fixed" else None
    return replace(listener.population(found), mode=mode, based_on=based_on)


_ALONE = object()
"""In place of a process group: nothing is merged."""


class _Listener:
    """Runs a model over a source and listens to the inputs of its population layers."""

    def __init__(
        self, model: nn.Module, layers: dict[str, nn.Module], source: Source, group: Any
    ) -> None:
        self.model, self.layers, self.source, self.group = model, layers, source, group
        self.feed = Feed(model)
        self.tally = Tally()

    def at_once(self, batchwise: bool) -> dict[str, Moments]:
        """Measure all layers in one pass, normalizing each batch by itself if `batchwise`."""
        if not batchwise:
            return self.hear(self.layers, _stay)
        with Borrowed(self.layers) as borrowed:

            def normalize(name: str, x: Tensor, moments: Moments) -> None:
                usable = self.so_far(name) if x.numel() < 2 * x.shape[1] else moments
                spread = usable.var.flatten() if usable.cov is None else usable.cov
                borrowed.write(name, usable.mean.flatten(), spread)

            return self.hear(self.layers, normalize)

    def layer_by_layer(self) -> dict[str, Moments]:
        """Measure one layer a pass in the order in which they are called."""
        with self.agreeing():
            if iter(self.source.loader) is self.source.loader:
                raise InputError(
                    "layerwise measuring reads the loader once a layer, and this one is gone after"
                    " one pass: give a list or a DataLoader"
                )
        found: dict[str, Moments] = {}
        order = self.order()  # with the model's own statistics
        with Borrowed(self.layers) as borrowed:
            for name, is_called_once in order.items():
                found |= self.hear([name], _leave if is_called_once else _stay)
                if name in found:
                    borrowed.write(name, *stored(found[name]))
        return found

    def hear(self, names: Iterable[str], then: Then) -> dict[str, Moments]:
        """Measure some layers in one pass, over all processes; float64 on the CPU."""
        tally, layers = Tally(), {name: self.layers[name] for name in names}
        self.tally = tally
        partitions = {name: partition_of(layer) for name, layer in layers.items()}

        def hear(name: str, x: Tensor) -> None:
            moments = _measure(layers[name], partitions[name], x)
            tally.add(name, moments)
            then(name, x, moments)

        with self.agreeing(), listening(layers, hear):
            for x in self.source:
                self.forward(x, tally.forget)
                tally.close()
        return self.join(tally.result(), {name: _nothing(layer) for name, layer in layers.items()})

    def order(self) -> dict[str, bool]:
        """Return the layers that the first batch comes to, in that order: are they called once."""
        calls: list[str] = []
        with self.agreeing(), listening(self.layers, lambda name, x: calls.append(name)):
            for x in self.source:
                self.forward(x, calls.clear)
                break
        # as moments, so that a process without a batch learns the order from the others
        known = {name: _note(1, calls.index(name), calls.count(name)) for name in set(calls)}
        known = self.join(known, dict.fromkeys(self.layers, _note(0, 0, 0)))
        ordered = sorted(known, key=lambda name: float(known[name].mean[0, 0]))
        return {name: float(known[name].mean[0, 1]) == 1 for name in ordered}

    def forward(self, x: Tensor, forget: Callable[[], object]) -> None:
        """Run the model as far as needed; `forget` what was heard of a run that is begun anew."""
        with suppress(_Reached):
            self.feed(x, forget)

    def so_far(self, name: str) -> Moments:
        """Return what the earlier batches gave for a layer in which this one has one value.

        Raises:
            InputError: there are none.
        """
        earlier = self.tally.result().get(name)
        if earlier is None or float(earlier.count[0]) < 2:
            raise InputError(
                f"layer '{name}': the first batch, of one input{self.source.cut}, gives one value a"
                " channel, and a variance needs two: give a larger batch first, or mode='fixed'"
            )
        return earlier

    def agreeing(self) -> AbstractContextManager[None]:
        """Raise an error of one process in all of them, where several measure together."""
        if self.group is _ALONE:
            return nullcontext()
        return agreeing(self.source.device, self.group)

    def join(self, found: dict[str, Moments], like: dict[str, Moments]) -> dict[str, Moments]:
        """Merge over the processes, if that is asked for."""
        if self.group is _ALONE:
            return found
        return join(found, like, self.source.device, self.group)

    def population(self, found: dict[str, Moments]) -> Population:
        """Check what was found and make it a population in the order of the model.

        Raises:
            InputError: nothing was read or reached, or a layer saw too little.
        """
        inputs = self.join({"": _note(self.source.samples, 0, 0)}, {"": _note(0, 0, 0)})
        samples = int(inputs[""].count) if inputs else 0
        if samples == 0:
            raise InputError("the loader gave no inputs: there is nothing to measure")
        if not found:
            raise InputError(
                f"the forward pass of {type(self.model).__name__} comes to none of its"
                f" {len(self.layers)} layers with running statistics: measure the model itself,"
                " not a compiled or fused copy"
            )
        layers = {}
        for name in self.layers:
            if name in found:
                if found[name].count[0] < 2:
                    raise InputError(
                        f"layer '{name}': all inputs together{self.source.cut} give one value a"
                        " channel, and a variance needs two: give more inputs"
                    )
                layers[name] = found[name]
        unreached = tuple(name for name in self.layers if name not in layers)
        return Population(layers, Fingerprint.of(self.model), samples, unreached)


def _memory(device: torch.device) -> AbstractContextManager[None]:
    """Keep what one batch frees for the next, on a CPU."""
    return freed_memory_kept() if device.type == "cpu" else nullcontext()


class _Reached(BaseException):
    """The layer in question has been heard: the rest of the forward pass is not needed.

    Not an `Exception`, which a model may catch.
    """


def _leave(name: str, x: Tensor, moments: Moments) -> None:
    raise _Reached


def _stay(name: str, x: Tensor, moments: Moments) -> None:
    """Let the forward pass go on."""


def _measure(layer: nn.Module, partition: Partition, x: Tensor) -> Moments:
    if isinstance(layer, L1BatchNorm):  # what it divides by is not the deviation
        return layer.measure(x, partition)
    return batch_moments(x) if partition == BATCH else Moments.of(x, partition, full=True)


def _nothing(layer: nn.Module) -> Moments:
    """Moments of no value, in the shape of a layer's."""
    own = stored_moments(layer).to(torch.float64)
    cov = None if own.cov is None else torch.zeros_like(own.cov)
    mean = torch.zeros_like(own.mean)
    return Moments(torch.zeros_like(own.count), mean, mean, cov, own.partition)


def _note(count: int, *values: int) -> Moments:
    mean = torch.tensor([values], dtype=torch.float64)
    return Moments(mean.new_full((1,), count), mean, torch.zeros_like(mean), None, BATCH)
