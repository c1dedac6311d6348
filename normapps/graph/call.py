"""One call of an aten operation, as its rule sees it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from torch import Tensor

from .atoms import Axes, Axis, Ledger
from .graph import Atoms, Cut
from .labels import Label, Labels


class Call:
    """Arguments, results and labels of one operation, and what a rule may say about them.

    Attributes:
        name: of the operation without overload and trailing underscore: "add".
        values: arguments by the name that the operation's schema gives them.
        outputs: tensors among the results, in order.
        owner: name of the module that ran it.
        sizes: that code gave to a reshape, those left to be inferred (−1) not among them.
        held: whether an attribute that the owner's forward reads has this value.
        given: the tensors that the owner's forward was given.
        unseen: arguments that the rule has not looked at so far, by identity.
    """

    def __init__(
        self,
        name: str,
        values: dict[str, Any],
        outputs: list[Tensor],
        owner: str,
        labels: Labels,
        ledger: Ledger,
    ) -> None:
        self.name, self.values, self.outputs, self.owner = name, values, outputs, owner
        self.labels, self.ledger = labels, ledger
        self.tensors = list(_tensors(values.values()))
        self.sizes: frozenset[int] = frozenset()
        self.held: Callable[[int], bool] = lambda size: False
        self.given: list[Tensor] = []
        self.unseen = {id(tensor): tensor for tensor in self.tensors}

    @property
    def where(self) -> str:
        """The module in a sentence."""
        return self.owner or "the model"

    def __getitem__(self, key: str) -> Any:
        return self.values[key]

    def get(self, key: str, default: Any = None) -> Any:
        """Return an argument, or `default` where the operation has none of this name."""
        return self.values.get(key, default)

    def label(self, tensor: Tensor) -> Label:
        """Return the label of an argument."""
        self.unseen.pop(id(tensor), None)
        return self.labels.of(tensor)

    def axes(self, value: Tensor | str) -> Axes:
        """Return an argument's axes; open dimensions of a parameter become atoms of its own."""
        tensor: Tensor = self.values[value] if isinstance(value, str) else value
        label = self.label(tensor)
        for dim in sorted(label.open):
            if tensor.dim() < 4 or dim < 2:  # positions of a kernel or an embedding are no channels
                self.own(tensor, dim)
        label.open.clear()
        return label.axes

    def own(self, tensor: Tensor, dim: int) -> Axis | None:
        """Return one axis of a tensor; an open one becomes atoms of its own."""
        label = self.label(tensor)
        if dim in label.open:
            self._set(label, dim, self.ledger.fresh(tensor.shape[dim]))
        return label.axes[dim]

    def claim(self, tensor: Tensor | None, dim: int, axis: Axis | None) -> None:
        """Tie a dimension of a parameter, or of what stands for one, to channels."""
        if tensor is None:
            return
        label = self.label(tensor)
        if tensor.shape[dim] == 1:
            return
        if dim in label.open:
            self._set(label, dim, None if axis is None else axis.heard())
        else:
            self.meet(axis, label.axes[dim])

    def meet(self, first: Axis | None, second: Axis | None) -> None:
        """Tie two axes of one length; where one of them has no channels, the other stays."""
        if first is not None and second is not None:
            self.ledger.tie(first.ids, second.ids)
        elif (one := first or second) is not None and not one.loose:
            self.pin(one, "{where} joins them with numbers that cannot shrink")

    def contract(self, first: Axis | None, second: Axis | None) -> None:
        """Sum a product over two axes: where neither is silent, the channels stay."""
        self.meet(first, second)
        if first is not None and second is not None:
            self.read(Axis(first.ids, first.silent | second.silent))

    def read(self, axis: Axis | None) -> None:
        """Mix channels into others: those that are not silent stay."""
        if axis is not None:
            reason = f"{self.where} reads them without a batch norm between"
            self.ledger.pin(axis.ids[~axis.silent], reason, weak=True)

    def pin(self, axis: Axis | None, reason: str) -> None:
        """Keep an axis; {where} and {op} in the reason are filled in."""
        if axis is not None:
            said = reason.format(where=self.where, op=f"aten.{self.name}")
            self.ledger.pin(axis.ids, said)

    def cut(self, kind: str, pieces: list[Axis]) -> None:
        """Note that code here may hold the pieces' sizes."""
        if kind != "expand" and all(self.labels.of(tensor).weight for tensor in self.tensors):
            return  # layers keep the sizes of their own weights
        kept = [piece.ids for piece in pieces if len(piece.ids)]
        self.ledger.cuts.append(Cut(self.owner, tuple(map(len, kept)), tuple(kept), kind))

    def tied(self, ids: Atoms, over: int) -> Atoms:
        """Tie the rows of (R, C) ids (over=0) or its columns (over=1); return one of them."""
        first: Atoms = ids[0] if over == 0 else ids[:, 0]
        self.ledger.tie(ids, np.expand_dims(first, over))
        return first

    def _set(self, label: Label, dim: int, axis: Axis | None) -> None:
        label.open.discard(dim)
        label.axes = (*label.axes[:dim], axis, *label.axes[dim + 1 :])


Rule: TypeAlias = Callable[[Call], list[Axes]]
"""Returns the axes of each tensor among the results."""


def _tensors(values: Any) -> list[Tensor]:
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += _tensors(value)
    return found
