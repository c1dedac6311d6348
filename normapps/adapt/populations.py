"""Populations from files: mixed with a model's own into a model folder, or merged into one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from ..files import check_writable
from ..models.folder import check_target
from ..models.load import open_by
from ..norm.nesting import detached_copy
from ..norm.population.algebra import distance, layer_means
from ..norm.population.algebra import merge as merge_parts
from ..norm.population.algebra import mix as mix_pair
from ..norm.population.statistics import Population, apply_
from .keeping import POPULATION, as_entry, changes, save_adapted
from .run_options import MixOptions


@dataclass(frozen=True)
class MixReport:
    """What `mix_populations` did.

    Attributes:
        folder: the model folder that was written.
        model: in words.
        samples: pictures behind the populations.
        share: of the model's own statistics in the result, 0 to 1.
        moved: mean distance over the channels of each layer from the model's own statistics, in
            nats, the layer that moved most first.
    """

    folder: Path
    model: str
    samples: int
    share: float
    moved: dict[str, float]


def mix_populations(
    spec: str,
    populations: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    options: MixOptions,
) -> MixReport:
    """Write a model whose statistics are a mixture of its own and of populations from files.

    Several populations count by their pictures, as one data set would; against all of them the
    model's own count as `--prior` samples (Schneider et al. 2020). `adapt undo` takes it back.

    Args:
        spec: the model, as `open_model` takes it.
        populations: files that `norm stats`, `adapt run` or `adapt merge` wrote, measured in it.
        out: model folder to write.
        options: prior and rule.

    Raises:
        InputError: a model, population or folder that cannot be used; nothing is written then.
    """
    check_target(out, options.overwrite)
    loaded = [load_counted(path) for path in populations]
    opened = open_by(spec, options)
    own = Population.of(opened.model)
    target, samples = loaded[0], loaded[0].samples or 0
    for path, each in zip(populations[1:], loaded[1:], strict=True):
        target = _named(path, target, each, samples, None, options.rule)
        samples += each.samples or 0
    mixed = _named(populations[0], own, target, options.prior, samples, options.rule)
    adapted = detached_copy(opened.model)
    apply_(adapted, mixed)
    entry = as_entry("mix", options, populations=[str(path) for path in populations])
    folder = save_adapted(
        out,
        opened,
        changes(opened.model, adapted, opened.model),
        entry,
        overwrite=options.overwrite,
        complete=lambda folder: mixed.save(folder / POPULATION),
    )
    share = options.prior / (options.prior + samples)
    moved = layer_means(distance(own, mixed))
    return MixReport(folder, opened.describe(), samples, share, moved)


def merge_populations(
    parts: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str], overwrite: bool = False
) -> Population:
    """Write the population of several parts of a data set together, and return it.

    Exact for parts that `norm stats --shard i/n` measured, see `normapps.norm.population.merge`.

    Args:
        parts: files, each measured on its own pictures.
        out: safetensors file to write.
        overwrite: replace an existing file.

    Raises:
        InputError: a part that is given twice, cannot be read or does not fit the others; nothing
            is written then.
    """
    check_writable(out, overwrite)
    seen: set[Path] = set()
    for path in parts:
        if (real := Path(path).resolve()) in seen:
            raise InputError(f"{path}: is given twice, and its pictures would count twice")
        seen.add(real)
    loaded = [load_counted(path) for path in parts]
    for path, each in zip(parts[1:], loaded[1:], strict=True):
        try:
            merge_parts([loaded[0], each])
        except InputError as error:
            raise InputError(f"{path}: does not fit {parts[0]}: {error}") from error
    whole = merge_parts(loaded)
    whole.save(out, overwrite=overwrite)
    return whole


def load_counted(path: str | os.PathLike[str]) -> Population:
    """Read a population that knows its number of samples.

    Raises:
        InputError: it cannot be read, or is a mixture.
    """
    found = Population.load(path)
    if found.samples is None:
        raise InputError(
            f"{path}: does not know its number of pictures, as it is a mixture; give what"
            " `norm stats` or `adapt run` measured"
        )
    return found


def _named(
    path: str | os.PathLike[str],
    source: Population,
    target: Population,
    n: float,
    samples: float | None,
    rule: str,
) -> Population:
    """Mix, and name the file in whose population the fault lies."""
    try:
        return mix_pair(source, target, n, samples=samples, rule=rule)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
