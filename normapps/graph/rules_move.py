"""Rules of operations that move, join or take apart dimensions."""

from __future__ import annotations

import numpy as np

from .atoms import Axes, Axis, joined
from .call import Call, Rule


def _permute(call: Call) -> list[Axes]:
    axes = call.axes("self")
    return [tuple(axes[dim] for dim in call["dims"])]


def _transpose(call: Call) -> list[Axes]:
    axes = list(call.axes("self"))
    first, second = call["dim0"], call["dim1"]
    axes[first], axes[second] = axes[second], axes[first]
    return [tuple(axes)]


def _turned(call: Call) -> list[Axes]:
    return [call.axes("self")[::-1]]


def _squeeze(call: Call) -> list[Axes]:
    """Dimensions of size 1 have no channels: only their places change."""
    shape, dims = call["self"].shape, call.get("dim")
    rank = len(shape)
    chosen = range(rank) if dims is None else dims if isinstance(dims, list | tuple) else [dims]
    gone = {dim % rank for dim in chosen if shape[dim] == 1}
    return [tuple(axis for dim, axis in enumerate(call.axes("self")) if dim not in gone)]


def _unsqueeze(call: Call) -> list[Axes]:
    axes = call.axes("self")
    dim = call["dim"] % (len(axes) + 1)
    return [(*axes[:dim], None, *axes[dim:])]


def _expand(call: Call) -> list[Axes]:
    """A dimension of size 1 that is repeated fits any number of channels."""
    axes, shape = call.axes("self"), call["self"].shape
    new = call.outputs[0].shape
    lead = len(new) - len(shape)
    found: list[Axis | None] = [*[None] * lead, *axes]
    for dim, size in enumerate(new):
        if size > 1 and (dim < lead or shape[dim - lead] == 1):
            axis = found[dim] = call.ledger.fresh(size, loose=True)
            call.cut("expand", [axis])
    return [tuple(found)]


def _repeat(call: Call) -> list[Axes]:
    axes, repeats = call.axes("self"), call["repeats"]
    padded: Axes = (None,) * (len(repeats) - len(axes)) + axes
    pairs = zip(padded, repeats, strict=True)
    return [tuple(axis and joined([axis] * count) for axis, count in pairs)]


def _cat(call: Call) -> list[Axes]:
    tensors = [each for each in call["tensors"] if each.dim() == call.outputs[0].dim()]
    dim = call.get("dim", 0) % call.outputs[0].dim()
    found: list[Axis | None] = []
    for at in range(call.outputs[0].dim()):
        along = [call.axes(each)[at] for each in tensors]
        if at == dim:
            found.append(_joined(call, along, [each.shape[at] for each in tensors]))
        else:
            found.append(_alike(call, along))
    return [tuple(found)]


def _joined(call: Call, along: list[Axis | None], sizes: list[int]) -> Axis | None:
    if all(axis is None for axis in along):
        return None
    parts = []
    for axis, size in zip(along, sizes, strict=True):
        part = axis or call.ledger.fresh(size)
        if axis is None:
            call.pin(part, "{where} joins them to channels that no layer made")
        parts.append(part)
    return joined(parts)


def _alike(call: Call, along: list[Axis | None]) -> Axis | None:
    """The axis that all have in common, silent where it is in all of them."""
    known = [axis for axis in along if axis is not None]
    for axis in along[1:]:
        if known:
            call.meet(known[0], axis)
    if len(known) < len(along):
        for axis in known:
            call.meet(axis, None)
        return None
    return known[0].quiet(np.logical_and.reduce([axis.silent for axis in known]))


def _stack(call: Call) -> list[Axes]:
    tensors = call["tensors"]
    rank = call.outputs[0].dim()
    dim = call.get("dim", 0) % rank
    rows = zip(*[call.axes(each) for each in tensors], strict=True)
    axes = [_alike(call, list(row)) for row in rows]
    return [(*axes[:dim], None, *axes[dim:])]


