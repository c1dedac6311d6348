"""Rules of pooling, resampling, padding, reductions, and of channels moved into positions."""

from __future__ import annotations

import numpy as np

from .atoms import Axes, Axis, joined
from .call import Call, Rule
from .rules_elementwise import ELEMENTWISE


def _positions(call: Call, *, rank: int, keeps_zero: bool = True) -> list[Axes]:
    """(…, C, positions): the last `rank` dimensions change, channel by channel."""
    axes = call.axes("self" if "self" in call.values else "input")
    for axis in axes[-rank:]:
        call.pin(axis, "{where} takes {op} along them")
    kept = [axis if keeps_zero else axis and axis.heard() for axis in axes[:-rank]]
    return [(*kept, *[None] * rank)] * len(call.outputs)


def _spatial(rank: int) -> Rule:
    return lambda call: _positions(call, rank=rank)


def _reduced(axes: Axes, dims: list[int], keepdim: bool) -> Axes:
    if keepdim:
        return tuple(None if dim in dims else axis for dim, axis in enumerate(axes))
    return tuple(axis for dim, axis in enumerate(axes) if dim not in dims)


def _dims(call: Call, rank: int) -> list[int]:
    dims = call.get("dim")
    if dims is None or dims == []:
        return list(range(rank))
    return [dim % rank for dim in (dims if isinstance(dims, list | tuple) else [dims])]


def _reduction(*, adds: bool, keeps_zero: bool = True) -> Rule:
    """A reduction; of one that adds, silent channels may go."""

    def rule(call: Call) -> list[Axes]:
        axes = call.axes("self")
        dims = _dims(call, len(axes))
        for dim in dims:
            if adds:
                call.read(axes[dim])
            elif not _averages_one(call, axes[dim]):
                call.pin(axes[dim], "{where} takes {op} over them")
        kept = axes if keeps_zero else tuple(axis and axis.heard() for axis in axes)
        return [_reduced(kept, dims, bool(call.get("keepdim", False)))] * len(call.outputs)

    return rule


def _averages_one(call: Call, axis: Axis | None) -> bool:
    """One value, repeated, is its own mean and extreme, whatever the number."""
    return axis is not None and axis.loose and call.name in ("mean", "amax", "amin")


def _norm(call: Call) -> list[Axes]:
    """A p-norm, to which zeros add nothing if p > 0."""
    order = call.get("ord", call.get("p"))
    adds = order is None or order > 0
    return _reduction(adds=adds, keeps_zero=adds)(call)


def _along(call: Call) -> list[Axes]:
    """A scan, sort or shift along one dimension."""
    axes = list(call.axes("self"))
    dim = call["dim"]
    call.pin(axes[dim], "{where} takes {op} over them")
    axes[dim] = None
    return [tuple(axis and axis.heard() for axis in axes)] * len(call.outputs)


def _pad(call: Call) -> list[Axes]:
    axes = list(call.axes("self"))
    zero = call.get("value", 0) == 0
    for position, size in enumerate(_pad_sizes(call)):
        dim = len(axes) - 1 - position
        axis = axes[dim]
        if axis is not None and size != (0, 0):
            axes[dim] = _padded(call, axis, size)
    if not zero:
        axes = [axis and axis.heard() for axis in axes]
    return [tuple(axes)]


def _pad_sizes(call: Call) -> list[tuple[int, int]]:
    pads = call["pad"]
    return [(pads[at], pads[at + 1]) for at in range(0, len(pads), 2)]


def _padded(call: Call, axis: Axis, size: tuple[int, int]) -> Axis:
    """Channels of zeros before and after; their number stands in the code, so they stay."""
    before, after = (call.ledger.fresh(max(0, count), silent=True) for count in size)
    for zeros in (before, after):
        call.pin(zeros, "{where} pads with a fixed number of them")
    if min(size) < 0:
        call.pin(axis, "{where} crops them")
        axis = axis.take(slice(max(0, -size[0]), len(axis.ids) - max(0, -size[1])))
    return joined([before, axis, after])


