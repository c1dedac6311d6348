"""A layer's weight as a matrix, the layers that have one, and the change taken back.

A convolution's weight is the matrix (out, in·k): a row for each output channel, whichever way the
layer stores it.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ...errors import InputError
from ..precision import without_autocast

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
LAYERS = (nn.Linear, nn.Embedding, *CONVOLUTIONS, *TRANSPOSED)


@dataclass(frozen=True)
class Axes:
    """Where a stored weight has its outputs: turns it into (groups, out, in, *kernel) and back.

    Attributes:
        groups: of the convolution, 1 otherwise.
        is_transposed: the layer stores (in, out/groups, *kernel), not (out, in/groups, *kernel).
    """

    groups: int = 1
    is_transposed: bool = False

    @classmethod
    def of(cls, layer: nn.Module) -> Axes:
        """Read them off a linear, embedding or (transposed) convolution layer."""
        return cls(int(getattr(layer, "groups", 1)), isinstance(layer, TRANSPOSED))

    def kernel(self, weight: Tensor) -> Tensor:
        """Return the weight as (groups, out/groups, in/groups, *kernel)."""
        grouped = weight.reshape(self.groups, -1, *weight.shape[1:])
        return grouped.transpose(1, 2) if self.is_transposed else grouped

    def matrix(self, weight: Tensor) -> Tensor:
        """Return the weight as (out, in/groups · kernel), a view where that can be."""
        if not self.is_transposed:
            return weight.flatten(1)
        return self.kernel(weight).flatten(3).flatten(2).flatten(0, 1)

    def stored(self, matrix: Tensor, shape: torch.Size) -> Tensor:
        """Return a matrix of `matrix` in the layer's own shape."""
        if not self.is_transposed:
            return matrix.reshape(shape)
        kernel = matrix.reshape(self.groups, shape[1], shape[0] // self.groups, *shape[2:])
        return kernel.transpose(1, 2).reshape(shape)


def find_layers(
    module: nn.Module, name: str, include: Sequence[str], exclude: Sequence[str]
) -> list[tuple[str, nn.Module]]:
    """List the layers whose weight is a matrix, each once, with the name that errors give them.

    Args:
        module: one linear, embedding or (transposed) convolution layer, or a network of them.
        name: the parameter's name.
        include, exclude: shell patterns of layer names; without `include` every layer.

    Raises:
        InputError: no such layer, or one whose weight is parametrized, not yet made or on the
            meta device.
    """
    found = [
        (path, layer)
        for path, layer in _named(module)
        if (not include or _matches(path, include)) and not _matches(path, exclude)
    ]
    if not found:
        asked = f" named like {', '.join(include)}" if include else ""
        message = f"{type(module).__name__}: no linear, embedding or convolution layer{asked}"
        raise InputError(f"{message} with a parameter '{name}'")
    for path, layer in found:
        _refuse_unfit(path, layer, name)
    return found


def _named(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for path, layer in module.named_modules():
        if isinstance(layer, LAYERS):
            yield path or parametrize.type_before_parametrizations(layer).__name__, layer


def _matches(path: str, patterns: str | Sequence[str]) -> bool:
    several = [patterns] if isinstance(patterns, str) else patterns  # a string is a sequence, too
    return any(fnmatch.fnmatchcase(path, pattern) for pattern in several)


def _refuse_unfit(path: str, layer: nn.Module, name: str) -> None:
    if parametrize.is_parametrized(layer, name):
        by = type(_parametrizations(layer, name)[0]).__name__
        raise InputError(f"{path}: '{name}' is parametrized by {by} already; exclude or remove it")
    if f"{name}_orig" in layer._parameters or f"{name}_g" in layer._parameters:
        raise InputError(f"{path}: '{name}' is normalized by a hook of torch.nn.utils; remove it")
    weight = layer._parameters.get(name)
    if isinstance(weight, nn.UninitializedParameter) or (weight is not None and weight.is_meta):
        raise InputError(f"{path}: '{name}' has no values yet; materialize the layer first")
    if weight is None or weight.dim() < 2:
        raise InputError(f"{path}: {type(layer).__name__} has no weight matrix named '{name}'")


@contextmanager
def keeping_order(layer: nn.Module, name: str) -> Iterator[None]:
    """Remember, while a weight is being parametrized, its place among the layer's parameters.

    `remove_parametrization_` puts it back there: optimizers' state dicts go by the order.
    """
    order = list(layer._parameters)
    yield
    parametrizations: Any = _parametrizations(layer, name)
    parametrizations.parameters_after = order[order.index(name) + 1 :]


def remove_parametrization_(layer: nn.Module, name: str, keep_value: bool = True) -> None:
    """Take the parametrizations of one weight away, the same Parameter object staying if it can.

    torch's own `remove_parametrizations` also strips every deep copy of the layer, as copies
    share its injected class, and makes a buffer of a frozen weight that had two tensors
    underneath; here copies and parameters stay what they are, and in their former order.

    Args:
        layer: the layer.
        name: the parameter's name.
        keep_value: the parameter takes the effective value; otherwise the one trained underneath.
    """
    cls = type(layer)
    layer.__class__ = type(cls.__name__, cls.__bases__, dict(cls.__dict__))
    parametrizations = _parametrizations(layer, name)
    trains = any(p.requires_grad for p in parametrizations.parameters())
    after: Sequence[str] = getattr(parametrizations, "parameters_after", ())
    parametrize.remove_parametrizations(layer, name, leave_parametrized=keep_value)
    found = getattr(layer, name)
    if not isinstance(found, nn.Parameter):
        delattr(layer, name)
        layer.register_parameter(name, nn.Parameter(found.detach(), requires_grad=trains))
    for other in after:
        if other in layer._parameters:  # not parametrized itself by now
            layer._parameters[other] = layer._parameters.pop(other)


def take_off_(layer: nn.Module, name: str, added: nn.Module) -> None:
    """Uncover the parameter underneath, if `added` is still what parametrizes it."""
    if parametrization(layer, name) is added:
        remove_parametrization_(layer, name, keep_value=False)


def _parametrizations(layer: nn.Module, name: str) -> nn.ModuleList:
    lists = layer.parametrizations
    if not isinstance(lists, nn.ModuleDict):
        raise InputError(f"{type(layer).__name__}.parametrizations is not torch's")
    found = lists[name]
    if not isinstance(found, nn.ModuleList):
        raise InputError(f"{type(layer).__name__}.parametrizations.{name} is not torch's")
    return found


def parametrization(layer: nn.Module, name: str) -> nn.Module | None:
    """Return the one parametrization of a layer's weight, or None."""
    if not parametrize.is_parametrized(layer, name):
        return None
    found = _parametrizations(layer, name)
    return found[0] if len(found) == 1 else None


def original(layer: nn.Module, name: str) -> Tensor:
    """Return the tensor underneath a parametrized weight: what is trained."""
    found = _parametrizations(layer, name).original
    if not isinstance(found, Tensor):
        raise InputError(f"{type(layer).__name__}.{name} has no single tensor underneath")
    return found


def in_float32(weight: Tensor) -> Tensor:
    """Return the weight in float32 or better."""
    return weight.float() if weight.dtype in (torch.float16, torch.bfloat16) else weight


def in_float64(weight: Tensor) -> Tensor:
    """Return the weight in float64, on Metal, which has none, in float32."""
    return in_float32(weight) if weight.device.type == "mps" else weight.double()


def spectrum(matrix: Tensor) -> Tensor:
    """Return the singular values of (..., M, N), descending, float64; NaN of a not finite one."""
    if not bool(matrix.isfinite().all()):
        values = matrix.new_full((*matrix.shape[:-2], min(matrix.shape[-2:])), float("nan"))
        return values.detach().double()
    with without_autocast(matrix):
        found: Tensor = torch.linalg.svdvals(matrix.detach().double())
    return found
