"""Rules of convolutions and matrix products: they mix the channels of one axis into another's."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from .atoms import Axes, Axis
from .call import Call, Rule
from .graph import Atoms, Cost


def _convolution(call: Call) -> list[Axes]:
    """(N, I, …) with weight (O, I/groups, …), or (I, O/groups, …) transposed."""
    x = call.axes("input")
    for axis in (x[0], *x[2:]):
        call.pin(axis, "{where} convolves along them")
    rank = len(x)
    weight: Tensor = call["weight"]
    for dim in range(2, rank):
        call.claim(weight, dim, None)
    mix = _plain if call["groups"] == 1 else _grouped
    mixed = mix(call, x[1])
    call.claim(call["bias"], 0, mixed.out)
    _note_convolution(call, x[1], mixed)
    return [(None, mixed.out, *[None] * (rank - 2))]


@dataclass(frozen=True, eq=False)
class _Mixed:
    out: Axis | None
    in_: Atoms | None  # of one group


def _plain(call: Call, x: Axis | None) -> _Mixed:
    weight = call["weight"]
    into, from_ = (1, 0) if call["transposed"] else (0, 1)
    call.claim(weight, from_, x)
    _read_by(call, x, call.label(weight).axes[from_])
    out = call.own(weight, into)
    return _Mixed(None if out is None else out.heard(), None if x is None else x.ids)


def _read_by(call: Call, x: Axis | None, weight: Axis | None) -> None:
    if x is not None:
        silent = x.silent if weight is None else x.silent | weight.silent
        call.read(Axis(x.ids, silent))


def _grouped(call: Call, x: Axis | None) -> _Mixed:
    """Groups become narrower, index by index; or whole groups go, where that leaves more choice."""
    weight, groups = call["weight"], call["groups"]
    per_in = call["input"].shape[1] // groups
    per_out = call.outputs[0].shape[1] // groups
    if x is None:
        call.claim(weight, 0, None)
        call.claim(weight, 1, None)
        return _Mixed(None, None)
    if per_in == 1 or per_out == 1 or groups > per_in + per_out:
        return _whole_groups(call, x, per_in, per_out)
    return _narrower_groups(call, x, per_in, per_out)


def _whole_groups(call: Call, x: Axis, per_in: int, per_out: int) -> _Mixed:
    weight, groups = call["weight"], call["groups"]
    ids = call.tied(x.ids.reshape(groups, per_in), over=1)
    silent = x.silent.reshape(groups, per_in).all(1)
    rows = weight.shape[0] // groups
    call.claim(weight, 0, Axis(ids.repeat(rows), silent.repeat(rows)))
    call.claim(weight, 1, None)
    quiet = silent if call["bias"] is None else np.zeros_like(silent)
    return _Mixed(Axis(ids.repeat(per_out), quiet.repeat(per_out)), None)


def _narrower_groups(call: Call, x: Axis, per_in: int, per_out: int) -> _Mixed:
    weight, groups = call["weight"], call["groups"]
    ids = call.tied(x.ids.reshape(groups, per_in), over=0)
    call.read(x)
    fresh = call.ledger.fresh(per_out)
    rows, columns = (ids, fresh.ids) if call["transposed"] else (fresh.ids, ids)
    call.claim(weight, 0, _heard(np.tile(rows, groups)))
    call.claim(weight, 1, _heard(columns))
    return _Mixed(_heard(np.tile(fresh.ids, groups)), ids)


def _heard(ids: Atoms) -> Axis:
    return Axis(ids, np.zeros(len(ids), bool))


def _note_convolution(call: Call, x: Axis | None, mixed: _Mixed) -> None:
    given, made = call["input"], call.outputs[0]
    at = given if call["transposed"] else made
    call.ledger.costs.append(
        Cost(
            module=call.owner,
            weight=call.label(call["weight"]).source,
            positions=at.shape[0] * math.prod(at.shape[2:]),
            out_channels=made.shape[1],
            in_channels=given.shape[1] // call["groups"],
            out=None if mixed.out is None else mixed.out.ids,
            in_=mixed.in_,
            kernel=math.prod(call["weight"].shape[2:]),
            groups=call["groups"],
            inputs=None if x is None else x.ids,
            transposed=call["transposed"],
        )
    )


def _addmm(call: Call) -> list[Axes]:
    """bias + mat1 · mat2."""
    out = _product(call, call["mat1"], call["mat2"])
    shape = call["self"].shape
    for dim in range(1, len(shape) + 1):
        if out[-dim] is not None:
            call.claim(call["self"], len(shape) - dim, out[-dim])
    return [tuple(axis and axis.heard() for axis in out)]


def _linear(call: Call) -> list[Axes]:
    """(…, K) with weight (M, K); some devices and scripts do not take it apart."""
    x, weight = call.axes("input"), call["weight"]
    call.contract(x[-1], call.axes(weight)[1])
    axis = call.axes(weight)[0]
    out = (*x[:-1], axis and axis.heard())
    call.claim(call["bias"], 0, axis)
    if call["bias"] is not None:
        out = tuple(each and each.heard() for each in out)
    _note_product(call, call["input"], weight, x[-1], out)
    return [out]


def _mm(call: Call) -> list[Axes]:
    return [_product(call, call["self"], call["mat2"])]


def _baddbmm(call: Call) -> list[Axes]:
    out = _product(call, call["batch1"], call["batch2"])
    for axis, other in zip(out, call.axes("self"), strict=False):
        if axis is not None or other is not None:
            call.meet(axis, other)
    return [tuple(axis and axis.heard() for axis in out)]


def _product(call: Call, first: Tensor, second: Tensor) -> Axes:
    """(…, N, K) · (…, K, M) → (…, N, M)."""
    left, right = call.axes(first), call.axes(second)
    call.contract(left[-1], right[-2])
    batch: list[Axis | None] = []
    for one, other in zip(left[:-2], right[:-2], strict=True):
        if one is None or other is None:
            call.pin(one or other, "{where} joins them with numbers that cannot shrink")
            batch.append(None)
        else:
            call.meet(one, other)
            batch.append(Axis(one.ids, one.silent | other.silent))
    out = (*batch, left[-2], right[-1])  # a row or column of zeros gives one of zeros
    _note_product(call, first, second, left[-1], out)
    return out


def _note_product(
    call: Call, first: Tensor, second: Tensor, summed: Axis | None, out: Axes
) -> None:
    sources = [call.label(tensor).source for tensor in (second, first)]
    shape = call.outputs[0].shape
    dims = [dim for dim in range(-1, -len(out) - 1, -1) if out[dim] is not None]
    dim = dims[0] if dims else -1
    made = out[dim]
    call.ledger.costs.append(
        Cost(
            module=call.owner,
            weight=next((source for source in sources if source), None),
            positions=math.prod(shape) // shape[dim],
            out_channels=shape[dim],
            in_channels=first.shape[-1],
            out=None if made is None else made.ids,
            in_=None if summed is None else summed.ids,
            inputs=None if summed is None else summed.ids,
        )
    )


LINEAR: dict[str, Rule] = {
    "convolution": _convolution,
    "convolution_overrideable": _convolution,
    "_convolution": _convolution,
    "linear": _linear,
    "addmm": _addmm,
    "_addmm_activation": _addmm,
    "mm": _mm,
    "bmm": _mm,
    "baddbmm": _baddbmm,
}
"""Operation → rule."""
