"""Weights computed from one tensor of their own shape, the proxy, which is what is trained."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ...errors import InputError
from ..precision import without_autocast
from ..undo import Undo
from .matrix import Axes, in_float32, keeping_order, take_off_


class Proxy(nn.Module):
    """A parametrization that computes the rows of a weight from those of the proxy.

    A subclass says `rows`. The Parameter object stays, and becomes the proxy.
    """

    def __init__(self, axes: Axes, shape: torch.Size) -> None:
        super().__init__()
        self.axes, self.shape = axes, shape
        self._is_registered = False

    def rows(self, matrix: Tensor) -> Tensor:
        """Return the rows of the weight, of the proxy's (out, fan_in), float32 or better."""
        raise NotImplementedError

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight in the proxy's shape and dtype."""
        with without_autocast(weight):
            rows = self.rows(in_float32(self.axes.matrix(weight)))
        return self.axes.stored(rows, self.shape).to(weight.dtype)

    def right_inverse(self, value: Tensor) -> Tensor:
        """Take `value` as the proxy."""
        if self._is_registered:
            return checked(value, self.shape).clone()
        self._is_registered = True  # torch asks once, with the parameter itself
        return value


def add_proxies_(
    layers: Sequence[nn.Module], name: str, make: Callable[[Axes, torch.Size], Proxy]
) -> Undo:
    """Parametrize a weight of each layer by a `Proxy`; undone, the parameters are as trained."""
    undo = Undo()
    for layer in layers:
        added = make(Axes.of(layer), layer.get_parameter(name).shape)
        with keeping_order(layer, name):
            parametrize.register_parametrization(layer, name, added, unsafe=True)
        undo.add(functools.partial(take_off_, layer, name, added))
    return undo


def checked(value: Tensor, shape: torch.Size) -> Tensor:
    """Return an assigned weight, detached.

    Raises:
        InputError: it is of another shape.
    """
    if value.shape != shape:
        raise InputError(f"a weight of {tuple(value.shape)} was assigned; must be {tuple(shape)}")
    return value.detach()
