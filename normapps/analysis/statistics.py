"""Statistics of pictures in a model, and the layers in which they differ most from its own."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor, nn

from ..data.pictures import Batches, Pictures, batches
from ..engine.device import place, resolve_device, resolve_dtype
from ..files import check_writable
from ..models.load import open_by
from ..models.options import preprocessing_of
from ..models.trying import try_out
from ..norm.population.algebra import distance
from ..norm.population.measuring import measure
from ..norm.population.statistics import Population, population_layers
from .options import StatsOptions

Progress = Callable[[int, int], object]
"""Called with the batches done and their number in all."""


@dataclass(frozen=True)
class Shift:
    """How far the data's statistics in one layer are from the model's own.

    Attributes:
        layer: its name in the model.
        channels: their number.
        mean, worst: symmetric KL divergence in nats, over the channels.
        channel: the worst one.
    """

    layer: str
    channels: int
    mean: float
    worst: float
    channel: int


@dataclass(frozen=True)
class StatsReport:
    """What `measure_statistics` found.

    Attributes:
        model: in words: name and weights.
        preprocessing: in words.
        pictures: number measured.
        failed: a line for each picture that could not be read.
        unreached: layers that no picture came to.
        shifts: one a layer, the largest mean first.
    """

    model: str
    preprocessing: str
    pictures: int
    failed: tuple[str, ...]
    unreached: tuple[str, ...]
    shifts: tuple[Shift, ...]


def measure_statistics(
    spec: str,
    pictures: str,
    out: str | os.PathLike[str],
    options: StatsOptions,
    say: Callable[[str], object] = print,
    progress: Progress | None = None,
) -> StatsReport:
    """Measure the statistics of pictures in a model and save them as a population.

    Args:
        spec: the model, as `open_model` takes it.
        pictures: folder, tar, ZIP, text list or picture.
        out: safetensors file to write.
        options: mode, batch size, limit, shard, device.
        say: told what was opened and what the pictures go through, a line each.
        progress: told of every batch.

    Raises:
        InputError: a model, pictures or file that cannot be used; nothing is written then.
    """
    check_writable(out, options.overwrite)
    device = resolve_device(options.device)
    opened = open_by(spec, options)
    preprocessing = preprocessing_of(opened, options)
    say(opened.describe())
    say(preprocessing.describe())
    own = Population.of(opened.model)
    dtype = resolve_dtype(options.dtype, device)
    model = place(opened.model, device, dtype)
    try_out(model, preprocessing, opened.name)
    chosen = Pictures(pictures, preprocessing, limit=options.limit)
    # mixed, because the classes of a folder follow each other and a batch should see many
    loader = batches(
        chosen,
        options.batch_size,
        device=device,
        dtype=dtype,
        seed=options.seed,
        shard=options.part,
    )
    found = measure(
        model, loader, mode=options.mode, progress=_counter(model, loader, options.mode, progress)
    )
    found = replace(found, fingerprint=own.fingerprint)
    found.save(out, overwrite=options.overwrite)
    return StatsReport(
        opened.describe(),
        preprocessing.describe(),
        found.samples or 0,
        loader.failed,
        found.unreached,
        shifts(own, found),
    )


def shifts(own: Population, found: Population) -> tuple[Shift, ...]:
    """Compare two populations of one model layer by layer, the largest difference first."""
    reached = {name: own.layers[name] for name in found.layers}
    values = distance(Population(reached, own.fingerprint), found)
    return tuple(sorted((_shift(*item) for item in values.items()), key=lambda each: -each.mean))


def _shift(layer: str, divergence: Tensor) -> Shift:
    worst = int(divergence.argmax())
    return Shift(layer, len(divergence), float(divergence.mean()), float(divergence[worst]), worst)


def _counter(
    model: nn.Module, loader: Batches, mode: str, progress: Progress | None
) -> Callable[[int], object] | None:
    if progress is None:
        return None
    total = len(loader) * (len(population_layers(model)) if mode == "layerwise" else 1)
    done = 0

    def count(_: int) -> None:
        nonlocal done
        done += 1
        progress(done, total)

    return count
