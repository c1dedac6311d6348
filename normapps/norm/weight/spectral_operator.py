"""The linear map whose norm spectral normalization divides by, and its largest singular pair.

Three maps of one weight:

- `reshape`: the matrix (out, in·k), Miyato et al. 2018, §2.1. Not the norm of the convolution: it
  understates it by up to √k.
- `conv`: the convolution itself on an input of a given size: its stride, dilation, groups and
  padding with zeros. Its norm grows with the size, towards the supremum over all frequencies.
- `bound`: an upper bound of `conv` at any size. Singla & Feizi 2021, theorem 1: the kernel unfolded
  into a matrix with some of its axes beside the outputs, the others beside the inputs, bounds the
  convolution after a factor √k for each axis; the smallest of the 2^d unfoldings is taken. We
  differ where the stride s is not 1: an axis beside the inputs costs √⌈k·gcd(s, dilation)/s⌉ only,
  the largest number of windows that one pixel is in (√⌈k/s⌉ without dilation).

With the unit vectors u and v fixed the estimate uᵀA(W)v is linear in the weight: ⟨D, W⟩ with
D = ∂σ/∂W, the `direction`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import grad as conv_gradients

from ...errors import InputError, unknown
from .matrix import CONVOLUTIONS, TRANSPOSED, Axes
from .singular import TINY, Map, top_pair

Sigma = Literal["reshape", "conv", "bound"]
SIGMAS: tuple[Sigma, ...] = ("reshape", "conv", "bound")
DEFAULT_SIZE = 16


class Operator(Map, Protocol):
    """A linear map A(W) that is itself linear in the weight."""

    @property
    def shape(self) -> torch.Size:
        """The weight's shape."""

    def direction(self, u: Tensor, v: Tensor) -> Tensor:
        """Return D, of the weight's shape, with uᵀ A(W) v = ⟨D, W⟩."""


