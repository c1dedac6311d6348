"""Preparing a network for a test-time method: what follows the stream, and what is trained."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from ...errors import InputError, unknown
from ...norm.convert.converter import convert_norm_
from ...norm.convert.selection import Patterns, select
from ...norm.convert.sites import Site, find_sites
from ...norm.layers.streaming import StreamingNorm
from ...norm.nesting import detached_copy

TRAINED = ("affine", "all", "none")


def configure_model(
    model: nn.Module,
    *,
    rule: str = "batch",
    prior: float = 16.0,
    momentum: float = 0.1,
    train: str = "affine",
    include: Patterns = (),
    exclude: Patterns = (),
    freeze: Patterns = (),
) -> nn.Module:
    """Prepare a network for a test-time method, in place, and return it.

    Its batch norms become `StreamingNorm` layers; frozen ones too. Everything else is in inference
    mode, so dropout is off (TENT's code leaves it on). Norm layers without population (layer,
    group, instance, rms) stay and can adapt by their scales and shifts.

    Args:
        model: any network of torch's, timm's, torchvision's or our norm layers.
        rule, prior, momentum: how the batch norms follow the stream, see `StreamingNorm`; with an
            infinite prior they keep to the source.
        train: what requires a gradient: the norm layers' `affine` parameters, `all`, or `none`.
        include, exclude: shell patterns of names of norm layers; the others stay the source's.
        freeze: patterns of those that follow the stream, but whose scales and shifts stay.

    Raises:
        InputError: no norm layer, or none is chosen; an unknown option; a layer that cannot be
            read.
    """
    if train not in TRAINED:
        raise unknown("train", train, TRAINED)
    sites = _chosen(model, include, exclude)
    names = [site.name for site in sites if "batch" in site.kinds]
    if names:
        options: dict[str, Any] = {"rule": rule, "prior": prior, "momentum": momentum}
        if prior == math.inf and rule in ("prior", "cumulative"):
            options = {"rule": "source"}
        convert_norm_(model, "streaming", include=names, **options)
    model.eval().requires_grad_(train == "all")
    for layer in streaming_layers(model).values():
        layer.training, layer.was_frozen, layer.frozen = True, layer.frozen, False
    if train == "affine":
        trained = _chosen(model, include, (*_several(exclude), *_several(freeze)))
        for parameter in _affine(trained).values():
            parameter.requires_grad_(True)
    return model


def configured_copy(model: nn.Module, *, prior: float = 0.0, **options: Any) -> nn.Module:
    """Return a configured copy whose batch norms measure each batch, mixed with the source.

    Args:
        model: see `configure_model`.
        prior: samples that the source counts for; with 0 the batch stands alone.
        options: `include`, `exclude` and `freeze` of `configure_model`.

    Raises:
        InputError: as `configure_model`; no scale or shift is left to adapt.
    """
    rule = "prior" if prior else "batch"
    with torch.inference_mode(False):
        adapting = configure_model(detached_copy(model), rule=rule, prior=prior, **options)
    if not collect_params(adapting)[0]:
        raise InputError(
            f"{type(model).__name__}: the chosen norm layers have no scale or shift that could"
            " adapt (affine=False); take a method of statistics (adabn, prior, ema) or lame"
        )
    return adapting


def collect_params(model: nn.Module) -> tuple[list[nn.Parameter], list[str]]:
    """Return the norm layers' scales and shifts that require a gradient, and their names.

    One that several layers share is there once, by its first name.
    """
    found: dict[int, tuple[nn.Parameter, str]] = {}
    for name, each in _affine(find_sites(model)).items():
        if each.requires_grad:
            found.setdefault(id(each), (each, name))
    return [each for each, _ in found.values()], [name for _, name in found.values()]


def streaming_layers(model: nn.Module) -> dict[str, StreamingNorm]:
    """Return the layers that follow the stream, by name."""
    return {name: each for name, each in model.named_modules() if isinstance(each, StreamingNorm)}


def _chosen(model: nn.Module, include: Patterns, exclude: Patterns) -> list[Site]:
    sites = find_sites(model)
    if not sites:
        raise InputError(
            f"{type(model).__name__} has no normalization layer to adapt; take another network"
        )
    chosen = select(sites, ("all",), include, exclude)
    if not chosen:
        raise InputError(f"the patterns leave none of the {len(sites)} norm layers: exclude less")
    return chosen


def _several(patterns: Patterns) -> tuple[str, ...]:
    return (patterns,) if isinstance(patterns, str) else tuple(patterns)


def _affine(sites: list[Site]) -> dict[str, nn.Parameter]:
    found = {}
    for site in sites:
        for key in ("weight", "bias"):
            if isinstance(value := site.tensor(key), nn.Parameter):
                found[f"{site.name}.{key}"] = value
    return found
