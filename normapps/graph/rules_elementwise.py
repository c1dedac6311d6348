"""Rules of operations that work number by number, with broadcasting.

What matters of them is whether a silent channel stays silent: f(0) = 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

from .atoms import Axes, Axis
from .call import Call, Rule
from .graph import Keep

Silence = Callable[[list[Keep | bool]], Any]
"""From which operands are silent along a dimension, whether the result is."""


def _never(operands: list[Keep | bool]) -> Any:
    return False


def _all(operands: list[Keep | bool]) -> Any:
    return np.logical_and.reduce(np.broadcast_arrays(*operands))


def _any(operands: list[Keep | bool]) -> Any:
    return np.logical_or.reduce(np.broadcast_arrays(*operands))


def _first(operands: list[Keep | bool]) -> Any:
    return operands[0]


def _numerator(operands: list[Keep | bool]) -> Any:
    return np.logical_and(operands[0], np.logical_not(operands[1]))


def elementwise(call: Call, operands: list[Any], silence: Silence) -> Axes:
    """Broadcast operands (tensors and numbers): their channels are tied one to one."""
    known = [call.axes(each) if isinstance(each, Tensor) else () for each in operands]
    found: list[Axis | None] = []
    for dim, size in enumerate(call.outputs[0].shape):
        back = call.outputs[0].dim() - dim
        along = [axes[-back] if back <= len(axes) else None for axes in known]
        full = [_reaches(each, back, size) for each in operands]
        axis = _tied(call, along, full)
        if axis is not None:
            silent = [_is_silent(*pair) for pair in zip(operands, along, strict=True)]
            axis = Axis(axis.ids, np.full(len(axis.ids), silence(silent)), axis.loose)
        found.append(axis)
    return tuple(found)


def _reaches(operand: Any, back: int, size: int) -> bool:
    return isinstance(operand, Tensor) and back <= operand.dim() and operand.shape[-back] == size


def _is_silent(operand: Any, axis: Axis | None) -> Keep | bool:
    if isinstance(operand, Tensor):
        return False if axis is None else axis.silent
    return bool(operand == 0)


def _tied(call: Call, along: list[Axis | None], full: list[bool]) -> Axis | None:
    """Tie what the operands have along one dimension."""
    axes = [axis for axis in along if axis is not None]
    firm = [axis for axis in axes if not axis.loose]
    for axis in axes[1:]:
        call.meet(axes[0], axis)
    if len(axes) < sum(full):  # numbers without channels, of full length
        for axis in firm:
            call.meet(axis, None)
        if not firm:
            return None
    return next(iter(firm or axes), None)


def _rule(silence: Silence, *keys: str) -> Rule:
    return lambda call: [elementwise(call, [call.get(key) for key in keys], silence)]


def _unary(keeps_zero: bool) -> Rule:
    return _rule(_first if keeps_zero else _never, "self")


def _clamp(low: str, high: str) -> Rule:
    def rule(call: Call) -> list[Axes]:
        bounds = [call.get(key) for key in (low, high)]
        tensors = [each for each in bounds if isinstance(each, Tensor)]
        silence = _first if not tensors and _holds_zero(*bounds) else _never
        return [elementwise(call, [call["self"], *tensors], silence)]

    return rule


def _holds_zero(low: float | None, high: float | None) -> bool:
    return (-math.inf if low is None else low) <= 0 <= (math.inf if high is None else high)


def _threshold(call: Call) -> list[Axes]:
    stays = call["threshold"] < 0 or call["value"] == 0
    return _unary(stays)(call)


def _power(call: Call) -> list[Axes]:
    base, exponent = call["self"], call["exponent"]
    stays = not isinstance(exponent, Tensor) and exponent > 0
    return [elementwise(call, [base, exponent], _first if stays else _never)]


def _fill(call: Call) -> list[Axes]:
    """Every number becomes one value, that of the channels that go too."""
    value = call.get("value", 0)
    zero = not isinstance(value, Tensor) and value == 0
    return [elementwise(call, [call["self"]], lambda operands: zero)]


def _lerp(call: Call) -> list[Axes]:
    def silence(operands: list[Keep | bool]) -> Any:
        return _all(operands[:2])

    return [elementwise(call, [call["self"], call["end"], call["weight"]], silence)]


def _masked(call: Call) -> list[Axes]:
    value = call["value"]
    silence = _never if isinstance(value, Tensor) or value != 0 else _first
    return [elementwise(call, [call["self"], call["mask"]], silence)]


def _added_product(call: Call) -> list[Axes]:
    def silence(operands: list[Keep | bool]) -> Any:
        return _all([operands[0], _any(operands[1:])])

    return [elementwise(call, [call[key] for key in ("self", "tensor1", "tensor2")], silence)]


def _where(call: Call) -> list[Axes]:
    def silence(operands: list[Keep | bool]) -> Any:
        return _all(operands[1:])

    return [elementwise(call, [call["condition"], call["self"], call["other"]], silence)]


def _copy(call: Call) -> list[Axes]:
    def silence(operands: list[Keep | bool]) -> Any:
        return operands[1]

    return [elementwise(call, [call["self"], call["src"]], silence)]


def _softmax(call: Call) -> list[Axes]:
    axes = call.axes("self")
    call.pin(axes[call["dim"]], "{where} takes {op} over them")
    return [tuple(axis and axis.heard() for axis in axes)]


def _glu(call: Call) -> list[Axes]:
    """The first half times the sigmoid of the second."""
    axes = list(call.axes("self"))
    dim = call["dim"] % len(axes)
    axis = axes[dim]
    if axis is not None:
        half = len(axis.ids) // 2
        call.ledger.tie(axis.ids[:half], axis.ids[half:])
        call.cut("split", [axis.take(slice(half)), axis.take(slice(half, None))])
        axes[dim] = axis.take(slice(half))
    return [tuple(axes)]


_KEEP_ZERO = (
    "abs alias arctan asin asinh atan atanh ceil celu clone contiguous detach elu erf"
    " expm1 floor gelu hardshrink hardswish leaky_relu lift_fresh log1p mish neg"
    " positive relu relu6 round selu sgn sigmoid_backward sign silu sin sinh softshrink sqrt square"
    " tan tanh trunc _to_copy lift"
)
_LOSE_ZERO = (
    "cos cosh erfc exp exp2 hardsigmoid log log10 log2 log_sigmoid_forward logit reciprocal rsqrt"
    " sigmoid softplus ones_like empty_like full_like"
    " rand_like randn_like isnan isinf bitwise_not logical_not"
)
_COMPARE = (
    "eq ne lt le gt ge bitwise_and bitwise_or logical_and logical_or fmod remainder atan2"
    " floor_divide"
)

ELEMENTWISE: dict[str, Rule] = {
    **dict.fromkeys(_KEEP_ZERO.split(), _unary(True)),
    **dict.fromkeys(_LOSE_ZERO.split(), _unary(False)),
    **dict.fromkeys(_COMPARE.split(), _rule(_never, "self", "other")),
    **dict.fromkeys(["add", "sub", "rsub", "maximum", "minimum"], _rule(_all, "self", "other")),
    "mul": _rule(_any, "self", "other"),
    "div": _rule(_numerator, "self", "other"),
    "true_divide": _rule(_numerator, "self", "other"),
    "lerp": _lerp,
    **dict.fromkeys(["zero", "fill", "zeros_like"], _fill),
    "_prelu_kernel": _rule(_first, "self", "weight"),
    "hardtanh": _clamp("min_val", "max_val"),
    "clamp": _clamp("min", "max"),
    "clamp_min": _clamp("min", "max"),
    "clamp_max": _clamp("min", "max"),
    "threshold": _threshold,
    "pow": _power,
    "where": _where,
    "masked_fill": _masked,
    "addcmul": _added_product,
    "copy": _copy,
    **dict.fromkeys(["_softmax", "_safe_softmax", "_log_softmax", "softmax"], _softmax),
    "glu": _glu,
}
"""Operation → rule."""
