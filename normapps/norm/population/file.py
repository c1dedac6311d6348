"""A population as a file: safetensors, with names, counts and the fingerprint as its metadata."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ...errors import InputError
from ...files import atomic_path
from ..moments import Moments
from ..partition import Partition
from .fingerprint import Fingerprint

if TYPE_CHECKING:
    from .statistics import Population

FORMAT = {"format": "normapps-population", "version": "1"}
_TENSORS = ("count", "mean", "var", "cov")


Content = tuple[
    dict[str, Moments], Fingerprint, int | None, tuple[str, ...], str | None, str | None
]
"""Layers, fingerprint, samples, unreached, mode, based_on."""


def write(population: Population, path: str | os.PathLike[str], overwrite: bool) -> None:
    """Write a population's tensors as `<layer>/mean` and so on.

    Raises:
        InputError: the file exists and `overwrite` is False, or cannot be written.
    """
    from safetensors.torch import save_file

    tensors, partitions = {}, []
    for name, moments in population.layers.items():
        partitions.append([name, moments.partition.kind, moments.partition.size])
        for key in _TENSORS:
            if (tensor := getattr(moments, key)) is not None:
                tensors[f"{name}/{key}"] = tensor.detach().cpu().contiguous()
    content = {
        "layers": partitions,
        "samples": population.samples,
        "unreached": population.unreached,
        "fingerprint": population.fingerprint.to_list(),
        "mode": population.mode,
        "based_on": population.based_on,
    }
    with atomic_path(path, overwrite=overwrite) as temporary:
        save_file(tensors, temporary, {**FORMAT, "population": json.dumps(content)})


def read(path: str | os.PathLike[str]) -> Content:
    """Read what `write` wrote: the fields of a population, in their order.

    Raises:
        InputError: missing, damaged, or another kind of file.
    """
    metadata, tensors = _open(path)
    if metadata.get("format") != FORMAT["format"]:
        raise InputError(f"{path}: not a population; `normapps norm stats` writes one")
    if metadata.get("version") != FORMAT["version"]:
        raise InputError(
            f"{path}: a population of version {metadata.get('version')}, this normapps reads"
            f" version {FORMAT['version']}; measure it again or update normapps"
        )
    try:
        return _content(json.loads(metadata["population"]), tensors)
    except (KeyError, TypeError, ValueError) as error:  # InputError is a ValueError
        raise InputError(f"{path}: damaged population; measure it again") from error


def _open(path: str | os.PathLike[str]) -> tuple[dict[str, str], dict[str, Tensor]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            return file.metadata() or {}, tensors
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such population file") from error
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: damaged or not a population; measure it again") from error


def _content(content: dict[str, Any], tensors: dict[str, Tensor]) -> Content:
    layers = {}
    for name, kind, size in content["layers"]:
        count, mean, var = (tensors[f"{name}/{key}"] for key in _TENSORS[:3])
        cov = tensors.get(f"{name}/cov")
        layers[name] = Moments(count, mean, var, cov, Partition(kind, size))
    samples, mode, based_on = (content[key] for key in ("samples", "mode", "based_on"))
    return (
        layers,
        Fingerprint.from_list(content["fingerprint"]),
        None if samples is None else int(samples),
        tuple(content["unreached"]),
        None if mode is None else str(mode),
        None if based_on is None else str(based_on),
    )
