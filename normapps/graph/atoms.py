"""Atoms while a model runs: the ids of a dimension's channels, and which of them are tied.

Ties are kept as edges and solved at once, as connected components, so that a tie of a thousand
channels costs one array operation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from .graph import Atoms, Cost, Cut, Keep


@dataclass(frozen=True, eq=False)
class Axis:
    """The channels of one dimension of one tensor.

    Attributes:
        ids: (C,) int64, the atom of each channel.
        silent: (C,) bool; True where the values are exactly 0 once every batch norm of the atom
            has γ = β = 0.
        loose: one value repeated over all channels, so that any number of them will do.
    """

    ids: Atoms
    silent: Keep
    loose: bool = False

    def take(self, index: slice | Atoms) -> Axis:
        """Return some of the channels, in another order or repeated."""
        return Axis(self.ids[index], self.silent[index], self.loose)

    def heard(self) -> Axis:
        """Return the same channels, none of them silent."""
        return Axis(self.ids, np.zeros(len(self.ids), bool), self.loose)

    def quiet(self, silent: Keep) -> Axis:
        """Return the same channels, silent where they and `silent` are."""
        return Axis(self.ids, self.silent & silent, self.loose)


Axes: TypeAlias = tuple[Axis | None, ...]


def joined(axes: list[Axis]) -> Axis:
    """Return the channels of several axes one after another."""
    ids = np.concatenate([axis.ids for axis in axes])
    return Axis(ids, np.concatenate([axis.silent for axis in axes]))


@dataclass(frozen=True)
class Pin:
    """Atoms that must stay; a `weak` one gives way to "no batch norm scales them"."""

    ids: Atoms
    reason: str
    weak: bool


class Ledger:
    """Hands out atoms, and remembers ties, pins, cuts, costs and batch norms (layer, ids)."""

    def __init__(self) -> None:
        self.count = 0
        self.pins: list[Pin] = []
        self.cuts: list[Cut] = []
        self.costs: list[Cost] = []
        self.scales: list[tuple[str, Atoms]] = []
        self._ties: list[tuple[Atoms, Atoms]] = []
        self._roots: Atoms = np.zeros(0, np.int64)

    def fresh(self, size: int, *, silent: bool = False, loose: bool = False) -> Axis:
        """Return an axis of `size` new atoms."""
        ids = np.arange(self.count, self.count + size)
        self.count += size
        return Axis(ids, np.full(size, silent), loose)

    def tie(self, first: Atoms, second: Atoms) -> None:
        """Make the atoms of two arrays one, index by index; the arrays broadcast."""
        differs = first != second
        if np.any(differs):
            first, second = np.broadcast_arrays(first, second)
            self._ties.append((first[differs], second[differs]))

    def pin(self, ids: Atoms, reason: str, *, weak: bool = False) -> None:
        """Say that atoms must stay, and why."""
        if ids.size:
            self.pins.append(Pin(ids, reason, weak))

    def roots(self) -> Atoms:
        """Return (count,) int64: for each atom the smallest one that it is tied to."""
        labels = np.arange(self.count)
        labels[: len(self._roots)] = self._roots
        if self._ties:
            first = np.concatenate([tie[0] for tie in self._ties])
            labels = _components(labels, first, np.concatenate([tie[1] for tie in self._ties]))
            self._ties.clear()
        self._roots = labels
        return labels


def _components(labels: Atoms, first: Atoms, second: Atoms) -> Atoms:
    """Connected components: the smaller label is hooked on until no edge joins two."""
    while True:
        one, other = labels[first], labels[second]
        apart = one != other
        if not apart.any():
            return labels
        first, second = first[apart], second[apart]
        one, other = one[apart], other[apart]
        np.minimum.at(labels, np.maximum(one, other), np.minimum(one, other))
        while np.any(labels != labels[labels]):
            labels = labels[labels]
