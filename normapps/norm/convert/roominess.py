"""Roominess: whether a layer would have enough to measure where it is to stand."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import InputError
from ..condition import ConditionalLayer
from ..layers.base import NormLayer
from .sites import Site
from .successor import blank

Shapes = dict[int, list[torch.Size]]
"""Id of a layer → the shapes that come to it."""


def shapes_at(
    model: nn.Module, sites: Sequence[Site], example: Tensor | Sequence[Any] | None
) -> Shapes:
    """Return the shapes that come to each layer when the model runs on an example.

    The model runs at inference, without gradients, and is left as it was. Layers that it does not
    reach (the auxiliary heads of Inception) may be reached in training: then it runs once more in
    training, its norm layers at inference.

    Args:
        model: the network.
        sites: of the network.
        example: an input, or a tuple of inputs; None: nothing is to be seen.
    """
    if example is None:
        return {}
    inputs = (example,) if isinstance(example, Tensor) else tuple(example)
    shapes: Shapes = {id(site.module): [] for site in sites}
    with _as_it_was(model), _watched(sites, shapes), torch.no_grad():
        model.eval()(*inputs)
        if not all(shapes.values()):
            model.train()
            for site in sites:
                site.module.eval()
            try:
                model(*inputs)
            except (RuntimeError, ValueError, TypeError):
                return shapes  # it wants another input for training: targets, larger pictures
    return shapes


def too_small(site: Site, to: str, options: dict[str, Any], shapes: Sequence[torch.Size]) -> str:
    """Return why a site cannot become a layer that is trained on these shapes, or nothing."""
    reasons = (_trial(blank(site, to, options), shape) for shape in shapes)
    return next(filter(None, reasons), "")


@contextmanager
def _as_it_was(model: nn.Module) -> Iterator[None]:
    """Give modes, buffers and the random state back after the block."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)


@contextmanager
def _watched(sites: Sequence[Site], shapes: Shapes) -> Iterator[None]:
    """Note within the block what comes to the layers."""

    def remember(layer: nn.Module, args: tuple[Any, ...]) -> None:
        if args and args[0].shape not in shapes[id(layer)]:
            shapes[id(layer)].append(args[0].shape)

    handles = [site.module.register_forward_pre_hook(remember) for site in sites]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _trial(layer: NormLayer, shape: torch.Size) -> str:
    """Why a layer cannot be trained on a shape, or nothing."""
    if isinstance(layer, ConditionalLayer):
        left = _elements(layer, shape)
        return f"{tuple(shape)} leaves {left} element for each mean" if left < 2 else ""
    held = (each for each in (*layer.parameters(), *layer.buffers()) if each.is_floating_point())
    like = next(held, torch.empty(0))
    try:
        with torch.no_grad():
            layer.train()(torch.zeros(shape, device=like.device, dtype=like.dtype))
    except InputError as error:
        return str(error).partition(";")[0]
    return ""


def _elements(layer: NormLayer, shape: torch.Size) -> int:
    """How many elements share a mean, by the layer's place in the taxonomy."""
    space = math.prod(shape[1:-1] if layer.layout == "tokens" else shape[2:])
    return space * (shape[0] if "batch" in layer.taxonomy.partition else 1)
