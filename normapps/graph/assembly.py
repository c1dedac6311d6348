"""From what a trace noted to the ChannelGraph: atoms numbered, and gathered into groups."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np
from torch import nn

from .atoms import Ledger
from .graph import Atoms, ChannelGraph, Cost, Cut, Group, Keep
from .labels import Labels, named
from .sizes import attributes_read, roles

_UNSCALED = "no batch norm scales them"


def assemble(model: nn.Module, labels: Labels, ledger: Ledger) -> ChannelGraph:
    """Return the graph of a finished trace; atoms of no parameter and no buffer are left out."""
    _tie_sizes(model, labels, ledger)
    roots = ledger.roots()
    slots = _slots(labels, roots)
    used = [ids for dims in slots.values() for ids in dims if ids is not None]
    ids = np.unique(np.concatenate(used)) if used else np.zeros(0, np.int64)
    number = np.full(ledger.count + 1, -1)
    number[ids] = np.arange(len(ids))
    final = number[roots]  # of every atom of the trace, −1 where it is in no slot
    scales = {layer: final[ids] for layer, ids in ledger.scales}
    slots = {name: tuple(_renumbered(dim, number) for dim in dims) for name, dims in slots.items()}
    pinned = _pinned(ledger, final, _scaled(scales, len(ids)))
    return ChannelGraph(
        count=len(ids),
        slots=slots,
        shapes={name: tuple(tensor.shape) for name, tensor in named(model)},
        scales=scales,
        pinned=pinned,
        cuts=_cuts(ledger.cuts, final),
        costs=tuple(_final(cost, final) for cost in ledger.costs),
        groups=_groups(slots, scales, pinned, len(ids)),
        parameter_names=tuple(name for name, _ in model.named_parameters()),
    )


def _tie_sizes(model: nn.Module, labels: Labels, ledger: Ledger) -> None:
    """Tie channels whose numbers one attribute holds: it has one value, so they go together."""
    used = _in_slots(labels, ledger)
    cuts = [cut for cut in ledger.cuts if all(used[piece].all() for piece in cut.pieces)]
    read = attributes_read(model, cuts)
    first: dict[tuple[str, str], list[Atoms]] = {}
    for cut in cuts:
        for key, value in read[cut.owner].items():
            for part in roles(value, cut):
                known = first.setdefault((cut.owner, key), part)
                for one, other in zip(known, part, strict=True):
                    ledger.tie(one, other)


def _in_slots(labels: Labels, ledger: Ledger) -> Keep:
    """Say which atoms of the trace are, or are tied to, channels of a parameter or buffer."""
    roots = ledger.roots()
    used = np.zeros(ledger.count, bool)
    for label in labels.names.values():
        for axis in label.axes:
            if axis is not None:
                used[roots[axis.ids]] = True
    return used[roots]


def _slots(labels: Labels, roots: Atoms) -> dict[str, tuple[Atoms | None, ...]]:
    return {
        name: tuple(None if axis is None else roots[axis.ids] for axis in label.axes)
        for name, label in labels.names.items()
    }


def _renumbered(ids: Atoms | None, number: Atoms) -> Atoms | None:
    return None if ids is None else number[ids]


def _scaled(scales: dict[str, Atoms], count: int) -> Keep:
    mask = np.zeros(count, bool)
    for atoms in scales.values():
        mask[atoms] = True
    return mask


def _pinned(ledger: Ledger, final: Atoms, scaled: Keep) -> dict[int, str]:
    """Atom → the first reason that was given; a weak one only for atoms that are scaled."""
    found: dict[int, str] = {}
    for weak in (False, True):
        for pin in ledger.pins:
            if pin.weak == weak:
                for atom in np.unique(final[pin.ids]):
                    if atom >= 0 and (scaled[atom] or not weak):
                        found.setdefault(int(atom), pin.reason)
    for atom in np.flatnonzero(~scaled):
        found.setdefault(int(atom), _UNSCALED)
    return dict(sorted(found.items()))


def _final(cost: Cost, final: Atoms) -> Cost:
    """The same cost, its atoms numbered; an axis whose atoms are in no slot is never cut."""

    def numbered(ids: Atoms | None) -> Atoms | None:
        return None if ids is None or (final[ids] < 0).any() else final[ids]

    out, in_, inputs = (numbered(ids) for ids in (cost.out, cost.in_, cost.inputs))
    return dataclasses.replace(cost, out=out, in_=in_, inputs=inputs)


def _cuts(cuts: Iterable[Cut], final: Atoms) -> tuple[Cut, ...]:
    found: dict[tuple[object, ...], Cut] = {}
    for cut in cuts:
        pieces = tuple(final[piece] for piece in cut.pieces)
        if all((piece >= 0).all() for piece in pieces):
            key = (cut.owner, cut.kind, cut.sizes, *(piece.tobytes() for piece in pieces))
            found.setdefault(key, dataclasses.replace(cut, pieces=pieces))
    return tuple(found.values())


def _groups(
    slots: dict[str, tuple[Atoms | None, ...]],
    scales: dict[str, Atoms],
    pinned: dict[int, str],
    count: int,
) -> tuple[Group, ...]:
    """Atoms of the same tensors and dimensions, and the same reason to stay."""
    places = {(name, dim): ids for name, dims in slots.items() for dim, ids in enumerate(dims)}
    known = {place: ids for place, ids in places.items() if ids is not None}
    kinds = _partition([*known.values(), *_by_reason(pinned)], count)
    names = _first_names(known, kinds)
    layers: dict[int, list[str]] = {}
    for layer, ids in scales.items():
        for kind in np.unique(kinds[ids]):
            layers.setdefault(int(kind), []).append(layer)
    found = []
    for atoms in _members(kinds):
        kind = int(kinds[atoms[0]])
        scaling = tuple(layers.get(kind, ()))
        name = scaling[0] if scaling else names[kind]
        found.append(Group(name, atoms, scaling, pinned.get(int(atoms[0]))))
    return tuple(found)


def _by_reason(pinned: dict[int, str]) -> list[Atoms]:
    found: dict[str, list[int]] = {}
    for atom, reason in pinned.items():
        found.setdefault(reason, []).append(atom)
    return [np.array(atoms) for atoms in found.values()]


def _partition(sets: Iterable[Atoms], count: int) -> Atoms:
    """Give two atoms one number where they are in the same sets; each set splits what it meets."""
    kinds = np.zeros(count, np.int64)
    highest = 0
    for members in sets:
        old, which = np.unique(kinds[members], return_inverse=True)
        kinds[members] = which + highest + 1
        highest += len(old)
    return kinds


def _first_names(places: dict[tuple[str, int], Atoms], kinds: Atoms) -> dict[int, str]:
    found: dict[int, str] = {}
    for (name, _), ids in places.items():
        for kind in np.unique(kinds[ids]):
            found.setdefault(int(kind), name)
    return found


def _members(kinds: Atoms) -> list[Atoms]:
    """The atoms of each number, the number of the smallest atom first."""
    order = np.argsort(kinds, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(kinds[order])) + 1) if len(kinds) else []
    return sorted(parts, key=lambda atoms: int(atoms[0]))
