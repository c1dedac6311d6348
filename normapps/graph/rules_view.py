"""The rule of reshapes: which new dimension holds the channels.

A dimension with channels that is split, (C) → (A, B), leaves them in one of the two; the channels
that then share an index are tied. Flattened with positions, (C, H, W) → (C H W), each channel
repeats.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .atoms import Axes, Axis
from .call import Call, Rule
from .graph import Atoms


@dataclass(frozen=True)
class _Block:
    """Dimensions that a reshape turns into others, of as many elements."""

    old: tuple[int, ...]
    new: tuple[int, ...]


def _view(call: Call) -> list[Axes]:
    axes, old, new = call.axes("self"), call["self"].shape, call.outputs[0].shape
    found: list[Axis | None] = [None] * len(new)
    for block in _blocks(old, new):
        here = [dim for dim in block.old if axes[dim] is not None]
        for dim, axis in _reshaped(call, axes, here, block).items():
            found[dim] = axis
            if axis is not None and len(block.old) > len(block.new) == 1:
                _sized_by_input(call, axis)
            if axis is not None:
                call.cut("view", [axis])
    return [tuple(found)]


def _sized_by_input(call: Call, axis: Axis) -> None:
    """Keep channels that are laid out anew in as many as the module's input has.

    Its code takes that number from the input (`b, c, h, w = x.shape`), where others go than here.
    """
    size = len(axis.ids)
    if size not in call.sizes:
        return
    roots = call.ledger.roots()
    mine = np.sort(roots[axis.ids])
    for tensor in call.given:
        for other in call.labels.of(tensor).axes[1:]:
            if other is None or len(other.ids) != size:
                continue
            if not np.array_equal(mine, np.sort(roots[other.ids])):
                for each in (axis, other):
                    call.pin(each, "{where} takes their number from its input")


def _blocks(old: tuple[int, ...], new: tuple[int, ...]) -> list[_Block]:
    """Cut both shapes at the first places where their products agree; ones are left out."""
    left = [dim for dim, size in enumerate(old) if size != 1]
    right = [dim for dim, size in enumerate(new) if size != 1]
    blocks = []
    while left and right:
        mine, theirs = [left.pop(0)], [right.pop(0)]
        have, want = old[mine[0]], new[theirs[0]]
        while have != want:
            if have < want:
                mine.append(left.pop(0))
                have *= old[mine[-1]]
            else:
                theirs.append(right.pop(0))
                want *= new[theirs[-1]]
        blocks.append(_Block(tuple(mine), tuple(theirs)))
    return blocks


def _reshaped(call: Call, axes: Axes, here: list[int], block: _Block) -> dict[int, Axis | None]:
    firm = [dim for dim in here if not axes[dim].loose]  # type: ignore[union-attr]
    if len(firm) > 1 or not here:
        for dim in firm:
            call.pin(axes[dim], "{where} reshapes them together with others")
        return {}
    dim = (firm or here)[0]
    axis = axes[dim]
    if axis is None or len(block.old) == len(block.new) == 1:
        return {block.new[0]: axis}
    old, new = call["self"].shape, call.outputs[0].shape
    at = np.arange(len(axis.ids))
    for other in reversed(block.old):
        if other > dim:
            at = at.repeat(old[other])
        elif other < dim:
            at = np.tile(at, old[other])
    return _split(call, axis, at.reshape([new[each] for each in block.new]), block)


def _split(call: Call, axis: Axis, at: Atoms, block: _Block) -> dict[int, Axis | None]:
    """Leave the channels in the new dimension that ties fewest of them."""
    ids = axis.ids[at]
    if len(block.new) == 1:
        return {block.new[0]: axis.take(at)}
    best = _holder(call, axis, at)
    order = np.moveaxis(ids, best, 0).reshape(ids.shape[best], -1)
    silent = np.all(np.moveaxis(axis.silent[at], best, 0).reshape(order.shape), axis=1)
    kept = call.tied(order, over=1)
    return {block.new[best]: Axis(kept, silent, axis.loose)}


def _holder(call: Call, axis: Axis, at: Atoms) -> int:
    """The dimension with most atoms left, those already tied taken as one."""
    roots = call.ledger.roots()[axis.ids][at]
    left = [
        _left(np.moveaxis(roots, dim, 0).reshape(size, -1)) for dim, size in enumerate(at.shape)
    ]
    best = max(range(len(left)), key=left.__getitem__)
    size = at.shape[best]
    if size in call.sizes and not call.held(size):  # a number in the code, which stays
        return int(np.argmax(at.shape))
    return best


def _left(rows: Atoms) -> int:
    """Count what stays apart when each row becomes one atom."""
    if (rows == rows[:, :1]).all():
        return int(rows.size) + len(np.unique(rows[:, 0]))  # nothing new is tied
    return len(rows)


VIEWS: dict[str, Rule] = dict.fromkeys(["view", "_unsafe_view", "reshape", "_reshape_alias"], _view)
"""Operation → rule."""
