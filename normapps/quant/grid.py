"""The integers that a tensor is rounded to, with the numbers of ONNX Runtime to the bit.

Jacob et al. 2018, eq. 1: x ≈ s·(q − z) with a scale s and a zero point z. Weights are symmetric,
z = 0 and |q| ≤ 127; activations asymmetric, 0 ≤ q ≤ 255. The gradient goes straight through the
rounding (Bengio et al. 2013).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError


@dataclass(frozen=True)
class Grid:
    """Values s·(q − z) with an integer q from `low` to `high`.

    Attributes:
        scale: s, float32 or wider, of a shape that broadcasts against what is rounded.
        zero_point: z, the integer that stands for 0, in the scale's dtype and shape.
        low, high: smallest and largest q.
    """

    scale: Tensor
    zero_point: Tensor
    low: int
    high: int

    def to(self, device: torch.device) -> Grid:
        """Return the grid on a device, where it has to be before it rounds something there."""
        return Grid(self.scale.to(device), self.zero_point.to(device), self.low, self.high)

    @property
    def range(self) -> tuple[Tensor, Tensor]:
        """The smallest and the largest value, in the scale's shape."""
        return (self.low - self.zero_point) * self.scale, (self.high - self.zero_point) * self.scale


def weight_grid(weight: Tensor, *, per_channel: bool, axis: int = 0, bits: int = 8) -> Grid:
    """Return the symmetric grid of a weight: s = max|w| / 127, z = 0, from −127 to 127.

    As ONNX Runtime's for int8 (for its int4 it takes −8, too, which this does not). The scale has
    no gradient. Where all weights are 0, or too small for a normal number as scale, s = 1.

    Args:
        weight: two axes or more, finite; of half precision, it is rounded in float32.
        per_channel: a scale for each place along `axis`, shape (1, …, C, …, 1), not one, shape ().
        axis: of the output channels.
        bits: 2 to 16; |q| ≤ 2^(bits−1) − 1.

    Raises:
        InputError: bits out of range.
    """
    high = 2 ** (_checked(bits) - 1) - 1
    w = _wide(weight.detach())
    within = [each for each in range(w.dim()) if not per_channel or each != axis % w.dim()]
    limit = w.abs().amax(within, keepdim=per_channel)
    # by a tensor: CUDA multiplies by the rounded inverse of a number
    scale = limit / torch.full_like(limit, high)
    scale = torch.where(scale < torch.finfo(scale.dtype).tiny, 1.0, scale)
    return Grid(scale, torch.zeros_like(scale), -high, high)


def activation_grid(low: float, high: float, *, bits: int = 8) -> Grid:
    """Return the asymmetric grid of values between two limits, from 0 to 255, on the CPU.

    The range is widened to hold 0, which is then one of the grid's values. As ONNX Runtime for
    uint8: limits in float32, s = (high − low) / 255 and z = round(−low / s) in float64, half to
    even, s then rounded to float32. An empty range has s = 1, z = 0.

    Args:
        low, high: the smallest and largest activation.
        bits: 2 to 16; q ≤ 2^bits − 1.

    Raises:
        InputError: bits out of range, limits in the wrong order or not finite.
    """
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        raise InputError(f"range from {low} to {high}: must be finite, the smaller limit first")
    return range_grid(torch.tensor(low), torch.tensor(high), bits=bits)


def range_grid(low: Tensor, high: Tensor, *, bits: int = 8) -> Grid:
    """Return the grid of `activation_grid` with a gradient to its limits, scalar tensors.

    Through s and, straight through its rounding, z: LSQ+ (Bhalgat et al. 2020, eq. 3 to 8) in
    terms of the limits. Nothing is checked.
    """
    top = 2 ** _checked(bits) - 1
    low, high = _double(low.clamp_max(0.0)), _double(high.clamp_min(0.0))
    scale = (high - low) / top
    is_empty = scale < torch.finfo(torch.float32).tiny
    scale = torch.where(is_empty, 1.0, scale)
    zero_point = torch.where(is_empty, 0.0, _round(-low / scale))
    return Grid(scale.float(), zero_point.float(), 0, top)


def rounded(x: Tensor, grid: Grid) -> Tensor:
    """Return the nearest values of a grid, half to even: fake quantization, in x's dtype.

    The gradient to x is 1 where x rounds to a value of the grid and 0 beyond its ends; that to
    scale and zero point, where they have one, is that of learned step sizes (Esser et al. 2020,
    eq. 3).

    Args:
        x: of any shape that the grid broadcasts against, on its device.
        grid: where to.
    """
    steps = _round(_wide(x) / grid.scale)
    kept = _within(steps, grid.low - grid.zero_point, grid.high - grid.zero_point)
    return (kept * grid.scale).to(x.dtype)


def integers(x: Tensor, grid: Grid) -> Tensor:
    """Return q for each value, int32: what `QuantizeLinear` of ONNX gives."""
    steps = (_wide(x) / grid.scale).round() + grid.zero_point
    return steps.clamp(grid.low, grid.high).int()


class _StraightThrough(torch.autograd.Function):
    """Rounds half to even and hands the gradient on; x + (round(x) − x) would make inf nan."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0]


def _round(x: Tensor) -> Tensor:
    through: Any = _StraightThrough
    found: Tensor = through.apply(x)
    return found


def _within(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Clamp, with the gradient of 1 at the ends that `torch.clamp` has no longer (torch 2.15)."""
    return torch.where(x < low, low, torch.where(x > high, high, x))


def _wide(x: Tensor) -> Tensor:
    # a scale () would not widen it: torch lets the tensor with axes decide
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _double(x: Tensor) -> Tensor:
    return x.float() if x.device.type == "mps" else x.float().double()


def _checked(bits: int) -> int:
    if not 2 <= bits <= 16:
        raise InputError(f"{bits} bits: must be between 2 and 16")
    return bits
