"""Inputs of other sizes, so that what is proven on the inputs given holds not for their size alone.

Code may pad where a size is odd, skip a layer, or join batch and channels where there is one image.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .comparison import Inputs, difference_of

Change = Callable[[Tensor], Tensor]


def other_sizes(model: nn.Module, inputs: Inputs, tolerance: float) -> tuple[Inputs, ...]:
    """Return inputs of another batch size, height and width, odd ones where these are even.

    Made of those given: half as high and wide, or one more; an image alone, or two where there
    was one. All at once, or, where the model does not run on that, what it does run on.

    Args:
        model: has to give finite outputs on them, twice the same; comes out as it went in.
        inputs: what `model(*inputs)` takes.
        tolerance: of "the same", as for `difference_of`.
    """
    for size in (_half, _one_more):
        both = _changed(inputs, _rebatched, size)
        if repeats(model, both, tolerance):
            return (both,)
    alone = (_changed(inputs, change) for change in (_rebatched, _one_more))
    return tuple(each for each in alone if repeats(model, each, tolerance))


def repeats(model: nn.Module, inputs: Inputs, tolerance: float) -> bool:
    """Whether a model runs on inputs and gives finite outputs, twice the same."""
    try:
        return difference_of(model, model, inputs, tolerance) <= tolerance
    except Exception:  # somebody else's forward may raise anything
        return False


def sizes_of(inputs: Inputs) -> str:
    """Say the shapes of the tensors among inputs."""
    each = inputs if isinstance(inputs, tuple) else (inputs,)
    return ", ".join(str(tuple(one.shape)) for one in each if isinstance(one, Tensor))


def _changed(value: Any, *changes: Change) -> Any:
    """Inputs with each tensor in them changed."""
    if isinstance(value, Tensor):
        for change in changes:
            value = change(value)
        return value
    if isinstance(value, dict):
        return {key: _changed(each, *changes) for key, each in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_changed(each, *changes) for each in value)
    return value


def _rebatched(x: Tensor) -> Tensor:
    if x.dim() < 2:
        return x
    return x[:1] if len(x) > 1 else torch.cat([x, x.flip(-1)])


def _half(x: Tensor) -> Tensor:
    """About half the positions, an odd number for an even one."""
    for dim in _positions(x):
        half = x.shape[dim] // 2
        x = x.narrow(dim, 0, max(1, half + (half % 2 == x.shape[dim] % 2)))
    return x


def _one_more(x: Tensor) -> Tensor:
    """One position more, which through halves rounded up stays of the other parity than even."""
    for dim in _positions(x):
        x = torch.cat([x, x.narrow(dim, 0, 1)], dim)
    return x


def _positions(x: Tensor) -> range:
    """Axes behind the channels' of (N, C, …)."""
    return range(2, x.dim()) if x.is_floating_point() else range(0)
