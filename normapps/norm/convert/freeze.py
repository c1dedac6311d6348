"""Freezing and synchronizing: batch norms told how to get their statistics, activations kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ...errors import InputError
from ..layers.tracking import Tracking
from .converter import Conversion, Step, replace_
from .selection import Patterns, select
from .sites import Site, find_sites
from .successor import succeed


def freeze_norm_(
    model: nn.Module, *, affine: bool = True, include: Patterns = (), exclude: Patterns = ()
) -> Conversion:
    """Let batch norms normalize with their running statistics in training too, and keep those.

    They become layers of ours, which carry their activation; `model.train()` does not thaw them,
    and what comes out in inference stays the same to the bit. Layers that are frozen by class
    (torchvision's, timm's) stay as they are. Layers of ours with a population (whitening, banks
    of domains) are frozen, too.

    Args:
        model: any network; see `convert_norm`.
        affine: also freeze scale and shift.
        include, exclude: shell patterns of module names.

    Raises:
        InputError: no such layer, an unknown pattern, or a layer that cannot be read or keeps no
            statistics.
    """

    def set_frozen(layer: Any) -> None:
        layer.frozen = True
        if affine:
            _train_affine(layer, False)

    for site in _chosen(model, include, exclude):
        if site.tensor("running_mean") is None:
            raise InputError(f"{site.name} keeps no statistics to freeze; exclude='{site.name}'")
    return _set(model, include, exclude, set_frozen, leave_frozen=True)


def unfreeze_norm_(
    model: nn.Module, *, affine: bool = True, include: Patterns = (), exclude: Patterns = ()
) -> Conversion:
    """Let batch norms measure their batches in training again, also those frozen by class.

    torchvision's and timm's frozen layers become layers of ours, which at inference differ from
    them by rounding.

    Args:
        model: any network; see `convert_norm`.
        affine: also let scale and shift be trained.
        include, exclude: shell patterns of module names.

    Raises:
        InputError: no such layer, an unknown pattern, or a layer that cannot be read.
    """

    def set_free(layer: Any) -> None:
        layer.frozen = False
        if layer._buffers.get("num_batches_tracked", 0) is None:
            at = layer.running_mean.device
            layer.num_batches_tracked = torch.tensor(0, dtype=torch.long, device=at)
        if affine:
            _train_affine(layer, True)

    return _set(model, include, exclude, set_free)


def sync_norm_(
    model: nn.Module,
    *,
    process_group: Any = None,
    include: Patterns = (),
    exclude: Patterns = (),
) -> Conversion:
    """Let batch norms measure the batches of all processes together.

    Unlike torch's `convert_sync_batchnorm` it keeps activations, runs on a CPU too, and is exact
    for batches that differ in size.

    Args:
        model: any network; see `convert_norm`.
        process_group: of which processes; all of them without it.
        include, exclude: shell patterns of module names.

    Raises:
        InputError: no such layer, an unknown pattern, or a layer that cannot be read.
    """

    def set_sync(layer: Any) -> None:
        layer.sync, layer.process_group = True, process_group

    return _set(model, include, exclude, set_sync, leave_frozen=True)


def _set(
    model: nn.Module,
    include: Patterns,
    exclude: Patterns,
    change: Callable[[Any], None],
    *,
    leave_frozen: bool = False,
) -> Conversion:
    """Make batch norms ours, then change each of them and all layers of ours with a population."""
    steps = []
    for site in _chosen(model, include, exclude):
        stays = site.is_ours or (leave_frozen and site.is_frozen)
        note = "is frozen by class" if leave_frozen and site.is_frozen and not site.is_ours else ""
        steps.append(Step(site, None if stays else succeed(site, "batch", "carry", {}), note))
    conversion = replace_(model, steps)
    for step in steps:
        layer: Any = step.site.module if step.successor is None else step.successor.layer
        if isinstance(layer, Tracking):
            conversion.add(_Settings(layer))
            change(layer)
    return conversion


def _chosen(model: nn.Module, include: Patterns, exclude: Patterns) -> list[Site]:
    sites = [site for site in find_sites(model) if _has_population(site)]
    if not sites:
        raise InputError(f"{type(model).__name__} has no batch norm, nor another layer like it")
    return select(sites, ("all",), include, exclude)


def _has_population(site: Site) -> bool:
    return isinstance(site.module, Tracking) or (not site.is_ours and "batch" in site.kinds)


def _train_affine(layer: nn.Module, trained: bool) -> None:
    for parameter in _affine(layer):
        parameter.requires_grad_(trained)


def _affine(layer: nn.Module) -> list[nn.Parameter]:
    found = (layer._parameters.get(name) for name in ("weight", "bias"))
    return [each for each in found if each is not None]


class _Settings:
    """Gives a layer of ours back how it was set."""

    def __init__(self, layer: Any) -> None:
        self.layer = layer
        self.plain = (layer.frozen, layer.sync, layer.process_group)
        self.trained = [(each, each.requires_grad) for each in _affine(layer)]
        self.counter = layer._buffers.get("num_batches_tracked")

    def __call__(self) -> None:
        self.layer.frozen, self.layer.sync, self.layer.process_group = self.plain
        for parameter, requires_grad in self.trained:
            parameter.requires_grad_(requires_grad)
        self.layer._buffers["num_batches_tracked"] = self.counter
