"""Normalized weights: standardized, centred, weight-normalized, orthogonal, spectrally normalized.

The idea of activation normalization on the rows of a weight: one row for each output channel, a
convolution's kernel flattened to (out, in·k), a transposed convolution's too. All work on one
layer or on every linear, embedding and (transposed, grouped) convolution layer of a network, keep
dtype, device and `requires_grad`, and are torch parametrizations: what is trained lies under
`layer.parametrizations.weight`, `layer.weight = w` assigns, and an in-place write to
`layer.weight` (`nn.init`) changes a copy only: initialise first.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from ...errors import InputError
from ..precision import without_autocast
from ..undo import Undo
from .matrix import (
    TRANSPOSED,
    Axes,
    find_layers,
    in_float32,
    keeping_order,
    parametrization,
    remove_parametrization_,
)
from .proxy import Proxy, add_proxies_, checked


def weight_standardization_(
    module: nn.Module,
    *,
    eps: float = 1e-5,
    name: str = "weight",
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> Undo:
    """Give every row of the weight mean 0 and variance 1; see `standardize_weight`.

    Qiao et al. 2019, as in the authors' code: unbiased variance, eps added to the deviation, where
    timm's `StdConv2d` has the biased variance and eps under the root. The Parameter objects stay.

    Args:
        module: layer or network, changed in place.
        eps: added to each row's standard deviation.
        name: the parameter.
        include, exclude: shell patterns of layer names.

    Returns:
        A handle that takes it back: the parameters as they are then, not standardized.

    Raises:
        InputError: no such layer, a weight that is parametrized already, or rows of one element.
    """
    layers = find_layers(module, name, include, exclude)
    for path, layer in layers:
        if Axes.of(layer).matrix(layer.get_parameter(name)).shape[1] < 2:
            raise InputError(f"{path}: rows of one element have no variance; exclude it")
    make = functools.partial(WeightStandardization, eps=eps)
    return add_proxies_([layer for _, layer in layers], name, make)


def centered_weight_norm_(
    module: nn.Module,
    *,
    eps: float = 1e-12,
    name: str = "weight",
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> Undo:
    """Split every row into a length g and the direction of v − mean(v); see `centered_weight`.

    Huang et al. 2017, §3. It begins with the centred weight: g = ‖w − mean(w)‖, v = w. The trained
    parameters are `original0` (g) and `original1` (v): make the optimizer afterwards.

    Args:
        module: layer or network, changed in place.
        eps: the least norm that is divided by; a constant row gives zeros.
        name: the parameter.
        include, exclude: shell patterns of layer names.

    Returns:
        A handle that brings the former Parameter object and its value back;
        `remove_weight_norm_` keeps the present weight instead.

    Raises:
        InputError: no such layer, or a weight that is parametrized already.
    """

    def add(path: str, layer: nn.Module, weight: Tensor) -> None:
        added = CenteredWeightNorm(Axes.of(layer), weight.shape, eps)
        parametrize.register_parametrization(layer, name, added, unsafe=True)

    return _reparametrize(module, add, name, include, exclude)


def weight_norm_(
    module: nn.Module,
    *,
    name: str = "weight",
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> Undo:
    """Split the weight into lengths g and directions v by torch's own parametrization.

    Salimans & Kingma 2016. One length for each output channel; a transposed convolution's lie on
    its axis 1, shared by the groups. Make the optimizer afterwards.

    Args:
        module: layer or network, changed in place.
        name: the parameter.
        include, exclude: shell patterns of layer names.

    Returns:
        A handle that brings the former Parameter object and its value back;
        `remove_weight_norm_` keeps the present weight instead.

    Raises:
        InputError: no such layer, a weight that is parametrized already, or one with a row of
            zeros, which has no direction (torch would give NaN).
    """

    def add(path: str, layer: nn.Module, weight: Tensor) -> None:
        axis = 1 if isinstance(layer, TRANSPOSED) else 0
        others = [i for i in range(weight.dim()) if i != axis]
        if not bool((weight.detach() != 0).sum(others).all()):
            raise InputError(
                f"{path}: '{name}' has a row of zeros, which has no direction; initialise it first"
            )
        parametrizations.weight_norm(layer, name, axis)

    return _reparametrize(module, add, name, include, exclude)


def orthogonal_(
    module: nn.Module,
    *,
    orthogonal_map: str | None = None,
    name: str = "weight",
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> Undo:
    """Keep the rows of the weight (its columns, where they are fewer) orthonormal.

    torch's `orthogonal` on the matrix (out, in·k): on a convolution torch itself would make each
    k×k slice orthogonal. Begins with the orthogonal factor of the present weight. Holds under
    weight decay too, where torch's own "householder" falls to zero.

    Args:
        module: layer or network, changed in place.
        orthogonal_map: "matrix_exp", "cayley" or "householder"; torch's choice if not given.
        name: the parameter.
        include, exclude: shell patterns of layer names.

    Returns:
        A handle that brings the former Parameter object and its value back;
        `remove_weight_norm_` keeps the present weight instead.

    Raises:
        InputError: no such layer, a weight that is parametrized already, or one in half precision.
    """

    def add(path: str, layer: nn.Module, weight: Tensor) -> None:
        if in_float32(weight).dtype != weight.dtype:
            raise InputError(
                f"{path}: '{name}' is {weight.dtype}; orthogonal weights need "
                "float32: call .float() first"
            )
        added = Orthogonal(Axes.of(layer), weight, orthogonal_map)
        parametrize.register_parametrization(layer, name, added, unsafe=True)

    return _reparametrize(module, add, name, include, exclude)


def remove_weight_norm_(module: nn.Module, name: str = "weight") -> None:
    """Make normalized weights ordinary parameters of their present value, whatever the method.

    Raises:
        InputError: no layer's weight is parametrized.
    """
    layers = [part for part in module.modules() if parametrization(part, name) is not None]
    if not layers:
        raise InputError(f"{type(module).__name__}: no '{name}' is parametrized")
    for layer in layers:
        added = parametrization(layer, name)
        if added is not None:
            added.eval()
        remove_parametrization_(layer, name)


def standardize_weight(weight: Tensor, eps: float = 1e-5) -> Tensor:
    """Return (w − mean)/(std + eps) of every row, in float32 or better.

    Args:
        weight: (out, fan_in); the standard deviation is unbiased.
        eps: keeps a constant row, whose gradient is finite, at zero.
    """
    weight = in_float32(weight)
    var, mean = torch.var_mean(weight, 1, keepdim=True)
    # the root's slope at 0 is infinite: a constant row takes the clamp's, 0
    return (weight - mean) / (var.clamp_min(torch.finfo(var.dtype).tiny).sqrt() + eps)


def centered_weight(length: Tensor, weight: Tensor, eps: float = 1e-12) -> Tensor:
    """Return g·(v − mean(v))/‖v − mean(v)‖ of every row, in float32 or better.

    Args:
        length: g, (out, 1).
        weight: v, (out, fan_in).
        eps: the least norm that is divided by.
    """
    centered = _center(weight)
    return in_float32(length) * centered / _norm(centered, eps)


def _center(weight: Tensor) -> Tensor:
    weight = in_float32(weight)
    return weight - weight.mean(1, keepdim=True)


def _norm(weight: Tensor, eps: float) -> Tensor:
    return weight.square().sum(1, keepdim=True).clamp_min(eps**2).sqrt()


class WeightStandardization(Proxy):
    """The parametrization behind `weight_standardization_`."""

    def __init__(self, axes: Axes, shape: torch.Size, eps: float = 1e-5) -> None:
        super().__init__(axes, shape)
        self.eps = eps

    def rows(self, matrix: Tensor) -> Tensor:
        """Return the standardized rows."""
        return standardize_weight(matrix, self.eps)

    def extra_repr(self) -> str:
        """Return what `print(network)` shows in the brackets."""
        return f"eps={self.eps}"


class CenteredWeightNorm(nn.Module):
    """The parametrization behind `centered_weight_norm_`: original0 is g (out, 1), original1 v."""

    def __init__(self, axes: Axes, shape: torch.Size, eps: float = 1e-12) -> None:
        super().__init__()
        self.axes, self.shape, self.eps = axes, shape, eps

    def forward(self, length: Tensor, weight: Tensor) -> Tensor:
        """Return g·(v − mean)/‖v − mean‖ in the weight's shape and dtype."""
        rows = centered_weight(length, self.axes.matrix(weight), self.eps)
        return self.axes.stored(rows, self.shape).to(weight.dtype)

    def right_inverse(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """Return g and v of the centred `value`."""
        value = checked(value, self.shape)
        length = _center(self.axes.matrix(value)).square().sum(1, keepdim=True).sqrt()
        return length.to(value.dtype), value.clone()

    def extra_repr(self) -> str:
        """Return what `print(network)` shows in the brackets."""
        return f"eps={self.eps}"


class Orthogonal(nn.Module):
    """The parametrization behind `orthogonal_`: torch's, between two changes of shape."""

    def __init__(self, axes: Axes, weight: Tensor, orthogonal_map: str | None = None) -> None:
        super().__init__()
        self.axes, self.shape = axes, weight.shape
        matrix = axes.matrix(weight.detach().cpu())
        self.rows = matrix.shape[0]
        holder = nn.Module()
        holder.register_parameter("weight", nn.Parameter(matrix.clone(), requires_grad=False))
        with _fixed_seed():
            parametrizations.orthogonal(holder, "weight", orthogonal_map)
        self.inner: Any = parametrization(holder, "weight")

    def forward(self, weight: Tensor) -> Tensor:
        """Return the orthogonal weight that torch's parameters, of its shape, stand for."""
        matrix = weight.reshape(self.rows, -1)
        # torch truncates the diagonal, signs, to integers: weight decay would make it 0
        signs = torch.where(matrix.detach().diagonal() < 0, -1.0, 1.0).to(matrix.dtype)
        with without_autocast(weight):
            rows: Tensor = self.inner(torch.diagonal_scatter(matrix, signs))
        return self.axes.stored(rows, self.shape)

    def right_inverse(self, value: Tensor) -> Tensor:
        """Return the parameters of the orthogonal factor of `value`."""
        value = checked(value, self.shape)
        with _fixed_seed():
            found: Tensor = self.inner.right_inverse(self.axes.matrix(value.cpu()))
        self.inner.to(value.device)
        return found.to(value.device).reshape(self.shape)


@contextmanager
def _fixed_seed() -> Iterator[None]:
    """Let torch complete the matrix to a square one with the same random columns always."""
    with torch.random.fork_rng(devices=()):
        torch.default_generator.manual_seed(0)
        yield


def _reparametrize(
    module: nn.Module,
    add: Callable[[str, nn.Module, Tensor], None],
    name: str,
    include: Sequence[str],
    exclude: Sequence[str],
) -> Undo:
    undo = Undo()
    try:
        for path, layer in find_layers(module, name, include, exclude):
            former = layer.get_parameter(name)
            value = former.detach().clone()
            with keeping_order(layer, name):
                add(path, layer, former)
            undo.add(functools.partial(_bring_back, layer, name, former, value))
    except InputError:
        undo()
        raise
    return undo


@torch.no_grad()
def _bring_back(layer: nn.Module, name: str, former: nn.Parameter, value: Tensor) -> None:
    if parametrization(layer, name) is None:
        return
    remove_parametrization_(layer, name)
    former.data = value.to(layer.get_parameter(name))
    layer.register_parameter(name, former)
