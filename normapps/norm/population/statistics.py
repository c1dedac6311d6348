"""Population: the statistics of a model's norm layers over a whole data set, as a value.

What AdaBN (Li et al. 2017), prior mixing (Schneider et al. 2020) and recalibration after pruning
or quantization have in common: a population is measured (`measure`), mixed, merged or compared,
written into the model (`apply_`) and taken back out.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...errors import InputError
from ..moments import Moments
from ..partition import BATCH, Partition, channel_groups
from ..undo import Undo
from .fingerprint import Fingerprint, digest_of


@dataclass(frozen=True, eq=False)
class Population:
    """Moments of every population layer of one model.

    Attributes:
        layers: by the layer's name, in the order of the model: moments of partition BATCH, or
            `channel_groups(d)` with covariance for a whitening layer; on the CPU. Measured
            ones are pooled in float64, with the biased variance, and their count is the number of
            values a channel. A count of 0 says that it is not known: such a variance is as a
            checkpoint stores it (torch's `running_var` is unbiased, `running_cov` is biased).
        fingerprint: of the model's weights.
        samples: number of inputs behind it; None if taken from a checkpoint, or mixed.
        unreached: names of layers that no forward pass came to. They have no moments, and
            `apply_` leaves them as they are.
        mode: of `measure`; None if not measured, or mixed.
        based_on: in mode `fixed`, a digest of the running statistics that the model had while it
            was measured. Parts that were measured under different ones do not merge.
    """

    layers: dict[str, Moments]
    fingerprint: Fingerprint
    samples: int | None = None
    unreached: tuple[str, ...] = ()
    mode: str | None = None
    based_on: str | None = None

    @classmethod
    def of(cls, model: nn.Module) -> Population:
        """Take a model's own running statistics, as they are, in copies and without a count.

        `apply_(model, Population.of(model))` changes no bit. As the source of `mix` it needs no
        count; `merge` refuses it.

        Raises:
            InputError: the model has no population layer.
        """
        found = {name: stored_moments(layer) for name, layer in population_layers(model).items()}
        return cls(found, Fingerprint.of(model))

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write a safetensors file, all of it or nothing; `Population.load` reads it.

        Raises:
            InputError: the file exists and `overwrite` is False, or cannot be written.
        """
        from .file import write

        write(self, path, overwrite)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Population:
        """Read a file that `save` wrote, to the CPU and to the bit.

        Raises:
            InputError: missing, damaged, or another kind of file.
        """
        from .file import read

        return cls(*read(path))


def population_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the layers that keep a population, by name; a shared one under its first name.

    They have a buffer `running_mean` (C,) and a `running_var` (C,) or, whitening, a `running_cov`
    (G, d, d): batch norms of torch, timm, torchvision and ours, synchronized and frozen ones too.
    A layer that does not track (its `running_mean` is None) is none, nor is a bank of domains.

    Raises:
        InputError: there is none, or one is lazy and has not seen its first input.
    """
    found = {name: module for name, module in model.named_modules() if _keeps(name, module)}
    if not found:
        raise InputError(
            f"{type(model).__name__} has no layer with running statistics: {_way(model)}"
        )
    return found


def _way(model: nn.Module) -> str:
    """How a model without population layers comes to some."""
    means = [getattr(module, "running_mean", None) for module in model.modules()]
    if any(isinstance(mean, Tensor) and mean.dim() == 2 for mean in means):  # (K, C), of domains
        return (
            "its domains keep their own; measure model.export(domain), and give the population to"
            " model.load_domain(domain, population)"
        )
    return (
        "convert_norm(model, 'batch', match='all') makes its norm layers batch norms, which have"
        " them; a network without norm layers has none to measure"
    )


def spread_name(layer: nn.Module) -> str:
    """Return the buffer in which a population layer keeps its spread."""
    whitens = isinstance(getattr(layer, "running_cov", None), Tensor)
    return "running_cov" if whitens else "running_var"


def partition_of(layer: nn.Module) -> Partition:
    """Return the partition of a population layer's moments."""
    spread = layer.get_buffer(spread_name(layer))
    return BATCH if spread.dim() == 1 else channel_groups(spread.shape[-1])


def stored(moments: Moments) -> tuple[Tensor, Tensor]:
    """Return mean (C,) and spread as a layer keeps them in its buffers.

    The variance (C,) is made unbiased, n/(n−1), where the count n is known; a covariance
    (G, d, d) stays biased.
    """
    if moments.cov is not None:
        return moments.mean.flatten(), moments.cov
    count = moments.count.double()
    known = torch.where(count > 1, count / (count - 1).clamp_min(1), 1.0)
    return moments.mean.flatten(), (moments.var * known.unsqueeze(1)).to(moments.var).flatten()


def fitting(name: str, value: Tensor, dtype: torch.dtype) -> Tensor:
    """Return what a layer is to store in the dtype of its buffer.

    Raises:
        InputError: a finite value is too large for it.
    """
    cast = value.to(dtype)
    narrower = torch.finfo(dtype).max < torch.finfo(value.dtype).max
    if narrower and bool((cast.isinf() & value.isfinite()).any()):
        raise InputError(
            f"layer '{name}': a statistic of {float(value.abs().max()):.3g} is more than"
            f" {str(dtype).removeprefix('torch.')} holds ({torch.finfo(dtype).max:.5g}): measure"
            " and keep the model in float32"
        )
    return cast


def digest(layers: Mapping[str, nn.Module]) -> str:
    """Return 16 hexadecimal digits of SHA-256 over the running statistics of layers."""
    whole = hashlib.sha256()
    for name, layer in layers.items():
        for key in ("running_mean", spread_name(layer)):
            whole.update(f"{name}.{key} {digest_of(name, layer.get_buffer(key))}\n".encode())
    return whole.hexdigest()[:16]


def stored_moments(layer: nn.Module) -> Moments:
    """Return the running moments of a population layer: a copy on the CPU, without a count."""
    mean = _wide(layer.get_buffer("running_mean"))
    spread = _wide(layer.get_buffer(spread_name(layer)))
    if spread.dim() == 1:
        return Moments(_unknown(1), mean[None], spread[None], None, BATCH)
    var = spread.diagonal(dim1=1, dim2=2).clone()
    return Moments(_unknown(len(var)), mean.view(var.shape), var, spread, partition_of(layer))


def apply_(model: nn.Module, population: Population, *, strict: bool = True) -> Undo:
    """Write a population into a model's running statistics.

    Nothing else changes: γ, β, `momentum`, `num_batches_tracked` and the training flag stay. The
    values are cast to the dtype of the buffers. The handle restores every bit; as a context manager
    it does so at the end of the block.

    Args:
        model: changed in place.
        population: of this model.
        strict: refuse a population of other weights, and one that lacks a layer. Without it
            only layers that both have are written, whatever the weights.

    Example:
        >>> population = measure(model, images)  # AdaBN
        >>> with apply_(model, population):
        ...     evaluate(model)

    Raises:
        InputError: the population belongs to another model, and the first layer or weight that
            differs is named; or a value is too large for the dtype of a layer's buffer. Nothing
            has changed then.
    """
    layers = population_layers(model)
    if strict:
        check_weights(Fingerprint.of(model), population.fingerprint)
        _check_names(layers, population)
    chosen = {name: population.layers[name] for name in layers if name in population.layers}
    if not chosen:
        raise InputError("no layer of the population is in the model: measure this model")
    for name, moments in chosen.items():
        _check_fit(name, layers[name], moments)
    undo = Undo()
    for name, moments in chosen.items():
        _write(layers[name], moments, undo)
    return undo


def check_weights(mine: Fingerprint, theirs: Fingerprint) -> None:
    """Check that a population and a model, or two populations, belong to the same weights.

    Raises:
        InputError: they do not; the first weight that differs is named.
    """
    if difference := mine.difference(theirs):
        raise InputError(
            f"{difference}: the population belongs to another model or other weights; measure this"
            " model"
        )


def _keeps(name: str, module: nn.Module) -> bool:
    buffers = dict(module.named_buffers(recurse=False))
    if any(nn.parameter.is_lazy(buffer) for buffer in buffers.values()):
        raise InputError(f"layer '{name}' is lazy: run the model on one input first")
    mean, spread = buffers.get("running_mean"), buffers.get(spread_name(module))
    return mean is not None and spread is not None and mean.dim() == 1 and spread.dim() in (1, 3)


def _unknown(groups: int) -> Tensor:
    return torch.zeros(groups, dtype=torch.float64)


def _wide(x: Tensor) -> Tensor:
    return x.detach().to("cpu", torch.promote_types(x.dtype, torch.float32), copy=True)


def _check_names(layers: dict[str, nn.Module], population: Population) -> None:
    for name in layers:
        if name not in population.layers and name not in population.unreached:
            raise InputError(f"layer '{name}' is not in the population: measure this model")
    for name in population.layers:
        if name not in layers:
            raise InputError(f"layer '{name}' of the population is not in the model")


def _check_fit(name: str, layer: nn.Module, moments: Moments) -> None:
    spread = layer.get_buffer(spread_name(layer))
    mean, values = stored(moments)
    if (got := values.shape) != spread.shape:
        raise InputError(
            f"layer '{name}' keeps a spread of {tuple(spread.shape)}, the population"
            f" {tuple(got)}: it belongs to another model"
        )
    fitting(name, mean, layer.get_buffer("running_mean").dtype)
    fitting(name, values, spread.dtype)


@torch.no_grad()
def _write(layer: nn.Module, moments: Moments, undo: Undo) -> None:
    names = ("running_mean", spread_name(layer))
    for name, value in zip(names, stored(moments), strict=True):
        buffer = layer.get_buffer(name)
        undo.add(_restoring(layer, name, buffer.detach().clone()))
        buffer.copy_(value)


def _restoring(layer: nn.Module, name: str, old: Tensor) -> Callable[[], object]:
    @torch.no_grad()
    def restore() -> None:
        layer.get_buffer(name).copy_(old)

    return restore
