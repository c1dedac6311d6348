"""Atoms of every element of every tensor, while a model runs.

Beside each tensor goes an int64 tensor of the same shape that holds the atom of each element. What
moves elements is run on the atoms too, so views, splits, shuffles and concatenations of any kind
are followed to the element. Along dimensions of one atom (batch, positions) it has stride 0, which
keeps it small.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from .atoms import Ledger
from .graph import Atoms
from .labels import named
from .layer_graph import Clip, Layer

FIXED = 0
"""The atom of what may not change: inputs, and results of operations that follow no rule."""

_KEY = "_normapps_elements"


@dataclass
class Label:
    """What is known of a tensor.

    Attributes:
        atoms: int64 of its shape; None for constants, which no input of the model changes.
        source: state-dict name of the parameter that it is.
        turned: it is the transpose of that parameter.
    """

    atoms: Tensor | None = None
    source: str | None = None
    turned: bool = False


class Elements:
    """The labels of one trace, and what its rules found.

    Attributes:
        ledger: hands out atoms; the first is FIXED.
        layers: by the name of their weight.
        clips: by the name of their module.
        rectified: atoms that a ReLU read.
        spoiled: parameters that are read other than as a layer's weight or bias.
    """

    def __init__(self, model: nn.Module, inputs: Iterable[Tensor]) -> None:
        self.ledger = Ledger()
        self.ledger.fresh(1)
        self.layers: dict[str, Layer] = {}
        self.clips: dict[str, Clip] = {}
        self.rectified: list[Atoms] = []
        self.spoiled: set[str] = set()
        self._key = object()
        self._known: dict[int, tuple[Tensor, Label]] = {}
        for name, tensor in named(model):
            self._known.setdefault(id(tensor), (tensor, Label(source=name)))
        for tensor in inputs:
            self._known[id(tensor)] = (tensor, Label(fixed(tensor)))

    def of(self, tensor: Tensor) -> Label:
        """Return a tensor's label; one that no traced operation made is a constant."""
        key, label = tensor.__dict__.get(_KEY, (None, None))
        if key is not self._key:
            label = self._known.get(id(tensor), (tensor, Label()))[1]
        found: Label = label
        return found

    def add(self, tensor: Tensor, label: Label) -> None:
        """Label the result of an operation."""
        tensor.__dict__[_KEY] = (self._key, label)

    def overwrite(self, tensor: Tensor, atoms: Tensor | None, where: str) -> None:
        """Note what was written into a tensor: views of its memory must keep their atoms."""
        old = self.of(tensor)
        if atoms is None and old.atoms is None:
            return
        reason = f"{where} writes into a part of a tensor"
        if atoms is None or old.atoms is None:
            self.pin(old.atoms if atoms is None else atoms, reason)  # constants do not change
        else:
            self.tie(atoms, old.atoms, reason)

    def spoil(self, tensors: Iterable[Tensor]) -> None:
        """Note which of them are parameters: an operation reads them that is no layer."""
        sources = [self.of(tensor).source for tensor in tensors]
        self.spoiled.update(source for source in sources if source is not None)

    def pin(self, atoms: Tensor | Atoms | None, reason: str) -> None:
        """Say that atoms may not change, and why."""
        if atoms is not None:
            ids = small(atoms).numpy() if isinstance(atoms, Tensor) else atoms
            self.ledger.pin(np.unique(ids[ids != FIXED]), reason)

    def tie(self, first: Tensor, second: Tensor, reason: str) -> None:
        """Make atoms one, element by element (they broadcast); pin those that meet FIXED."""
        one, other = (side.numpy() for side in small_pair(first, second))
        self.ledger.pin(np.unique(other[(one == FIXED) & (other != FIXED)]), reason)
        self.ledger.pin(np.unique(one[(other == FIXED) & (one != FIXED)]), reason)
        both = (one != FIXED) & (other != FIXED)
        self.ledger.tie(one[both], other[both])

    def fresh(self, size: int) -> Tensor:
        """Return (size,) new atoms."""
        return torch.from_numpy(self.ledger.fresh(size).ids)