def _pad_positions(call: Call) -> list[Axes]:
    return _positions(call, rank=len(call["padding"]) // 2)


def _pixel_shuffle(call: Call) -> list[Axes]:
    """(…, C r², H, W) → (…, C, H r, W r)."""
    *rest, axis, _, _ = call.axes("self")
    if axis is not None:
        factor = call["upscale_factor"] ** 2
        ids = call.tied(axis.ids.reshape(-1, factor), over=1)
        axis = Axis(ids, np.all(axis.silent.reshape(-1, factor), axis=1))
    return [(*rest, axis, None, None)]


def _pixel_unshuffle(call: Call) -> list[Axes]:
    """(…, C, H r, W r) → (…, C r², H, W)."""
    *rest, axis, _, _ = call.axes("self")
    repeats = call["downscale_factor"] ** 2
    return [(*rest, axis and axis.take(np.arange(len(axis.ids)).repeat(repeats)), None, None)]


def _patches(call: Call) -> list[Axes]:
    """(N, C, H, W) → (N, C · kernel, L)."""
    axis = call.axes("self")[1]
    repeats = int(np.prod(call["kernel_size"]))
    return [(None, axis and axis.take(np.arange(len(axis.ids)).repeat(repeats)), None)]


def _channel_shuffle(call: Call) -> list[Axes]:
    """(N, g · C, …) → (N, C · g, …): the g parts stay of one length."""
    axes = list(call.axes("self"))
    axis = axes[1]
    if axis is not None:
        parts = np.arange(len(axis.ids)).reshape(call["groups"], -1)
        call.tied(axis.ids[parts], over=0)
        axes[1] = axis.take(parts.T.reshape(-1))
    return [tuple(axes)]


def _grid_sample(call: Call) -> list[Axes]:
    x = call.axes("input")
    for axis in (*x[2:], *call.axes("grid")):
        call.pin(axis, "{where} samples along them")
    return [(*x[:2], *[None] * (len(x) - 2))]


def _extreme(call: Call) -> list[Axes]:
    """Of one tensor along a dimension, or of two number by number."""
    return ELEMENTWISE["maximum"](call) if "other" in call.values else _PLACE(call)


_SUM = _reduction(adds=True)
_STATISTIC = _reduction(adds=False)
_PLACE = _reduction(adds=False, keeps_zero=False)
_POOLS = "avg_pool{}d adaptive_avg_pool{}d _adaptive_avg_pool{}d adaptive_max_pool{}d"
_RESIZE = {
    1: "upsample_nearest1d _upsample_nearest_exact1d upsample_linear1d",
    2: "upsample_nearest2d _upsample_nearest_exact2d upsample_bilinear2d upsample_bicubic2d"
    " _upsample_bilinear2d_aa _upsample_bicubic2d_aa fractional_max_pool2d",
    3: "upsample_nearest3d _upsample_nearest_exact3d upsample_trilinear3d",
}

RESAMPLING: dict[str, Rule] = {
    **{name.format(n): _spatial(n) for n in (1, 2, 3) for name in _POOLS.split()},
    **{f"max_pool{n}d_with_indices": _spatial(n) for n in (2, 3)},
    **{name: _spatial(n) for n, names in _RESIZE.items() for name in names.split()},
    "sum": _SUM,
    **dict.fromkeys(["linalg_vector_norm", "norm"], _norm),
    **dict.fromkeys(["mean", "amax", "amin", "var", "std", "var_mean", "std_mean"], _STATISTIC),
    **dict.fromkeys(["argmax", "argmin", "prod", "logsumexp", "any", "all"], _PLACE),
    **dict.fromkeys(["cumsum", "cumprod", "sort", "topk", "kthvalue", "logcumsumexp"], _along),
    **dict.fromkeys(["max", "min"], _extreme),
    "constant_pad_nd": _pad,
    **{
        f"{kind}_pad{n}d": _pad_positions
        for kind in ("reflection", "replication")
        for n in (1, 2, 3)
    },
    "pixel_shuffle": _pixel_shuffle,
    "pixel_unshuffle": _pixel_unshuffle,
    "channel_shuffle": _channel_shuffle,
    "native_channel_shuffle": _channel_shuffle,
    "im2col": _patches,
    "grid_sampler_2d": _grid_sample,
    "grid_sampler_3d": _grid_sample,
}
"""Operation → rule."""