@dataclass(frozen=True)
class Reshaped:
    """The matrix (out, in·k); u (out,) and v (in·k,) as torch stores them."""

    shape: torch.Size
    axes: Axes

    def forward(self, weight: Tensor, v: Tensor, plus: Tensor | None = None) -> Tensor:
        """Return A v, (out,), and a little of `plus`."""
        return _product(self.axes.matrix(weight), v, plus)

    def adjoint(self, weight: Tensor, u: Tensor, plus: Tensor | None = None) -> Tensor:
        """Return Aᵀ u, (in·k,), and a little of `plus`."""
        return _product(self.axes.matrix(weight).t(), u, plus)

    def direction(self, u: Tensor, v: Tensor) -> Tensor:
        """Return u vᵀ in the weight's shape."""
        return self.axes.stored(torch.outer(u, v), self.shape)

    def input_shape(self) -> tuple[int, ...]:
        """Return (in·k,)."""
        outputs = self.axes.groups if self.axes.is_transposed else 1
        rows = self.shape[1] * outputs if self.axes.is_transposed else self.shape[0]
        return (self.shape.numel() // rows,)


@dataclass(frozen=True)
class Unfolded:
    """An unfolding of the kernel times the factor that makes its norm a bound.

    u is (groups, out, *rows) and v (groups, in, *columns): a kernel axis has its length in one of
    them and 1 in the other. So the shape of a saved u says which unfolding it belongs to.
    """

    shape: torch.Size
    axes: Axes
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    beside_outputs: tuple[bool, ...]

    @property
    def factor(self) -> float:
        """What the matrix's norm is multiplied by: √k or √⌈k·gcd(s, d)/s⌉ for each axis."""
        axes = zip(self.beside_outputs, self.shape[2:], self.stride, self.dilation, strict=True)
        windows = (k if out else -(-k * math.gcd(s, d) // s) for out, k, s, d in axes)
        return math.sqrt(math.prod(min(k, n) for k, n in zip(self.shape[2:], windows, strict=True)))

    def like(self, rows: Sequence[int]) -> Unfolded:
        """Return the unfolding whose u has the shape `rows`."""
        return replace(self, beside_outputs=tuple(n > 1 for n in rows[2:]))

    def forward(self, weight: Tensor, v: Tensor, plus: Tensor | None = None) -> Tensor:
        """Return A v, (groups, out, *rows), and a little of `plus`."""
        matrix, rows, _ = self._matrix(weight)
        return _plus(torch.bmm(matrix, v.flatten(1).unsqueeze(2)).reshape(rows), plus)

    def adjoint(self, weight: Tensor, u: Tensor, plus: Tensor | None = None) -> Tensor:
        """Return Aᵀ u, (groups, in, *columns), and a little of `plus`."""
        matrix, _, columns = self._matrix(weight)
        return _plus(torch.bmm(matrix.mT, u.flatten(1).unsqueeze(2)).reshape(columns), plus)

    def direction(self, u: Tensor, v: Tensor) -> Tensor:
        """Return factor · u vᵀ in the weight's shape."""
        kernel = u.unsqueeze(2) * v.unsqueeze(1) * self.factor
        stored = kernel.transpose(1, 2) if self.axes.is_transposed else kernel
        return stored.reshape(self.shape)

    def input_shape(self) -> tuple[int, ...]:
        """Return (groups, in, *columns)."""
        return self._matrix(torch.empty(self.shape, device="meta"))[2]

    def output_shape(self) -> tuple[int, ...]:
        """Return (groups, out, *rows)."""
        return self._matrix(torch.empty(self.shape, device="meta"))[1]

    def _matrix(self, weight: Tensor) -> tuple[Tensor, tuple[int, ...], tuple[int, ...]]:
        kernel = self.axes.kernel(weight)
        groups, outputs, inputs, *sizes = kernel.shape
        beside = self.beside_outputs
        rows = [k if out else 1 for k, out in zip(sizes, beside, strict=True)]
        columns = [1 if out else k for k, out in zip(sizes, beside, strict=True)]
        first = [3 + i for i, out in enumerate(beside) if out]
        last = [3 + i for i, out in enumerate(beside) if not out]
        matrix = kernel.permute(0, 1, *first, 2, *last).reshape(
            groups, outputs * math.prod(rows), inputs * math.prod(columns)
        )
        return matrix * self.factor, (groups, outputs, *rows), (groups, inputs, *columns)


@dataclass(frozen=True)
class Convolution:
    """The convolution with zero padding; u and v are feature maps (1, C, *S).

    A transposed convolution is the adjoint of a convolution, of the same norm: it is measured as
    that one, whose input is the transposed layer's output.
    """

    shape: torch.Size
    groups: int
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    size: tuple[int, ...]

    def forward(self, weight: Tensor, v: Tensor, plus: Tensor | None = None) -> Tensor:
        """Return A v, (1, out, *S_out), and a little of `plus`."""
        options = (self.stride, (0,) * len(self.size), self.dilation, self.groups)
        convolve: Any = (F.conv1d, F.conv2d, F.conv3d)[len(self.size) - 1]
        mapped: Tensor = convolve(self._padded(v), weight, None, *options)
        return _plus(mapped, plus)

    def adjoint(self, weight: Tensor, u: Tensor, plus: Tensor | None = None) -> Tensor:
        """Return Aᵀ u, (1, in, *S), and a little of `plus`."""
        rest = [self._rest(i, u.shape[2 + i]) for i in range(len(self.size))]
        options = (self.stride, 0, rest, self.groups, self.dilation)
        transposed = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
        back: Any = transposed[len(self.size) - 1]
        mapped: Tensor = back(u, weight, None, *options)
        for axis, ((before, _), length) in enumerate(zip(self.padding, self.size, strict=True)):
            mapped = mapped.narrow(2 + axis, before, length)
        return _plus(mapped, plus)

    def direction(self, u: Tensor, v: Tensor) -> Tensor:
        """Return the gradient of ⟨u, A(W) v⟩ in the weight."""
        gradients = (
            conv_gradients.conv1d_weight,
            conv_gradients.conv2d_weight,
            conv_gradients.conv3d_weight,
        )
        gradient: Any = gradients[len(self.size) - 1]
        options = (self.stride, 0, self.dilation, self.groups)
        found: Tensor = gradient(self._padded(v), self.shape, u, *options)
        return found

    def input_shape(self) -> tuple[int, ...]:
        """Return (1, in, *S)."""
        return (1, self.shape[1] * self.groups, *self.size)

    def _padded(self, v: Tensor) -> Tensor:
        sides = [side for pair in reversed(self.padding) for side in pair]
        return F.pad(v, sides) if any(sides) else v

    def _rest(self, axis: int, outputs: int) -> int:
        whole = self.size[axis] + sum(self.padding[axis])
        reach = self.dilation[axis] * (self.shape[2 + axis] - 1) + 1
        return whole - (outputs - 1) * self.stride[axis] - reach


def _product(matrix: Tensor, x: Tensor, plus: Tensor | None) -> Tensor:
    if plus is None:
        return torch.mv(matrix, x)
    return torch.addmv(plus, matrix, x, beta=TINY)


def _plus(x: Tensor, plus: Tensor | None) -> Tensor:
    return x if plus is None else torch.add(x, plus, alpha=TINY)


def make_operator(
    layer: nn.Module, weight: Tensor, sigma: Sigma, size: int | Sequence[int] | None = None
) -> Operator:
    """Return the map of a layer's weight; a layer without a kernel has only the matrix.

    Args:
        layer: linear, embedding or (transposed) convolution.
        weight: its weight, not normalized: `bound` takes the unfolding that is smallest for it.
        sigma: which map.
        size: spatial size of the input for `conv` (of the output, where transposed).

    Raises:
        InputError: unknown `sigma`, or a padding mode that it does not hold for.
    """
    if sigma not in SIGMAS:
        raise unknown("sigma", sigma, SIGMAS)
    axes = Axes.of(layer)
    if sigma == "reshape" or not isinstance(layer, (*CONVOLUTIONS, *TRANSPOSED)):
        return Reshaped(weight.shape, axes)
    known = ("zeros",) if sigma == "conv" else ("zeros", "circular")
    if layer.padding_mode not in known:
        raise InputError(
            f"{type(layer).__name__}: sigma '{sigma}' does not hold for padding_mode "
            f"'{layer.padding_mode}'; use sigma 'reshape'"
        )
    if all(k == 1 for k in weight.shape[2:]):  # a matrix a group: norm and bound are one
        return unfolded(layer, weight, (False,) * (weight.dim() - 2))
    return _convolution(layer, weight, size) if sigma == "conv" else _tightest(layer, weight)


def unfolded(layer: nn.Module, weight: Tensor, beside_outputs: tuple[bool, ...]) -> Unfolded:
    """Return one unfolding of a convolution's kernel as a bound of its norm."""
    stride, dilation = _tuple(layer.stride), _tuple(layer.dilation)
    return Unfolded(weight.shape, Axes.of(layer), stride, dilation, beside_outputs)


def _tightest(layer: nn.Module, weight: Tensor) -> Operator:
    choices = product((False, True), repeat=weight.dim() - 2)
    found = [unfolded(layer, weight, choice) for choice in choices]
    return min(found, key=lambda operator: float(top_pair(operator, weight)[2]))


def _convolution(layer: nn.Module, weight: Tensor, size: int | Sequence[int] | None) -> Operator:
    stride, dilation = _tuple(layer.stride), _tuple(layer.dilation)
    kernel = weight.shape[2:]
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    padding = _padding(layer, reach)
    size = DEFAULT_SIZE if size is None else size
    lengths = [size] * len(reach) if isinstance(size, int) else list(size)
    if len(lengths) != len(reach):
        raise InputError(f"size {tuple(lengths)}: {type(layer).__name__} has {len(reach)} axes")
    whole = [max(n, r - sum(p)) for n, r, p in zip(lengths, reach, padding, strict=True)]
    groups = Axes.of(layer).groups
    return Convolution(weight.shape, groups, stride, dilation, padding, tuple(whole))


def _padding(layer: nn.Module, reach: Sequence[int]) -> tuple[tuple[int, int], ...]:
    if layer.padding == "same":
        return tuple(((r - 1) // 2, r - 1 - (r - 1) // 2) for r in reach)
    if layer.padding == "valid":
        return ((0, 0),) * len(reach)
    return tuple((p, p) for p in _tuple(layer.padding))


def _tuple(values: object) -> tuple[int, ...]:
    if not isinstance(values, tuple):
        raise InputError(f"{values!r}: must be a tuple of integers, as torch's layers keep it")
    return values