class Step:
    """One call of an aten operation, as its rule sees it.

    Attributes:
        name: of the operation without overload and trailing underscore.
        run: the operation on other tensors in the place of its own.
        values: arguments by the name that the operation's schema gives them.
        tensors: those among them, also in lists.
        outputs: tensors among the results.
        module: that ran it; `where` is its name.
        elements: what is known.
    """

    def __init__(
        self,
        name: str,
        run: Callable[[Callable[[Tensor], Tensor]], list[Tensor]],
        values: Mapping[str, Any],
        outputs: list[Tensor],
        owner: tuple[str, nn.Module],
        elements: Elements,
    ) -> None:
        self.name, self.run, self.values, self.outputs = name, run, values, outputs
        self.tensors = tensors_in(list(values.values()))
        self.owner, self.module = owner
        self.elements = elements

    @property
    def where(self) -> str:
        """The module in a sentence."""
        return self.owner or "the model"

    def __getitem__(self, key: str) -> Any:
        return self.values.get(key)

    def atoms(self, value: Any) -> Tensor | None:
        """Return an argument's atoms, by its name or itself; None for a constant or a number."""
        value = self[value] if isinstance(value, str) else value
        return self.elements.of(value).atoms if isinstance(value, Tensor) else None

    def label(self, tensor: Tensor) -> Label:
        """Return an argument's label."""
        return self.elements.of(tensor)

    def pin(self, atoms: Tensor | None, reason: str) -> None:
        """Keep atoms; {where} and {op} in the reason are filled in."""
        said = reason.format(where=self.where, op=f"aten.{self.name}")
        self.elements.pin(atoms, said)

    def tie(self, first: Tensor, second: Tensor, reason: str) -> None:
        """Make atoms one; the reason is of those that meet others that may not change."""
        self.elements.tie(first, second, reason.format(where=self.where))

    def along(self, atoms: Tensor, dim: int, reason: str) -> Tensor:
        """Return the atoms of one dimension, (C,); where others have their own, all are kept."""
        channels = small(atoms).movedim(dim, 0).flatten(1)
        if channels.shape[1] == 1:
            return channels[:, 0].expand(atoms.shape[dim])
        self.pin(atoms, reason)
        return torch.zeros(atoms.shape[dim], dtype=torch.int64)

    def spread(self, channels: Tensor, dim: int) -> Tensor:
        """Return the atoms of the first result, of which one dimension has these, (C,)."""
        shape = self.outputs[0].shape
        at = [1] * len(shape)
        at[dim] = shape[dim]
        return channels.reshape(at).expand(shape)


Found: TypeAlias = list[Tensor | None]
Rule: TypeAlias = Callable[[Step], Found]
"""Returns the atoms of each tensor among the results; None for a constant."""


def tensors_in(values: Any) -> list[Tensor]:
    """Return the tensors in nested lists."""
    if isinstance(values, Tensor):
        return [values]
    if isinstance(values, list | tuple):
        return [tensor for each in values for tensor in tensors_in(each)]
    return []


def fixed(tensor: Tensor) -> Tensor:
    """Return atoms of a tensor's shape, none of which may change."""
    return torch.zeros((), dtype=torch.int64).expand(tensor.shape)


def compact(atoms: Tensor) -> Tensor:
    """Return the same atoms, of stride 0 along each dimension where they are all alike."""
    core = small(atoms)
    for dim, size in enumerate(core.shape):
        first = core.narrow(dim, 0, min(size, 1))
        if size > 1 and bool((core == first).all()):
            core = first
    return core.expand(atoms.shape)


def small(atoms: Tensor) -> Tensor:
    """Return atoms with dimensions of stride 0 cut to one index."""
    for dim, stride in enumerate(atoms.stride()):
        if stride == 0 and atoms.shape[dim] > 1:
            atoms = atoms.narrow(dim, 0, 1)
    return atoms


def small_pair(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Broadcast two, and cut dimensions along which neither changes."""
    pair = torch.broadcast_tensors(first, second)
    for dim, size in enumerate(pair[0].shape):
        if size > 1 and all(each.stride(dim) == 0 for each in pair):
            pair = tuple(each.narrow(dim, 0, 1) for each in pair)
    return pair[0], pair[1]
