"""ChannelGraph: which channels of a model live and die together, and what they cost.

An *atom* is the smallest set of channels that can be cut out: its indices in every weight, bias,
scale and statistic of the network. A mask `keep` over the atoms, True where one stays, describes
every smaller network that can be cut from this one (Liu et al. 2017, Network Slimming, with the
ties of residual sums, concatenations, groups and splits followed).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Atoms: TypeAlias = NDArray[np.int64]
Keep: TypeAlias = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Group:
    """Atoms that stand in the same dimensions of the same tensors.

    Attributes:
        name: its first norm layer, or its first tensor where no norm layer scales it.
        atoms: ids, (A,) int64, ascending.
        layers: the norm layers that scale it, in the order of the model.
        reason: why it is left whole, in words; None where its atoms may go.
    """

    name: str
    atoms: Atoms
    layers: tuple[str, ...] = ()
    reason: str | None = None


@dataclass(frozen=True, eq=False)
class Cut:
    """A split, slice, view or expansion of channels, with the module whose code ran it.

    That code may hold the sizes in attributes, which have to follow when channels go.

    Attributes:
        owner: name of the module; "" is the model itself.
        sizes: the consecutive pieces' channel counts as traced, in order.
        pieces: the atoms of each piece.
        kind: "split" (pieces of one dimension), "slice" (before, taken, after; empty ones left
            out), "view" or "expand" (one piece: the channels of the new dimension).
    """

    owner: str
    sizes: tuple[int, ...]
    pieces: tuple[Atoms, ...]
    kind: str = "split"

    @property
    def total(self) -> int:
        """Channels of all pieces together, as traced."""
        return sum(self.sizes)


@dataclass(frozen=True, eq=False)
class Cost:
    """One call of a convolution or matrix product: MACs = positions · kernel · out · in_.

    Attributes:
        module: name of the module that ran it.
        weight: state-dict name of the weight; None where it was computed on the way.
        positions: output positions times samples (input positions of a transposed convolution).
        out_channels, in_channels: as traced; `in_channels` a group.
        out, in_: their atoms; None where they are never cut.
        kernel: elements of the kernel.
        groups: as traced.
        inputs: the atoms of all input channels (in_channels · groups of them); None: never cut.
        transposed: a transposed convolution, whose weight is (in, out a group, …).
    """

    module: str
    weight: str | None
    positions: int
    out_channels: int
    in_channels: int
    out: Atoms | None = None
    in_: Atoms | None = None
    kernel: int = 1
    groups: int = 1
    inputs: Atoms | None = None
    transposed: bool = False

    def macs(self, keep: Keep | None = None) -> int:
        """Return the multiply-accumulates of this call."""
        out = _kept(self.out, self.out_channels, keep)
        return self.positions * self.kernel * out * _kept(self.in_, self.in_channels, keep)

    def kept_groups(self, keep: Keep | None = None) -> int:
        """Return the groups that stay: whole ones go, or each of them becomes narrower."""
        size = _kept(self.in_, self.in_channels, keep)
        return _kept(self.inputs, self.in_channels * self.groups, keep) // max(size, 1)


@dataclass(frozen=True, eq=False)
class ChannelGraph:
    """The atoms of one model, as `trace_channels` found them.

    `keep` is (count,) bool everywhere, True where an atom stays; None keeps all.

    Attributes:
        count: number of atoms; their ids are 0…count−1.
        slots: state-dict name of every parameter and buffer → for each dimension the atom of each
            index, or None where that dimension is never cut.
        shapes: the same names → shape as traced.
        scales: name of a batch-norm layer with a scale → atom of each of its channels.
        pinned: atom → why it must stay, in words.
        cuts: where code splits, slices or reshapes channels.
        costs: every convolution and matrix product, in the order they ran.
        groups: all atoms, those of one signature together.
        parameter_names: the slots that are parameters, a shared one once.
    """

    count: int
    slots: Mapping[str, tuple[Atoms | None, ...]]
    shapes: Mapping[str, tuple[int, ...]]
    scales: Mapping[str, Atoms]
    pinned: Mapping[int, str] = field(default_factory=dict)
    cuts: tuple[Cut, ...] = ()
    costs: tuple[Cost, ...] = ()
    groups: tuple[Group, ...] = ()
    parameter_names: tuple[str, ...] = ()

    def free(self) -> Keep:
        """Return (count,) bool: True for atoms that may go (not pinned, and scaled)."""
        mask = np.zeros(self.count, bool)
        for atoms in self.scales.values():
            mask[atoms] = True
        mask[list(self.pinned)] = False
        return mask

    def macs(self, keep: Keep | None = None) -> int:
        """Return the multiply-accumulates of one forward pass at the traced input size.

        Convolutions and matrix products, as `torch.utils.flop_counter` counts them on the CPU;
        fused attention is not counted.
        """
        return sum(cost.macs(keep) for cost in self.costs)

    def layer_macs(self, keep: Keep | None = None) -> dict[str, int]:
        """Return the multiply-accumulates by module, in the order they ran; calls add up."""
        found: dict[str, int] = {}
        for cost in self.costs:
            found[cost.module] = found.get(cost.module, 0) + cost.macs(keep)
        return found

    def parameters(self, keep: Keep | None = None) -> int:
        """Return the number of parameter elements; buffers are not counted."""
        return sum(math.prod(self.shape(name, keep)) for name in self.parameter_names)

    def shape(self, name: str, keep: Keep | None = None) -> tuple[int, ...]:
        """Return a parameter's or buffer's shape with only `keep` left."""
        pairs = zip(self.slots[name], self.shapes[name], strict=True)
        return tuple(_kept(atoms, size, keep) for atoms, size in pairs)

    def layer_channels(self, keep: Keep | None = None) -> dict[str, int]:
        """Return the channels that each norm layer keeps."""
        return {name: _kept(atoms, len(atoms), keep) for name, atoms in self.scales.items()}


def _kept(atoms: Atoms | None, size: int, keep: Keep | None) -> int:
    return size if atoms is None or keep is None else int(np.count_nonzero(keep[atoms]))
