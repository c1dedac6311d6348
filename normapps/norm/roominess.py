"""Roominess: whether a layer would have enough to measure where it is to stand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from .condition import ConditionalLayer
from .layers.base import NormLayer
from .sites import Site
from .successor import blank


def too_small(
    model: nn.Module,
    sites: Sequence[Site],
    to: str,
    options: dict[str, Any],
    example: Tensor | Sequence[Any] | None,
) -> dict[int, str]:
    """Return why layers could not be what they are to become: id of the layer → reason.

    The model runs on the example once, at inference and without gradients, to see what comes to
    each layer; it is left as it was.

    Args:
        model: the network.
        sites: of the network.
        to, options: what the layers are to become.
        example: an input, or a tuple of inputs; None: there is nothing to say.
    """
    if example is None or to == "torch":
        return {}
    inputs = (example,) if isinstance(example, Tensor) else tuple(example)
    shapes = _shapes(model, sites, inputs)
    found = {}
    for site in sites:
        for shape in shapes[id(site.module)]:
            reason = _trial(blank(site, to, options), shape)
            if reason:
                found[id(site.module)] = reason
    return found


def _shapes(
    model: nn.Module, sites: Sequence[Site], inputs: tuple[Any, ...]
) -> dict[int, list[torch.Size]]:
    """The shapes that come to each layer, as often as they come."""
    shapes: dict[int, list[torch.Size]] = {id(site.module): [] for site in sites}

    def remember(layer: nn.Module, args: tuple[Any, ...]) -> None:
        if args and args[0].shape not in shapes[id(layer)]:
            shapes[id(layer)].append(args[0].shape)

    modes = [(module, module.training) for module in model.modules()]
    handles = [site.module.register_forward_pre_hook(remember) for site in sites]
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            model.eval()(*inputs)
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes:
            module.training = mode
    return shapes


def _trial(layer: NormLayer, shape: torch.Size) -> str:
    """Why a layer cannot be trained on a shape, or nothing."""
    if isinstance(layer, ConditionalLayer):
        left = _elements(layer, shape)
        return f"{left} element is left for each mean of {tuple(shape)}" if left < 2 else ""
    some = next((t for t in (*layer.parameters(), *layer.buffers()) if t.is_floating_point()), None)
    x = torch.zeros(shape) if some is None else torch.zeros(shape, device=some.device)
    x = x if some is None else x.to(some.dtype)
    try:
        with torch.no_grad():
            layer.train()(x)
    except InputError as error:
        return str(error).partition(";")[0]
    return ""


def _elements(layer: NormLayer, shape: torch.Size) -> int:
    """How many elements share a mean, by the layer's place in the taxonomy."""
    space = math.prod(shape[1:-1] if layer.layout == "tokens" else shape[2:])
    return space * (shape[0] if "batch" in layer.taxonomy.partition else 1)