def _split(call: Call) -> list[Axes]:
    """Consecutive pieces; those of one length are tied index by index."""
    axes = call.axes("self")
    dim = call.get("dim", 0) % len(axes)
    axis = axes[dim]
    if axis is None:
        return [axes] * len(call.outputs)
    pieces, start = [], 0
    for output in call.outputs:
        pieces.append(axis.take(slice(start, start + output.shape[dim])))
        start += output.shape[dim]
    _tie_alike(call, pieces)
    if call.name == "split" and len(pieces[-1].ids) != len(pieces[0].ids):
        call.pin(axis, "{where} splits them into parts of one length and a rest")
    call.cut("split", pieces)
    return [(*axes[:dim], piece, *axes[dim + 1 :]) for piece in pieces]


def _tie_alike(call: Call, pieces: list[Axis]) -> None:
    first: dict[int, Axis] = {}
    for piece in pieces:
        call.meet(first.setdefault(len(piece.ids), piece), piece)


def _slice(call: Call) -> list[Axes]:
    """A part; where it divides the whole, all such parts are tied index by index."""
    axes = call.axes("self")
    dim = call.get("dim", 0) % len(axes)
    axis, size = axes[dim], call.outputs[0].shape[dim]
    if axis is None or size == len(axis.ids):
        return [axes]
    if call.get("step", 1) != 1 or size == 0:
        call.pin(axis, "{where} picks some of them")
        return [(*axes[:dim], None, *axes[dim + 1 :])]
    start = _start(call.get("start"), len(axis.ids))
    taken = axis.take(slice(start, start + size))
    if len(axis.ids) % size == 0 and start % size == 0:
        call.tied(axis.ids.reshape(-1, size), over=0)
    call.cut("slice", [axis.take(slice(start)), taken, axis.take(slice(start + size, None))])
    return [(*axes[:dim], taken, *axes[dim + 1 :])]


def _start(start: int | None, size: int) -> int:
    if start is None:
        return 0
    return max(0, start + size) if start < 0 else start


def _select(call: Call) -> list[Axes]:
    axes = call.axes("self")
    dim = call.get("dim", 0) % len(axes)
    call.pin(axes[dim], "{where} picks single ones")
    return [(*axes[:dim], *axes[dim + 1 :])] * len(call.outputs)


def _index(call: Call) -> list[Axes]:
    """Fancy indexing: of what is indexed nothing goes; other dimensions pass where in place."""
    axes = call.axes("self")
    chosen = [dim for dim, index in enumerate(call["indices"]) if index is not None]
    for dim in chosen:
        call.pin(axes[dim], "{where} picks some of them")
    rank = call.outputs[0].dim()
    if len(chosen) == 1 and rank == len(axes):
        dim = chosen[0]
        return [(*axes[:dim], None, *axes[dim + 1 :])]
    for axis in axes:
        call.pin(axis, "{where} picks some of them")
    return [(None,) * rank]


def _index_select(call: Call) -> list[Axes]:
    axes = call.axes("self")
    dim = call["dim"] % len(axes)
    call.pin(axes[dim], "{where} picks some of them")
    return [(*axes[:dim], None, *axes[dim + 1 :])]


def _flip(call: Call) -> list[Axes]:
    axes = call.axes("self")
    dims = {dim % len(axes) for dim in call["dims"]}
    turn = slice(None, None, -1)
    return [tuple(axis and axis.take(turn) if d in dims else axis for d, axis in enumerate(axes))]


def _roll(call: Call) -> list[Axes]:
    """Rolled channels land elsewhere when some are gone: they stay."""
    axes = call.axes("self")
    for dim in call["dims"] or range(len(axes)):
        call.pin(axes[dim], "{where} rolls them")
    return [axes]


MOVEMENT: dict[str, Rule] = {
    "permute": _permute,
    "transpose": _transpose,
    "t": _turned,
    "numpy_T": _turned,
    "squeeze": _squeeze,
    "unsqueeze": _unsqueeze,
    "expand": _expand,
    "repeat": _repeat,
    "cat": _cat,
    "stack": _stack,
    "split": _split,
    "split_with_sizes": _split,
    "slice": _slice,
    "select": _select,
    "unbind": _select,
    "index": _index,
    "index_select": _index_select,
    "flip": _flip,
    "roll": _roll,
}
"""Operation → rule."""
