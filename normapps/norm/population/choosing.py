"""Choosing: some of a model's population layers, the others set aside for a while."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from ...errors import InputError
from ..convert.selection import Patterns, select
from ..convert.sites import Site
from .statistics import population_layers, spread_name


def choose(model: nn.Module, include: Patterns = (), exclude: Patterns = ()) -> tuple[str, ...]:
    """Return the names of the population layers that the patterns take, in the model's order.

    Args:
        include: shell patterns of names of layers, or of modules around them: take these only.
        exclude: leave these.

    Raises:
        InputError: the model has no population layer, a pattern matches none, or none is left.
    """
    names = {id(layer): name for name, layer in population_layers(model).items()}
    sites = {key: Site(nn.Module(), [], frozenset()) for key in names}
    for name, module in model.named_modules(remove_duplicate=False):
        if id(module) in sites:
            sites[id(module)].names.append(name)
    taken = {site.names[0] for site in select(list(sites.values()), ["all"], include, exclude)}
    chosen = tuple(name for name in names.values() if name in taken)
    if not chosen:
        raise InputError(f"{exclude!r} excludes all of the {len(names)} layers: exclude less")
    return chosen


@contextmanager
def only(model: nn.Module, chosen: Collection[str]) -> Iterator[None]:
    """Let a model have no other population layers than these inside of the block.

    The others normalize as ever, with their own running statistics, but `population_layers`, and
    so `measure`, does not see them: their buffers are plain attributes meanwhile.
    """
    kept = []
    try:
        for name, layer in population_layers(model).items():
            if name not in chosen:
                kept.append((layer, dict(layer._buffers)))
                _hide(layer)
        yield
    finally:
        for layer, buffers in kept:
            _show(layer, buffers)


def _hide(layer: nn.Module) -> None:
    for key in ("running_mean", spread_name(layer)):
        vars(layer)[key] = layer._buffers.pop(key)


def _show(layer: nn.Module, buffers: dict[str, Tensor | None]) -> None:
    """Make them buffers again, in the order that they had."""
    for key in buffers.keys() - layer._buffers.keys():
        del vars(layer)[key]
    layer._buffers.clear()
    layer._buffers.update(buffers)
