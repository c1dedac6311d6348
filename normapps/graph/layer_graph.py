"""LayerGraph: which channels of which layers carry the same number, scaled or shifted together.

Where `ChannelGraph` asks which channels live and die together, this one asks what follows when one
channel is multiplied by s > 0 (`trace_scales`) or has c taken from it (`trace_shifts`): the rows
and biases of the layers that make it and the columns of those that read it. An *atom* is one such
number. A depthwise convolution does not tie its input to its output here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from .graph import Atoms, Keep

Sizes: TypeAlias = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Layer:
    """A convolution, transposed convolution or linear layer whose weight is a parameter itself.

    Attributes:
        module: name of the module that owns the weight.
        weight: state-dict name.
        biases: state-dict names; more than one only where calls share a weight but not a bias.
        inputs: atom of each input channel, (I,).
        out: atom of each output channel, (O,).
        groups: as of a convolution; 1 for a linear layer.
        transposed: a transposed convolution, whose weight is (I, O / groups, …).
        padded: it pads with zeros.
    """

    module: str
    weight: str
    biases: tuple[str, ...]
    inputs: Atoms
    out: Atoms
    groups: int = 1
    transposed: bool = False
    padded: bool = False

    def rows(self) -> tuple[Atoms, Atoms]:
        """Return the atoms that the weight's first two dimensions make and read.

        Two arrays that broadcast to `weight.shape[:2]`: first of the output, then of the input.
        """
        whole, parted = (self.inputs, self.out) if self.transposed else (self.out, self.inputs)
        parts = parted.reshape(self.groups, -1)
        if self.groups > 1:
            parts = parts.repeat(len(whole) // self.groups, axis=0)
        return (parts, whole[:, None]) if self.transposed else (whole[:, None], parts)

    def by_output(self, sizes: Sizes) -> tuple[Sizes, Atoms]:
        """Return (O, K) of (rows, columns) `sizes`, and the atoms of the K inputs of each.

        The atoms are (O, K), or (1, K) where they are the same for all.
        """
        return self._by_columns(sizes) if self.transposed else (sizes, self.rows()[1])

    def by_input(self, sizes: Sizes) -> tuple[Sizes, Atoms]:
        """Return (I, K) of (rows, columns) `sizes`, and the atoms of the K outputs of each."""
        return (sizes, self.rows()[0]) if self.transposed else self._by_columns(sizes)

    def _by_columns(self, sizes: Sizes) -> tuple[Sizes, Atoms]:
        whole = self.inputs if self.transposed else self.out
        columns = sizes.shape[1]
        turned = sizes.reshape(self.groups, -1, columns).swapaxes(1, 2)
        others = whole.reshape(self.groups, -1)
        if self.groups > 1:
            others = others.repeat(columns, axis=0)
        return turned.reshape(self.groups * columns, -1), others


@dataclass(frozen=True, eq=False)
class Clip:
    """A module that clips channels at fixed bounds, as ReLU6 and Hardtanh do.

    Attributes:
        module: its name.
        atoms: of each channel of dimension 1, (C,).
    """

    module: str
    atoms: Atoms


@dataclass(frozen=True, eq=False)
class LayerGraph:
    """Layers, and the atoms that they make and read.

    Attributes:
        count: number of atoms; their ids are 0…count−1.
        layers: in the order they ran, each once.
        pinned: atom → why it may not change, in words.
        clips: modules that clip channels at fixed bounds; they do not pin.
        rectified: (count,) bool, True where a ReLU reads the atom.
    """

    count: int
    layers: tuple[Layer, ...]
    pinned: Mapping[int, str] = field(default_factory=dict)
    clips: tuple[Clip, ...] = ()
    rectified: Keep = field(default_factory=lambda: np.zeros(0, bool))

    def free(self) -> Keep:
        """Return (count,) bool: True for atoms that may change and that a layer makes and reads."""
        made, read = np.zeros((2, self.count), bool)
        for layer in self.layers:
            made[layer.out] = True
            read[layer.inputs] = True
        free = made & read
        free[list(self.pinned)] = False
        return free

    def pin(self, atoms: Atoms, reason: str) -> LayerGraph:
        """Return the same graph with more atoms pinned; reasons that they have stay."""
        more = {int(atom): reason for atom in atoms}
        return replace(self, pinned={**more, **self.pinned})

    def groups(self) -> tuple[Atoms, ...]:
        """Return the free atoms, those together that the same sides of the same layers hold."""
        kinds = np.zeros((2 * len(self.layers), self.count), bool)
        for at, layer in enumerate(self.layers):
            kinds[2 * at, layer.out] = True
            kinds[2 * at + 1, layer.inputs] = True
        free = np.flatnonzero(self.free())
        found: dict[bytes, list[int]] = {}
        for atom in free:
            found.setdefault(kinds[:, atom].tobytes(), []).append(int(atom))
        return tuple(np.array(atoms) for atoms in found.values())

    def left(self) -> tuple[tuple[str, str], ...]:
        """Return (layer, reason) for the layers of which some output channel may not change."""
        free, found = self.free(), []
        for layer in self.layers:
            stuck = layer.out[~free[layer.out]]
            if len(stuck):
                found.append((layer.module, self.pinned.get(int(stuck[0]), "no layer reads them")))
        return tuple(found)
